"""Imports the modules named on its command line, one after the other, and tells of each as a line of JSON.

Run by ``doctor`` as a script in a process of its own. Says ``begin`` before each import: if that is the last word,
the import killed the process.
"""

import importlib
import json
import sys
from typing import Any


def main(modules: list[str]) -> None:
    """Import each module; for torch, also look at the devices."""
    for module in modules:
        _say(module=module, begin=True)
        try:
            loaded = importlib.import_module(module)
            _USED.get(module, lambda loaded: None)(loaded)
            facts = _torch_facts(loaded) if module == "torch" else {}
        except (Exception, SystemExit) as error:
            _say(module=module, error=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
        else:
            _say(module=module, **facts)


def _torch_facts(torch: Any) -> dict[str, Any]:
    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        bf16 = torch.cuda.get_device_capability(number) >= (8, 0)
        gpus.append({"name": torch.cuda.get_device_name(number), "free": free, "total": total, "bf16": bf16})
    return {"gpus": gpus, "cuda": torch.version.cuda, "cpu": torch.backends.cpu.get_cpu_capability()}


_USED = {  # packages that import their parts only when these are used
    "diffusers": lambda diffusers: diffusers.DiffusionPipeline,
    "transformers": lambda transformers: transformers.CLIPTextModel,
}


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
