"""Small run folders with made-up images, written by the real plan and the real writer; no model is loaded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jobs.run_dir import JobRecord, RunDir
from pipeline import plan
from pipeline.encode import encode
from pipeline.filter import judge
from pipeline.write import commit_shard
from schemas import layout
from schemas.config import JobConfig
from schemas.config_load import parse
from schemas.records import Draw, Outcome, Prompt, Verdict
from tests.fakes import sized

SIZE_PX = 16
CLIP_VERSION = "fake-clip@1"
FAILING = 4  # each draw whose prompt number is this, is out of memory
UNSCORABLE = 5  # the scorer cannot tell for this one
SUBJECTS = ("a red circle", "a blue square on grey", 'two "green" stars', "ein gelbes Dreieck, groß", "a black hole", "=HYPERLINK(1)")


def make_prompts(count: int) -> list[Prompt]:
    """Prompts with a label and two tags each; texts repeat after six."""
    return [
        Prompt(id=f"p{i}", text=SUBJECTS[i % len(SUBJECTS)], label=f"class{i % 2}", tags={"source": "made up", "number": str(i)})
        for i in range(count)
    ]


def make_config(
    *, draws_per_prompt: int = 2, shard_size: int = 4, image_format: str = "webp", scorers: Sequence[str] = ("clip",)
) -> JobConfig:
    """Configuration of a job on a model that does not exist."""
    return parse(
        {
            "prompts": {"texts": ["given by the test"], "draws_per_prompt": draws_per_prompt},
            "model": "imaginary",
            "sampling": {"steps": 4, "width": SIZE_PX, "height": SIZE_PX, "batch_size": 4},
            "scorers": {name: {"model": "demo"} for name in scorers},
            "filter": {"rules": [{"score": scorers[0], "min": 0.3}] if scorers else []},
            "output": {"shard_size": shard_size, "image_format": image_format},
        },
        "test",
    )


def make_outcome(draw: Draw, config: JobConfig) -> Outcome:
    """What a model might have made of a draw: noise from its seed; a function of the draw alone."""
    truncated = dict.fromkeys(config.scorers, False)
    common = {"draw": draw, "safety_flagged": None, "prompt_tokens": 5, "prompt_truncated": False, "batch_shape": f"4x{SIZE_PX}x{SIZE_PX}"}
    if int(draw.prompt_id[1:]) == FAILING:
        empty = {"image": None, "image_sha256": None, "phash": None, "is_blank": False, "scores": {}, "scores_truncated": truncated}
        return Outcome(**common, **empty, error="out_of_memory: 3 GB\nwere needed", attempts=3)
    encoded = encode(np.random.default_rng(draw.seed).integers(0, 256, (draw.height, draw.width, 3), dtype=np.uint8), config.output)
    score = float("nan") if int(draw.prompt_id[1:]) == UNSCORABLE else draw.seed % 1000 / 1000
    return Outcome(
        **common,
        image=encoded.data,
        image_sha256=encoded.sha256,
        phash=encoded.phash,
        is_blank=encoded.is_blank,
        scores=dict.fromkeys(config.scorers, score),
        scores_truncated=truncated,
    )


def plan_run(path: Path, *, prompts: int = 8, config: JobConfig | None = None) -> RunDir:
    """A run that was started and planned; nothing is made yet. ``prompts`` x 2 draws in shards of 4."""
    config = config or make_config()
    scorers = {name: {"name": name, "version": CLIP_VERSION} for name in config.scorers}
    model = {"name": "imaginary", "revision": "0" * 40, "folder": "imaginary"}
    settings = config.model_dump(mode="json")
    job = JobRecord(settings=settings, base_dir=str(path.parent), model=model, scorers=scorers, versions={"promptmill": "0.0.0"})
    run = RunDir.claim(path, job)
    run.begin()
    made = make_prompts(prompts)

    def expand(prompt: Prompt):
        return plan.expand(prompt, config, sized(config, SIZE_PX), model="imaginary", revision="0" * 40)

    index = plan.write_plan(run.store, lambda: iter(made), expand, config.output.shard_size, config.batch_size)
    run.log("start", draws=index.num_draws, shards=index.num_shards, shards_done=0)
    return run


def commit(run: RunDir, shard_id: int, *, outcomes: Sequence[Outcome] | None = None, worker: str = "host:1") -> list[Verdict]:
    """Make and commit one shard; ``outcomes`` instead of the usual ones, if given."""
    shard, config = run.read_shard(shard_id), run.job.config
    outcomes = outcomes if outcomes is not None else [make_outcome(draw, config) for draw in shard.draws]
    verdicts = judge(outcomes, config.filter, scorers=list(config.scorers), rankable=True)
    result = commit_shard(
        run.store,
        shard,
        outcomes,
        verdicts,
        versions={name: card["version"] for name, card in run.job.scorers.items()},
        image_format=config.output.image_format,
        draws_sha256=plan.draws_digest(shard.draws),
        seconds={"wait": 0.5, "sample": 2.0, "score": 1.0, "encode": 0.25, "judge": 0.01},
        worker=worker,
    )
    marker = json.loads(run.store.get(layout.done_file(shard_id)))
    marker["seconds"]["write"] = 0.24  # whatever it took here
    run.store.put(layout.done_file(shard_id), json.dumps(marker, indent=1).encode())
    run.log("shard_done", shard_id=shard_id, worker=worker, draws=result.draws, failed=result.failed)
    return verdicts


def finished_run(path: Path, *, prompts: int = 8, config: JobConfig | None = None) -> RunDir:
    """A whole run: 16 draws in 4 shards by default; two draws failed, two have a score that is NaN."""
    run = plan_run(path, prompts=prompts, config=config)
    for shard_id in range(run.plan.num_shards):
        commit(run, shard_id)
    run.log("finish", planned=run.plan.num_draws)
    return run


def spoiled(outcome: Outcome, data: bytes) -> Outcome:
    """The outcome with other image bytes, and a sha256 that fits them."""
    return replace(outcome, image=data, image_sha256=hashlib.sha256(data).hexdigest())


def digest_of_folder(path: Path) -> dict[str, str]:
    """sha256 of each file below a folder, by its relative name."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
