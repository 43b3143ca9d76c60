"""Prompt templates: texts with slots, over all combinations of their values or over sampled ones.

The syntax is that of dynamicprompts where the two meet, and the value of every slot is kept as a tag::

    a {size} {red|blue} circle on __ground__, with {2$$ and $$stars|dots|lines}

``{size}`` is a variable of ``prompts.variables``; ``{red|blue}`` a variant; ``{2$$a|b|c}`` two of three, joined by
``, `` or by the text between a second pair of ``$$``; ``{1-2$$a|b}`` one or two of them; ``{3::red|blue}`` weighs
red three times as much when combinations are sampled; ``__ground__`` is a line of ``ground.txt``. ``{{`` and ``}}``
are braces.
"""

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from schemas.config import PROMPT_COLUMNS, PromptsConfig, ValueConfig, in_folder
from schemas.errors import PromptError

_TOKEN = re.compile(r"\{\{|\}\}|\{(?P<slot>[^{}]*)\}|__(?P<file>[A-Za-z0-9_/-]+?)__|[{}]")
_COUNTED = re.compile(r"(?P<low>\d+)(?:-(?P<high>\d+))?\$\$(?:(?P<joint>[^|]*?)\$\$)?(?P<rest>.*)", re.DOTALL)
_WEIGHTED = re.compile(r"\s*(?P<weight>\d+(?:\.\d+)?)::(?P<text>.*)", re.DOTALL)

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a slot: its text in the prompt, its label, its weight among the sampled."""

    text: str
    label: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a template that takes values. Slots of one name take the same value."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """Fixed texts and slots in turn: ``parts`` holds a text or a slot's name, marked by ``is_slot``."""

    parts: tuple[tuple[bool, str], ...]
    slots: tuple[Slot, ...]

    @property
    def num_combinations(self) -> int:
        """Prompts that it can make."""
        return math.prod(len(slot.choices) for slot in self.slots)


def template_rows(config: PromptsConfig, *, base_dir: Path) -> Iterator[tuple[int, Row]]:
    """Numbered rows with prompt, label and a column per slot; all combinations in order, or ``config.sample`` of them.

    Memory is bounded by the lists of values. Raises PromptError on a template that is not right, a variable or
    wildcard file that is missing, or more prompts than ``config.max_prompts``.
    """
    texts = [config.template] if isinstance(config.template, str) else list(config.template or ())
    templates = [parse(text, config, base_dir) for text in texts]
    used = {slot.name for template in templates for slot in template.slots}
    unused = [name for name in config.variables if name not in used]
    if unused:
        raise PromptError(f"prompts.variables: no template uses {unused[0]!r}; write {{{unused[0]}}} in one, or take it out")
    for template in templates:
        if config.label is not None and config.label not in [slot.name for slot in template.slots]:
            names = ", ".join(slot.name for slot in template.slots) or "none"
            raise PromptError(f"prompts.label: a template has no slot {config.label!r}; its slots are: {names}")
    _refuse_explosion(templates, config)
    combos = _all(templates) if config.sample is None and config.per_label is None else _sampled(templates, config)
    return enumerate(_row(template, values, config.label) for template, values in combos)


def parse(text: str, config: PromptsConfig, base_dir: Path) -> Template:
    """A template from its text."""
    parts: list[tuple[bool, str]] = []
    slots: dict[str, Slot] = {}
    end = variants = 0
    for found in _TOKEN.finditer(text):
        parts.append((False, text[end : found.start()]))
        end = found.end()
        where = f"prompts.template: {text[:60]!r}, character {found.start() + 1}"
        if found.group() in ("{{", "}}"):
            parts.append((False, found.group()[0]))
            continue
        if found["file"]:
            slot = Slot(found["file"], _wildcard(found["file"], config, base_dir, where))
        elif found["slot"] is None:
            raise PromptError(f"{where}: {found.group()!r} has no partner, or lies in another slot; write {{{{ or }}}} for a brace itself")
        elif "|" in found["slot"] or "$$" in found["slot"]:
            variants += 1
            slot = Slot(f"variant_{variants}", _variant(found["slot"], where))
        else:
            slot = Slot(found["slot"].strip(), _variable(found["slot"].strip(), config, where))
        if slots.setdefault(slot.name, slot) != slot or slot.name in PROMPT_COLUMNS:
            raise PromptError(f"{where}: the name {slot.name!r} is taken; call the variable or the wildcard file otherwise")
        parts.append((True, slot.name))
    parts.append((False, text[end:]))
    return Template(tuple(part for part in parts if part[0] or part[1]), tuple(slots.values()))


def _variable(name: str, config: PromptsConfig, where: str) -> tuple[Choice, ...]:
    values = config.variables.get(name)
    if values is None:
        known = ", ".join(config.variables) or "none"
        raise PromptError(f"{where}: the variable {name!r} is not defined; add it to prompts.variables (there are: {known})")
    return tuple(_choice(value) for value in values)


def _choice(value: str | int | float | ValueConfig) -> Choice:
    if isinstance(value, ValueConfig):
        return Choice(value.text, value.label if value.label is not None else value.text, value.weight)
    return Choice(str(value), str(value))


def _variant(body: str, where: str) -> tuple[Choice, ...]:
    counted = _COUNTED.fullmatch(body)
    choices = [_weighted(option) for option in (counted["rest"] if counted else body).split("|")]
    if counted is None:
        return tuple(choices)
    low, high = int(counted["low"]), int(counted["high"] or counted["low"])
    if not 0 <= low <= high <= len(choices):
        raise PromptError(f"{where}: {low}-{high} of {len(choices)} values cannot be taken; correct the number before $$")
    num = sum(math.comb(len(choices), count) for count in range(low, high + 1))
    if num > 100_000:
        raise PromptError(f"{where}: the variant has {num:,} combinations, more than 100,000; take fewer values")
    joint = ", " if counted["joint"] is None else counted["joint"]
    taken = (group for count in range(low, high + 1) for group in combinations(choices, count))
    return tuple(_joined(group, joint) for group in taken)


def _weighted(option: str) -> Choice:
    found = _WEIGHTED.fullmatch(option)
    text = found["text"] if found else option
    return Choice(text, text, float(found["weight"]) if found else 1.0)


def _joined(group: Sequence[Choice], joint: str) -> Choice:
    text = joint.join(choice.text for choice in group)
    return Choice(text, text, math.prod(choice.weight for choice in group))


def _wildcard(name: str, config: PromptsConfig, base_dir: Path, where: str) -> tuple[Choice, ...]:
    path = in_folder(base_dir, config.wildcards) / f"{name}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise PromptError(f"{where}: there is no wildcard file {path}; make it, a value per line, or set prompts.wildcards") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__}); mend it") from None
    values = tuple(_weighted(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not values:
        raise PromptError(f"{path}: holds no values; write one per line")
    return values


def _refuse_explosion(templates: Sequence[Template], config: PromptsConfig) -> None:
    if config.sample is not None:
        count, made = config.sample, "prompts.sample asks for"
    elif config.per_label is not None:
        labels = {choice.label for template in templates for slot in template.slots if slot.name == config.label for choice in slot.choices}
        count, made = config.per_label * len(labels), "prompts.per_label asks for"
    else:
        count, made = sum(template.num_combinations for template in templates), "the combinations make"
    if count > config.max_prompts:
        raise PromptError(
            f"prompts.template: {made} {_shown(count)} prompts, more than prompts.max_prompts ({config.max_prompts:,});"
            " raise it if you mean that, or set prompts.sample"
        )


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**18 else f"some 10^{int(math.log10(count))}"


def _all(templates: Sequence[Template]) -> Iterator[tuple[Template, tuple[Choice, ...]]]:
    for template in templates:
        for values in product(*(slot.choices for slot in template.slots)):
            yield template, values


def _sampled(templates: Sequence[Template], config: PromptsConfig) -> Iterator[tuple[Template, tuple[Choice, ...]]]:
    """Combinations drawn by weight, with replacement. Each depends on its number alone, so a larger sample begins with a smaller one."""
    if config.per_label is None:
        for number in range(config.sample or 0):
            template = templates[number % len(templates)]
            rng = _rng(config.sample_seed, str(number))
            yield template, tuple(_pick(slot.choices, rng) for slot in template.slots)
        return
    for number in range(config.per_label):
        template = templates[number % len(templates)]
        at = [slot.name for slot in template.slots].index(config.label or "")
        for label in dict.fromkeys(choice.label for choice in template.slots[at].choices):
            rng = _rng(config.sample_seed, f"{number}/{label}")
            own = tuple(choice for choice in template.slots[at].choices if choice.label == label)
            yield template, tuple(_pick(own if index == at else slot.choices, rng) for index, slot in enumerate(template.slots))


def _rng(seed: int, key: str) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256(f"promptmill.template.v1\0{seed}\0{key}".encode()).digest()[:8], "big"))


def _pick(choices: Sequence[Choice], rng: random.Random) -> Choice:
    """One value by weight, spelled out because the standard library does not promise its own choice for ever."""
    aim = rng.random() * math.fsum(choice.weight for choice in choices)
    for choice in choices:
        aim -= choice.weight
        if aim < 0:
            return choice
    return choices[-1]


def _row(template: Template, values: Sequence[Choice], label: str | None) -> Row:
    chosen = {slot.name: value for slot, value in zip(template.slots, values, strict=True)}
    text = "".join(chosen[part].text if is_slot else part for is_slot, part in template.parts)
    row: Row = {name: value.text for name, value in chosen.items()}
    return row | {"prompt": text, "label": chosen[label].label if label else None}
