"""docs/models.md, from the table of families."""

from collections.abc import Sequence

from pipeline.models.families import FAMILIES, FOR_ONE_MODE, MORE_MODES, Family, more_modes

_PAGE = """# Models

Generated from `pipeline/models/families.py`; `promptmill models` prints it with what this installation can run. `model.id`
takes a hub name or a folder of any pipeline of diffusers that makes images from text: what a pipeline takes is read from
its signature, and what it does not take is refused. The kinds below run in the tests, each as a tiny model from a YAML
file: an image depends on no neighbour, two seeds differ, prompt, negative prompt and guidance count where the model has
them, and `promptmill verify --regenerate` makes the same bytes.

"""
_MODES = """## Modes

What a folder can do besides text-to-image; a mode that is not here is refused before anything is loaded, with those that are.
What the modes are: [modes.md](modes.md). Kinds that do image-prompt take an image as a prompt
[beside the other modes](modes.md#an-image-as-a-prompt) too.

"""
_FOR_ONE_MODE = """## For one mode

Folders that were made for one mode, and serve no other.

"""
_REST = """Which samplers fit a prediction: [samplers.md](samplers.md). Servers that draw (DALL-E 3, gpt-image, vLLM-Omni, SGLang):\
 [endpoints.md](endpoints.md). Jobs to start from: [configs/models](../configs/models).
"""


def models_page() -> str:
    """docs/models.md."""
    heads = ("kind", "pipeline of diffusers", "predicts", "checkpoints (licence)", "notes")
    kinds = [(one.name, one.pipeline, ", ".join(one.predicts), _checkpoints(one), one.note) for one in FAMILIES]
    one_mode = [(one.name, one.pipeline, ", ".join(one.modes), _checkpoints(one), one.note) for one in FOR_ONE_MODE]
    parts = [
        _PAGE + _table(heads, kinds),
        _MODES + _table(("kind", *MORE_MODES), [(name, *cells) for name, cells in more_modes()]),
        _FOR_ONE_MODE + _table(("kind", "pipeline of diffusers", "mode", *heads[3:]), one_mode),
        _REST,
    ]
    return "\n\n".join(parts)


def _checkpoints(one: Family) -> str:
    return "<br>".join(f"`{name}` ({licence})" for name, licence in one.checkpoints)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))
