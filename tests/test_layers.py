"""Imports go downward only: schemas <- pipeline <- jobs <- tests; each heavy package has its one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("schemas", "pipeline", "jobs", "tests")
DOORS = {  # package -> places that may import it
    "ray": ("jobs/ray_pool.py", "jobs/ray_loans.py", "jobs/ray_nodes.py", "jobs/ray_metrics.py", "jobs/submit.py"),
    "diffusers": ("pipeline/models/",),
    "open_clip": ("pipeline/scorers/", "pipeline/models/demo/"),
    "nudenet": ("pipeline/scorers/nudenet.py",),
    "torch": ("pipeline/models/", "pipeline/scorers/"),
    "duckdb": ("jobs/query.py", "jobs/query/", "jobs/expression.py", "jobs/rows.py", "jobs/status.py"),
}
STAGES = ("prompts", "sample", "filter", "encode", "write")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return [path for layer in LAYERS[:3] for path in sorted((ROOT / layer).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_no_higher_layer_and_uses_the_doors(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    own = LAYERS.index(name.split("/")[0])
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in LAYERS[own + 1 :], f"{name} imports {module}"
        assert top not in DOORS or name.startswith(DOORS[top]), f"{name} imports {module}; only {DOORS[top]} may"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    others = {f"pipeline.{other}" for other in STAGES if other != stage}
    assert not others & set(imports(ROOT / "pipeline" / f"{stage}.py"))


@pytest.mark.parametrize(
    "module",
    [
        "jobs.cli",
        "jobs.export",
        "jobs.filter",
        "jobs.models",
        "jobs.opened",
        "jobs.prepare",
        "jobs.query",
        "jobs.report",
        "jobs.run",
        "jobs.run_dir",
        "jobs.serve",
        "jobs.status",
        "jobs.verify",
    ],
)
def test_reading_a_run_needs_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'open_clip') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_query_does_without_pydantic() -> None:
    """A third of its start."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys, jobs.query; print('pydantic' in sys.modules)"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == "False"
