"""What a filter's threshold does to training data: `python -m tests.benchmarks.thresholds FOLDER [--write]`.

Makes a run of the demo model in FOLDER (1,600 images, 5 minutes of two idle cores; an interrupted one goes on), and 2,000 fresh drawings
to judge it by. Prints a Markdown table, and with `--write` puts it into docs/evaluate.md.
"""

import argparse
from itertools import count, islice
from pathlib import Path

import yaml
from PIL import Image

from jobs.evaluate import Evaluation, Row, evaluate
from jobs.filter import filter_run
from jobs.prepare import prepare
from jobs.query import query
from jobs.run import run
from pipeline.models.demo import grammar
from pipeline.models.demo.render import render
from tests.benchmarks.page import EVALUATE, fill

GUIDANCE = (1, 2)
THRESHOLDS = (None, 0.30, 0.32, 0.34, 0.348, 0.36, 0.37, 0.38)
LEARNED_FROM = 100
DRAWN = 2000
COLOURS = [colour for colour in grammar.COLOURS if colour not in grammar.BACKGROUNDS]
HEAD = ("guidance", "clip min", "kept", "accuracy on shape", "coverage", "Fréchet distance", "kernel distance", "Vendi score")
CONFIG = {
    "prompts": {
        "template": "a {size} {colour} {shape} on a {background} background",
        "variables": {
            "shape": list(grammar.SHAPES),
            "colour": list(COLOURS),
            "size": list(grammar.SIZES),
            "background": list(grammar.BACKGROUNDS),
        },
        "label": "shape",
        "per_label": 50,
        "draws_per_prompt": 2,
    },
    "model": {"id": "demo", "dtype": "bfloat16"},
    "sampling": {"scheduler": "dpm++_2m", "steps": 24, "batch_size": 16, "sweep": {"guidance_scale": list(GUIDANCE)}},
    "scorers": {"clip": "demo"},
}


def rows(folder: Path) -> list[str]:
    """A line per guidance and threshold."""
    (folder / "thresholds.yaml").write_text(yaml.safe_dump(CONFIG))
    run(prepare(folder / "thresholds.yaml"), out=folder / "run", on_message=print)
    _write_drawings(folder / "drawn")
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    judged: dict[float | None, dict[int, Evaluation]] = {}
    for threshold in THRESHOLDS:
        filter_run(str(folder / "run"), [f"filter.rules={[] if threshold is None else [{'score': 'clip', 'min': threshold}]}"])
        judged[threshold] = {guidance: _evaluate(folder, guidance) for guidance in GUIDANCE}
    for guidance in GUIDANCE:
        for threshold in THRESHOLDS:
            lines += [_line(folder, guidance, threshold, judged[threshold][guidance].rows[1])]
    real = judged[None][GUIDANCE[0]].rows[0]
    return [*lines, _formatted("real drawings", "", "", real)]


def _write_drawings(folder: Path) -> None:
    """Fresh drawings of the run's colours, a folder per shape."""
    found = (grammar.drawing("test", index, kind="one") for index in count())
    for number, (scene, seed) in enumerate(islice((one for one in found if one[0].columns()["colour"] in COLOURS), DRAWN)):
        path = folder / scene.columns()["shape"] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene, seed)).save(path)


def _evaluate(folder: Path, guidance: int) -> Evaluation:
    return evaluate(folder / "run", folder / "drawn", where=f"guidance_scale = {guidance}", limit=LEARNED_FROM)


def _line(folder: Path, guidance: int, threshold: float | None, row: Row) -> str:
    kept = f"avg((clip_score >= {threshold})::int)" if threshold else "1.0"
    share = query([str(folder / "run")], f"select {kept} s from metadata where guidance_scale = {guidance}")["s"][0].as_py()
    return _formatted(str(guidance), "none" if threshold is None else f"{threshold:g}", f"{share:.0%}", row)


def _formatted(guidance: str, threshold: str, kept: str, row: Row) -> str:
    accuracy = f"{row.accuracy:.1%} ± {row.spread or 0:.1%}"
    figures = (f"{row.coverage:.0%}", f"{row.frechet_distance:.3f}", f"{row.kernel_distance:.3f}", f"{row.vendi:.1f}")
    return "| " + " | ".join((guidance, threshold, kept, accuracy, *figures)) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found = ["\n".join(rows(args.folder))]
    print(found[0])
    if args.write:
        fill("thresholds", found, page=EVALUATE)
