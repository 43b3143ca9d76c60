"""Prompts to draws to fixed shards, streamed. What is planned here never depends on workers or timing.

The plan is a pure function of the configuration, the model and the prompts. More prompts at the end of the
source extend it: only the last shard, if it was short, changes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, product

import numpy as np

from pipeline.plan_files import PlanReader, draws_digest, read_index, read_shard, write_index, write_shards
from pipeline.store import Store
from schemas import layout
from schemas.config import JobConfig, SamplingConfig
from schemas.errors import PromptError
from schemas.modes import ROLES, SCALED, STRENGTH
from schemas.records import Draw, PlanIndex, Prompt, Shard
from schemas.seeds import noise_seed

__all__ = ["PlanReader", "add_round", "batches", "cut", "draws_digest", "expand", "read_index", "read_shard", "survey", "write_plan"]

OpenPrompts = Callable[[], Iterator[Prompt]]
ExpandPrompt = Callable[[Prompt], Iterator[Draw]]


def expand(
    prompt: Prompt,
    config: JobConfig,
    settings: Sequence[SamplingConfig],
    *,
    model: str,
    revision: str,
    loras: tuple[str, ...] = (),
    input_scale: int = 1,
    numbers: range | None = None,
) -> Iterator[Draw]:
    """The draws of one prompt. The settings of a sweep start from the same noise, so that they can be compared.

    ``settings`` name their width and height; ``input_scale`` is how much larger these are than the init image;
    ``loras`` are the model's, as name@scale; ``numbers`` those of the draws of each setting, the first ones if not given.
    """
    each = config.prompts.draws_per_prompt
    wanted = range(each) if numbers is None else numbers
    sha256 = {role: image.sha256 for role, image in prompt.images.items()}
    for (place, sampling), number in product(enumerate(settings), wanted):
        assert sampling.width is not None
        assert sampling.height is not None
        yield Draw(
            prompt_id=prompt.id,
            draw_index=place * each + number,
            prompt=prompt.text,
            negative_prompt=sampling.negative_prompt if prompt.negative is None else prompt.negative,
            label=prompt.label,
            tags=prompt.tags,
            mode=sampling.mode,
            model=model,
            model_revision=revision,
            loras=loras,
            scheduler=sampling.scheduler,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            true_cfg_scale=sampling.true_cfg_scale if sampling.true_cfg_scale > 1 else None,
            guidance_rescale=sampling.guidance_rescale or None,
            guidance_interval=_part_of_the_steps(sampling),
            prompt_weighting=sampling.prompt_weighting or None,
            strength=sampling.strength or STRENGTH.get(sampling.mode),
            width=sampling.width,
            height=sampling.height,
            seed=noise_seed(config.seed, prompt.id, number),
            dtype=config.model.dtype,
            init_sha256=sha256.get("init"),
            mask_sha256=sha256.get("mask"),
            control_sha256=sha256.get("control"),
            reference_sha256=sha256.get("reference"),
            control_scale=sampling.control_scale if sampling.mode in SCALED else None,
            reference_scale=sampling.reference_scale if "reference" in sha256 and sampling.mode != "image-prompt" else None,
            input_transform=_input_transform(sampling, input_scale),
        )


def _part_of_the_steps(sampling: SamplingConfig) -> tuple[float, float] | None:
    """The guidance interval, None where it is all of the steps."""
    start, stop = sampling.guidance_interval or (0.0, 1.0)
    return None if (start, stop) == (0.0, 1.0) else (start, stop)


def _input_transform(sampling: SamplingConfig, input_scale: int) -> str | None:
    """What is made of the input image, in the words of ``pipeline.inputs.conditions``."""
    if margins := sampling.margins:
        return f"margins {margins.left} {margins.top} {margins.right} {margins.bottom}"
    if sampling.canny:
        return f"canny {sampling.canny.low} {sampling.canny.high}"
    return f"downscale {input_scale}" if input_scale > 1 else None


def cut(draws_of_prompts: Iterable[Sequence[Draw]], shard_size: int, batch_size: int, *, first: int = 0) -> Iterator[Shard]:
    """Shards of at most ``shard_size`` draws, numbered from ``first``, that leave as few places of their batches empty as may be.

    A prompt is kept whole unless it alone is larger than a shard.
    """
    shard_id, pending, ends = first, [], []  # ends: places at which a prompt ends
    for draws in draws_of_prompts:
        pending.extend(draws)
        ends.append(len(pending))
        while len(pending) >= shard_size:
            end = _fullest(pending, ends, shard_size, batch_size)
            yield Shard(shard_id=shard_id, draws=tuple(pending[:end]))
            shard_id, pending, ends = shard_id + 1, pending[end:], [place - end for place in ends if place > end]
    if pending:
        yield Shard(shard_id=shard_id, draws=tuple(pending))


def _fullest(draws: Sequence[Draw], ends: Sequence[int], shard_size: int, batch_size: int) -> int:
    """The end of a prompt in the second half of a shard by which the batches are fullest; the last of several.

    Where there is none, the last one before it.
    """
    places = [end for end in ends if end <= shard_size]
    if len(places) < len(ends) and ends[len(places)] - (places[-1] if places else 0) > shard_size:
        places.append(shard_size)  # in a prompt that is too large to be kept whole
    calls, of_key, draws_per_call = 0, Counter[tuple[object, ...]](), [0.0]
    for number, draw in enumerate(draws[:shard_size], 1):
        calls += of_key[draw.call_key] % batch_size == 0
        of_key[draw.call_key] += 1
        draws_per_call.append(number / calls)
    return max([end for end in places if 2 * end >= shard_size] or places[-1:], key=lambda end: (draws_per_call[end], end))


def batches(draws: Sequence[Draw], batch_size: int) -> list[tuple[Draw, ...]]:
    """The calls of the sampler for one shard: draws that share a call key, in order, at most ``batch_size``."""
    groups: dict[tuple[object, ...], list[Draw]] = {}
    for draw in draws:
        groups.setdefault(draw.call_key, []).append(draw)
    return [tuple(group[i : i + batch_size]) for group in groups.values() for i in range(0, len(group), batch_size)]


def survey(store: Store, open_prompts: OpenPrompts) -> PlanIndex | None:
    """Read all prompts once and write nothing: the old plan if it still holds, None if one must be written.

    Raises PromptError if a row is not a prompt, if two prompts share an id, or if prompts that were planned
    before have changed; appended ones are welcome.
    """
    old = read_index(store)
    digest = _PromptDigest()
    for prompt in open_prompts():
        if old is not None and digest.count == old.num_prompts and digest.hexdigest() != old.prompts_sha256:
            break
        digest.add(prompt)
    if old is not None and digest.count <= old.num_prompts and digest.hexdigest() != old.prompts_sha256:
        raise PromptError(_difference(old, open_prompts, store))
    _refuse_repeated_ids(digest, open_prompts)
    if old is not None and old.rounds > 1 and digest.count > old.num_prompts:
        raise PromptError(
            f"{store.root}: further draws were planned for prompts.until_accepted, so prompts can no longer be appended;"
            " take them out, or choose another --out"
        )
    return old if old is not None and digest.count == old.num_prompts else None


def write_plan(store: Store, open_prompts: OpenPrompts, expand_prompt: ExpandPrompt, shard_size: int, batch_size: int) -> PlanIndex:
    """Write the plan of all prompts and copies of their images; what was planned before comes out the same. The index is written last."""
    digest = _PromptDigest()

    def draws_of_prompts() -> Iterator[list[Draw]]:
        for prompt in open_prompts():
            digest.add(prompt)
            for image in prompt.images.values():
                if not store.exists(layout.input_file(image.sha256)):
                    store.put(layout.input_file(image.sha256), image.data)
            yield list(expand_prompt(prompt))

    digests, num_draws = write_shards(store, cut(draws_of_prompts(), shard_size, batch_size))
    index = PlanIndex(num_prompts=digest.count, num_draws=num_draws, prompts_sha256=digest.hexdigest(), shards=tuple(digests))
    write_index(store, index)
    return index


def add_round(store: Store, index: PlanIndex, open_prompts: OpenPrompts, more: ExpandPrompt, shard_size: int, batch_size: int) -> PlanIndex:
    """Add the draws that ``more`` gives of each prompt at the end of a plan, in shards of their own. The index is written last."""
    draws_of_prompts = (draws for prompt in open_prompts() if (draws := list(more(prompt))))
    in_last_file, reader = index.num_shards % layout.SHARDS_PER_PLAN_FILE, PlanReader(store)
    old = [reader.shard(shard_id) for shard_id in range(index.num_shards - in_last_file, index.num_shards)]
    digests, num_draws = write_shards(store, chain(old, cut(draws_of_prompts, shard_size, batch_size, first=index.num_shards)))
    longer = replace(
        index,
        num_draws=index.num_draws + num_draws - sum(len(shard.draws) for shard in old),
        shards=index.shards + tuple(digests[in_last_file:]),
        rounds=index.rounds + 1,
    )
    write_index(store, longer)
    return longer


class _PromptDigest:
    """Running digest of the prompts seen, and of their ids for the duplicate check."""

    def __init__(self) -> None:
        self.count = 0
        self._all = hashlib.sha256()
        self._ids: list[np.ndarray] = []
        self._block: list[int] = []

    def add(self, prompt: Prompt) -> None:
        self._all.update(json.dumps(prompt.facts(), sort_keys=True).encode() + b"\n")
        self._block.append(_id_digest(prompt))
        if len(self._block) >= 65536:
            self._ids.append(np.array(self._block, dtype=np.uint64))
            self._block = []
        self.count += 1

    def hexdigest(self) -> str:
        return self._all.hexdigest()

    def repeated_ids(self) -> set[int]:
        """Digests of ids that occur more than once. 8 bytes of memory per prompt."""
        values, counts = np.unique(np.concatenate([*self._ids, np.array(self._block, dtype=np.uint64)]), return_counts=True)
        return {int(value) for value in values[counts > 1]}


def _id_digest(prompt: Prompt) -> int:
    return int.from_bytes(hashlib.sha256(prompt.id.encode()).digest()[:8], "big")


def _difference(old: PlanIndex, open_prompts: OpenPrompts, store: Store) -> str:
    """Where the prompts first differ from those that were planned."""
    remedy = "prompts may only be appended to a started run; put the old ones back, or choose another --out"
    reader = PlanReader(store)
    planned = (draw for shard_id in range(old.num_shards) for draw in reader.shard(shard_id).draws if draw.draw_index == 0)
    found = 0
    for prompt, draw in zip(open_prompts(), planned, strict=False):
        if (prompt.id, prompt.text, prompt.label, dict(prompt.tags)) != (draw.prompt_id, draw.prompt, draw.label, dict(draw.tags)):
            was, now = _shown(draw.prompt_id, draw.prompt), _shown(prompt.id, prompt.text)
            return f"{store.root}: prompt {found} (from 0) was {was} and is now {now}; {remedy}"
        planned_images = {role: sha for role in ROLES if (sha := getattr(draw, f"{role}_sha256"))}
        if planned_images != {role: image.sha256 for role, image in prompt.images.items()}:
            return f"{store.root}: the input images of prompt {found} (from 0, id {prompt.id}) have changed; {remedy}"
        found += 1
    if found < old.num_prompts:
        return f"{store.root}: was planned with {old.num_prompts} prompts, the source now ends after {found}; {remedy}"
    return f"{store.root}: the negative prompts or the settings of single prompts have changed since the run was planned; {remedy}"


def _shown(prompt_id: str, text: str) -> str:
    return f"{prompt_id} {text[:40] + '…' if len(text) > 40 else text!r}"


def _refuse_repeated_ids(digest: _PromptDigest, open_prompts: OpenPrompts) -> None:
    repeated = digest.repeated_ids()
    if not repeated:
        return
    first_row: dict[str, int] = {}
    for row, prompt in enumerate(open_prompts()):
        if _id_digest(prompt) not in repeated:
            continue
        if prompt.id in first_row:
            raise PromptError(
                f"prompt id {prompt.id!r} stands at prompts {first_row[prompt.id]} and {row} (from 0);"
                " give each its own id, or drop the id column"
            )
        first_row[prompt.id] = row
