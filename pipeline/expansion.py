"""``prompts.expand``: each prompt of the source becomes several, in the words of a language model.

What the model answered is recorded in the run folder, one line an answer, the moment it comes. From then on the prompts are a
function of the source and of these lines: who resumes, makes again or verifies a run asks nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

from pipeline.store import Store
from schemas import layout
from schemas.config import ExpandConfig, PromptsConfig
from schemas.errors import ModelError, PromptError
from schemas.records import Prompt

if TYPE_CHECKING:
    from pipeline.models.chat import Texts

ORIGINAL, EXPANDED_BY, ERROR = "source_prompt", "expanded_by", "expansion_error"
"""Tags of an expanded prompt: the source's text, the language model, and why the text stayed as it was, if it did."""

Answers = Mapping[str, tuple[str, ...] | str]
"""What was answered, by ``key``: texts, or why there are none."""

HOPELESS = 20  # answers without texts, and none with: it is not the prompts

_FINAL = ("refused", "bad_request", "bad_answer", "too_large")  # codes that a further try would get again


@dataclass(slots=True, kw_only=True)
class Asked:
    """What came of asking: answers recorded, how many of them hold no texts, prompts without an answer; requests and tokens."""

    answers: int = 0
    without_texts: int = 0
    unanswered: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    why: str = ""


def expanded(prompts: Iterable[Prompt], config: ExpandConfig, answers: Answers) -> Iterator[Prompt]:
    """Each prompt ``count`` times, the original before them if it is kept. The label, tags and settings of a prompt stay its own.

    A prompt that the model would not or could not write about keeps its text, and the tag ``expansion_error`` says why; one that was
    not asked about yet keeps its text, too. Raises PromptError on a tag that has the name of one of ours.
    """
    for prompt in prompts:
        if taken := {ORIGINAL, EXPANDED_BY, ERROR} & prompt.tags.keys():
            raise PromptError(f"prompt {prompt.id}: has a column {min(taken)!r}, which prompts.expand writes; rename it")
        if config.keep_original:
            yield prompt
        answer = answers.get(key(config, prompt), ())
        error = {ERROR: answer} if isinstance(answer, str) else {}
        texts = answer if answer and not error else (prompt.text,) * config.count
        tags = {**prompt.tags, ORIGINAL: prompt.text, EXPANDED_BY: config.model, **error}
        for number, text in enumerate(texts):
            yield replace(prompt, id=f"{prompt.id}-{number}", text=text, tags=tags)


def key(config: ExpandConfig, prompt: Prompt) -> str:
    """Under which the answer to a prompt is recorded; all of a job's identity that the answer depends on is in it."""
    asked = [config.model, config.instruction, config.count, config.request, prompt.id, prompt.text]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def read_answers(store: Store) -> Answers:
    """What a run folder has recorded; of a prompt that was answered twice the first. A line that a kill tore is left out."""
    answers: dict[str, tuple[str, ...] | str] = {}
    for line in store.read_log(layout.EXPANSIONS).splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            answers.setdefault(record["key"], tuple(record["texts"]) or str(record["error"]))
    return answers


def ask(source: PromptsConfig, prompts: Iterable[Prompt], store: Store, stop: Event, on_answer: Callable[[Asked], None]) -> Asked:
    """Ask about each prompt, ``expand.concurrency`` at a time, and record the answers as they come, until ``stop`` is set.

    Whatever was answered is recorded before an error is raised: ModelError where asking further is of no use.
    """
    from pipeline.models.chat import ChatModel  # its HTTP client is not needed by who only reads a run

    asked, model, config = Asked(), ChatModel(source), source.expand
    assert config is not None
    if store.read_log(layout.EXPANSIONS)[-1:] not in (b"", b"\n"):
        store.append(layout.EXPANSIONS, "")  # ends a line that a kill tore
    has_texts = any(isinstance(answer, tuple) for answer in read_answers(store).values())
    failure: ModelError | None = None
    pending: dict[Future[Texts], Prompt] = {}

    def settle(most: int) -> None:
        nonlocal failure
        while len(pending) > most:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                try:
                    _record(config, pending.pop(future), future, store, asked)
                except ModelError as error:
                    failure = failure or error
            if asked.without_texts == asked.answers >= HOPELESS and not has_texts:
                failure = failure or ModelError(
                    f"model {config.model}: the first {asked.answers} answers hold no list of prompts that can be used"
                    f" (prompts.expand, {config.url}), see {layout.EXPANSIONS}; try another model or instruction, with another --out"
                )
            asked.requests += model.take_requests()
            on_answer(asked)

    with ThreadPoolExecutor(config.concurrency, thread_name_prefix="expand") as pool:
        for prompt in prompts:
            settle(config.concurrency - 1)
            if failure or stop.is_set():
                break
            pending[pool.submit(model.write, prompt.text)] = prompt
        settle(0)
    store.flush()
    if failure:
        raise failure
    return asked


def _record(config: ExpandConfig, prompt: Prompt, future: "Future[Texts]", store: Store, asked: Asked) -> None:
    from pipeline.models.endpoint_client import NoAnswer

    line: dict[str, object] = {"key": key(config, prompt), "id": prompt.id, "prompt": prompt.text}
    try:
        answer = future.result()
    except NoAnswer as error:
        if error.code not in _FINAL:
            asked.unanswered, asked.why = asked.unanswered + 1, str(error)
            return
        asked.without_texts += 1
        line |= {"texts": [], "error": str(error)}
    else:
        asked.prompt_tokens += answer.usage.get("prompt_tokens", 0)
        asked.completion_tokens += answer.usage.get("completion_tokens", 0)
        line |= asdict(answer)
    asked.answers += 1
    store.append(layout.EXPANSIONS, json.dumps(line, ensure_ascii=False))
