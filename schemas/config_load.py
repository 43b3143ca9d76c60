"""YAML and ``--set`` overrides to a ``JobConfig``; every mistake becomes one line that says where and what to do."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from schemas.config import FilterConfig, JobConfig, ScorerConfig, Scorers, Section
from schemas.errors import ConfigError

MAX_CONFIG_BYTES = 10_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (which can expand without bound) and without repeated keys (the last would win)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key_node.value!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def load(path: str | Path, overrides: Iterable[str] = ()) -> JobConfig:
    """Read a configuration file. ``overrides`` are ``section.key=value`` texts, the value in YAML.

    Raises ConfigError with one line on anything that is not right.
    """
    path = Path(path)
    raw = _read_yaml(path)
    for override in overrides:
        _apply(raw, override)
    return parse(raw, str(path))


def parse(raw: Mapping[str, object], where: str) -> JobConfig:
    """Validate a mapping; ``where`` names its source in errors."""
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


class _Judging(Section):
    filter: FilterConfig


class _Scoring(Section):
    scorers: Scorers


def load_filter(config: JobConfig, overrides: Iterable[str], *, scorers: Iterable[str]) -> FilterConfig:
    """The job's filter with some of its fields changed; run-wide rules and all these scorers may be used. Raises ConfigError."""
    raw: dict[str, Any] = {"filter": config.filter.model_dump(exclude_none=True)}
    for override in overrides:
        if not override.strip().startswith("filter."):
            raise ConfigError(f"--set {override}: only the keys of filter can be changed here, such as filter.reject_blank=false")
        _apply(raw, override)
    try:
        found = _Judging.model_validate(raw).filter
        found.check_scores(scorers)
    except ValidationError as error:
        raise ConfigError(_explain(error, "--set")) from None
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from None
    return found


def load_scorer_config(text: str) -> tuple[str, ScorerConfig]:
    """A scorer written as NAME=MODEL or NAME={type: ..., ...}. Raises ConfigError."""
    name, eq, value = text.partition("=")
    if not eq or not name.isidentifier() or name != name.lower():
        raise ConfigError(f"--scorer {text}: write NAME=MODEL or 'NAME={{type: sharpness}}', the name in lower-case letters, digits and _")
    raw: dict[str, Any] = {}
    _apply(raw, f"scorers.{name}={value}")
    try:
        return name, _Scoring.model_validate(raw).scorers[name]
    except ValidationError as error:
        raise ConfigError(_explain(error, "--scorer")) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give the path of a job configuration (YAML)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: {len(data):,} bytes are too many for a configuration; put prompts in a file of their own")
    try:
        raw = yaml.load(data.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{at}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {type(error).__name__}") from None
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path}: holds {found}; a configuration is a mapping with the keys prompts and model")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    dotted, eq, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not eq or not all(keys):
        raise ConfigError(f"--set {override}: write it as section.key=value, for example sampling.steps=20")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value; quote it") from None
    node = raw
    for depth, key in enumerate(keys[:-1]):
        node = _open_section(node, key, ".".join(keys[: depth + 1]))
    node[keys[-1]] = value


def _open_section(node: dict[str, Any], key: str, dotted: str) -> dict[str, Any]:
    """The mapping under ``key``; a shorthand value such as ``model: demo`` is unfolded first."""
    unfold = {"model": "id", "prompts": "file"}
    value = node.get(key)
    if value is None:
        value = {}
    elif isinstance(value, list) and dotted == "prompts":
        value = {"texts": value}
    elif isinstance(value, str) and dotted == "scorers":
        value = {"clip": {"model": value}}
    elif isinstance(value, str):
        value = {unfold.get(dotted, "model"): value}
    elif not isinstance(value, dict):
        raise ConfigError(f"--set {dotted}: is {value!r}, not a section")
    node[key] = value
    return value


def _explain(error: ValidationError, where: str) -> str:
    """The first problem in words; how many more there are."""
    problems = [problem for problem in error.errors(include_url=False) if "literal['auto']" not in problem["loc"]]
    first = problems[0]
    loc = [str(part) for part in first["loc"] if part not in ("int", "constrained-int")]
    section = ".".join(loc[:-1] if first["type"] in ("extra_forbidden", "missing") else loc)
    prefix = f"{where} [{section}]" if section else where
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{prefix}: {_sentence(first, loc)}{more}"


def _sentence(problem: Any, loc: list[str]) -> str:
    kind, found = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        known = _keys_at(loc[:-1])
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        return f"unknown key {loc[-1]!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}")
    if kind == "missing":
        return f"the key {loc[-1]!r} is missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"].replace("Input should be", "must be")
    return f"{message[0].lower()}{message[1:]}; found {found!r}"


def _keys_at(loc: list[str]) -> list[str]:
    """Known keys of the section at ``loc``; keys of dictionaries and positions in lists are stepped over."""
    model: type[BaseModel] = JobConfig
    for part in loc:
        if part in model.model_fields:
            model = _section_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, list, dict):
        return next((found for arg in get_args(annotation) if (found := _section_in(arg))), None)
    return None
