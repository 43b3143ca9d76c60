"""The docs say what the code does: generated pages are fresh, links lead somewhere, example jobs parse and plan."""

import re
from pathlib import Path

import click
import pytest

from jobs.cli import cli
from pipeline.models import samplers
from schemas.config_load import load
from tests.conftest import REPOSITORY
from tests.make_docs import DOCS, pages

MARKDOWN = [path for path in REPOSITORY.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)]


@pytest.mark.parametrize(("name", "text"), pages().items())
def test_generated_pages_are_fresh(name: str, text: str) -> None:
    assert (DOCS / name).read_text() == text, "run: make docs"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), f"{path}: {target}"


def test_the_readme_names_every_command_and_no_other() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert set(re.findall(r"^\| `promptmill (\w+)", readme, re.M)) == set(cli.commands)


@pytest.mark.parametrize(
    "path", sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml") if p.parent.name != "cluster"), ids=lambda path: path.name
)
def test_every_example_job_parses_with_a_sampler_that_exists(path: Path) -> None:
    config = load(path)
    assert config.sampling.scheduler == "default" or config.sampling.scheduler in samplers.SAMPLERS


def test_every_command_explains_itself() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option)), name
