"""``promptmill models``: kinds of models, modes and samplers, and which of them this installation can run.

Imports neither torch nor diffusers.
"""

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from pipeline.models.families import FAMILIES, FOR_ONE_MODE, MORE_MODES, SERVER, Family, more_modes
from pipeline.models.folder import diffusers_has
from pipeline.models.samplers import SAMPLERS
from schemas.modes import INPUTS, MODES, Mode, column

_BROKEN = {"image-to-image": "image-to-\nimage", "inpainting": "inpainting,\noutpainting", "image-prompt": "image-\nprompt"}


def listing() -> dict[str, list[dict[str, Any]]]:
    """All tables as JSON values; ``runs_here`` says whether the installed diffusers has the class."""
    samplers = [
        {
            "name": name,
            "scheduler": one.scheduler,
            "fits": sorted(one.fits),
            "adds_noise": one.stochastic,
            "runs_here": diffusers_has(one.scheduler),
        }
        for name, one in SAMPLERS.items()
    ]
    modes = [{"name": mode, "columns": [column(role) for role in INPUTS[mode]]} for mode in MODES]
    return {"families": [_facts(one) for one in (*FAMILIES, *FOR_ONE_MODE)], "modes": modes, "samplers": samplers}


def _facts(one: Family) -> dict[str, Any]:
    return {
        "name": one.name,
        "pipeline": one.pipeline,
        "predicts": list(one.predicts),
        "modes": [{"name": mode, "pipeline": pipeline, "runs_here": diffusers_has(pipeline)} for mode, pipeline in one.modes.items()],
        "samplers": ["default", *one.samplers],
        "checkpoints": [{"id": name, "licence": licence} for name, licence in one.checkpoints],
        "note": one.note,
        "runs_here": one.installed,
    }


def models_table() -> RenderableType:
    """All tables for people."""
    kinds = _with_examples("kind", "predicts")
    for one in FAMILIES:
        kinds.add_row(escape(one.name), ", ".join(one.predicts), _yes(one.installed), _example(one))
    kinds.add_row(SERVER, "", "yes", "model.endpoint.url")
    one_mode = _with_examples("for one mode", "mode")
    for one in FOR_ONE_MODE:
        one_mode.add_row(escape(one.name), ", ".join(one.modes), _yes(one.installed), _example(one))
    found = listing()
    samplers = Table("sampler", "fits models that predict", "adds noise", "runs here", box=None)
    for one in found["samplers"]:
        samplers.add_row(one["name"], ", ".join(one["fits"]), _yes(one["adds_noise"]), _yes(one["runs_here"]))
    return Group(kinds, "", _modes_table(), "", one_mode, "", samplers)


def _modes_table() -> Table:
    """What the kinds do besides text-to-image; inpainting and outpainting, which go together, in one column."""
    shown: list[Mode] = [mode for mode in MORE_MODES if mode != "outpainting"]
    table = Table("besides text-to-image", box=None)
    for mode in shown:
        table.add_column(_BROKEN.get(mode, mode), max_width=11)
    for name, cells in more_modes(here=True):
        of = dict(zip(MORE_MODES, cells, strict=True))
        table.add_row(escape(name), *(of[mode] for mode in shown))
    return table


def _with_examples(kind: str, what: str) -> Table:
    """Columns narrow enough that names of the hub stay in one piece where there is room."""
    table = Table(kind, box=None)
    table.add_column(what, max_width=16)
    table.add_column("runs\nhere")
    table.add_column("for example", overflow="fold")
    return table


def _example(one: Family) -> str:
    return one.checkpoints[0][0] if one.checkpoints else one.pipeline


def _yes(value: bool) -> str:
    return "yes" if value else "no"
