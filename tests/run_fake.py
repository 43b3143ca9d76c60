"""A driver process over the fake model, for tests that kill it: ``python -m tests.run_fake OUT local|ray [JSON of sections]``."""

import json
import sys
from functools import partial
from pathlib import Path

from jobs.run import run
from tests.fakes import LOADER, fake_job


def main() -> int:
    out, kind = Path(sys.argv[1]), sys.argv[2]
    sections = {"executor": {"kind": kind, "actors": 2}}
    for name, value in json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}").items():
        sections[name] = sections.get(name, {}) | value
    said = partial(print, flush=True)
    return run(fake_job(out.parent, **sections), out=out, model_loader=LOADER, on_message=said).exit_code


if __name__ == "__main__":
    sys.exit(main())
