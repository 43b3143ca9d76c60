"""From a configuration file to a job that is known to be possible: everything that can be refused early is refused here."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.run_dir import JobRecord, make_job
from pipeline.expansion import Answers, expanded, key
from pipeline.models.resolve import ModelCard, check_sampling, image_size, resolve_model
from pipeline.plan import expand
from pipeline.prompts import read_prompts
from pipeline.scorers.resolve import ScorerCard, resolve_scorer
from pipeline.store import is_url
from schemas.config import JobConfig, SamplingConfig, in_folder
from schemas.config_load import load
from schemas.errors import PromptError
from schemas.records import Draw, Prompt

RECORDED = ("promptmill", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A validated job: its configuration and what its model and scorers were resolved to.

    ``answers`` are what ``prompts.expand`` was told so far; a prompt without one stands for those that are to come. ``prompts``,
    if they are given, are drawn in the place of those of the source.
    """

    name: str
    config: JobConfig
    base_dir: Path
    model: ModelCard
    scorers: tuple[ScorerCard, ...]
    answers: Answers = field(default_factory=dict, repr=False)
    prompts: tuple[Prompt, ...] | None = field(default=None, repr=False)

    @property
    def out(self) -> str:
        """The run folder, a path or a URL, unless the command line names another."""
        folder = self.config.output.dir or f"runs/{self.name}"
        return folder if is_url(folder) else str(in_folder(Path(), folder))

    def open_prompts(self) -> Iterator[Prompt]:
        """The prompts, from the start. Raises UserError at one that cannot be drawn."""
        if self.prompts is not None:
            return iter(self.prompts)
        expand = self.config.prompts.expand
        return expanded(self._source(), expand, self.answers) if expand else self._source()

    def unasked(self) -> Iterator[Prompt]:
        """Prompts of the source that ``prompts.expand`` has no answer to. Raises UserError as ``open_prompts``."""
        if expand := self.config.prompts.expand:
            yield from (prompt for prompt in self._source() if key(expand, prompt) not in self.answers)

    def _source(self) -> Iterator[Prompt]:
        sampling, reference = self.config.sampling, self.config.model.ip_adapter is not None
        for prompt in read_prompts(self.config.prompts, base_dir=self.base_dir, mode=sampling.mode, reference=reference):
            if twice := sampling.sweep.keys() & prompt.sampling.keys():
                name = min(twice)
                raise PromptError(f"prompt {prompt.id}: sets {name}, and sampling.sweep has {name} too; take one of them out")
            if prompt.sampling or prompt.negative or self.model.input_scale > 1:
                for setting in self.settings(prompt):
                    check_sampling(self.model, setting, f"prompt {prompt.id}: ")
            yield prompt

    def expand(self, prompt: Prompt, numbers: range | None = None) -> Iterator[Draw]:
        """The draws of one prompt: the first ones, or those of the given numbers."""
        card = self.model
        return expand(
            prompt,
            self.config,
            self.settings(prompt),
            model=card.name,
            revision=card.revision + self.config.model.compute.seen,
            loras=tuple(lora.label for lora in card.addons.loras),
            input_scale=card.input_scale,
            numbers=numbers,
        )

    def settings(self, prompt: Prompt) -> list[SamplingConfig]:
        """How a prompt is drawn: each setting of the sweep, with what the prompt sets for itself, its size known."""
        found = []
        for sampling in self.config.sampling.settings():
            width, height = image_size(self.model, sampling, prompt)
            own = prompt.sampling if prompt.negative is None else {**prompt.sampling, "negative_prompt": prompt.negative}
            found.append(sampling.model_copy(update={**own, "width": width, "height": height}))
        return found

    def job(self) -> JobRecord:
        """What ``job.yaml`` records."""
        return make_job(self.config, self.base_dir, self.model, list(self.scorers), versions())


def prepare(config_path: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """Load a configuration and resolve its model and scorers, without torch. Raises UserError."""
    config = load(config_path, overrides)
    base_dir = Path(config_path).resolve().parent
    model = resolve_model(config.model, base_dir=base_dir, mode=config.sampling.mode)
    for sampling in config.sampling.settings():
        check_sampling(model, sampling)
    scorers = tuple(resolve_scorer(name, scorer, base_dir=base_dir) for name, scorer in config.scorers.items())
    return Prepared(name=Path(config_path).stem, config=config, base_dir=base_dir, model=model, scorers=scorers)


def versions() -> dict[str, str]:
    """Versions of the packages that can change an image or a file."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
