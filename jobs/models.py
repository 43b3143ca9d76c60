"""``promptmill models``: kinds of models and samplers, and which of them this installation can run. Imports neither torch nor diffusers."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.models.families import FAMILIES
from pipeline.models.folder import diffusers_has
from pipeline.models.samplers import SAMPLERS


def listing() -> dict[str, list[dict[str, Any]]]:
    """Both tables as JSON values; ``runs_here`` says whether the installed diffusers has the class."""
    families = [
        {
            "name": one.name,
            "pipeline": one.pipeline,
            "predicts": list(one.predicts),
            "samplers": ["default", *one.samplers],
            "checkpoints": [{"id": name, "licence": licence} for name, licence in one.checkpoints],
            "note": one.note,
            "runs_here": one.installed,
        }
        for one in FAMILIES
    ]
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
    return {"families": families, "samplers": samplers}


def models_table() -> RenderableType:
    """Both tables for people."""
    found = listing()
    kinds = Table("kind", "predicts", "runs here", "for example", box=None)
    for one in found["families"]:
        example = one["checkpoints"][0]["id"] if one["checkpoints"] else one["pipeline"]
        kinds.add_row(one["name"], ", ".join(one["predicts"]), _yes(one["runs_here"]), example)
    kinds.add_row("a server (OpenAI's images API)", "", "yes", "model.endpoint.url")
    samplers = Table("sampler", "fits models that predict", "adds noise", "runs here", box=None)
    for one in found["samplers"]:
        samplers.add_row(one["name"], ", ".join(one["fits"]), _yes(one["adds_noise"]), _yes(one["runs_here"]))
    return Group(kinds, "", samplers)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
