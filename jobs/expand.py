"""``prompts.expand`` of a run: how many requests it takes, and the asking, whose answers the run folder keeps."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from threading import Event

from jobs.interrupt import draining
from jobs.prepare import Prepared
from jobs.run_dir import RunDir
from pipeline import expansion
from pipeline.store import Store
from schemas import layout
from schemas.errors import PromptError, RunFolderError

TOLD_SECONDS = 10.0  # between two messages


def with_answers(prepared: Prepared, store: Store) -> Prepared:
    """The job with the answers that its run folder has recorded. Raises RunFolderError if it was planned with some that are gone."""
    if not prepared.config.prompts.expand:
        return prepared
    answers = expansion.read_answers(store)
    if not answers and store.exists(layout.PLAN_INDEX):
        raise RunFolderError(
            f"{store.root}: {layout.EXPANSIONS} is missing, which holds the prompts of this run; put it back, or choose another --out"
        )
    return replace(prepared, answers=answers)


def count_requests(prepared: Prepared) -> int:
    """Requests that are still to be made; 0 for a job without ``prompts.expand``. Raises PromptError if they are too many."""
    config = prepared.config.prompts.expand
    if config is None:
        return 0
    count = sum(1 for _ in prepared.unasked())
    if count > config.max_requests:
        raise PromptError(
            f"prompts.expand: takes {count:,} requests to {config.url}, more than prompts.expand.max_requests ({config.max_requests:,});"
            " raise it if you mean that"
        )
    return count


def ask(run_dir: RunDir, prepared: Prepared, stop: Event, on_message: Callable[[str], None]) -> Prepared:
    """Ask about all prompts that have no answer yet; the job with their answers, or with some of them if ``stop`` was set.

    Raises PromptError if some got none that can be used again later, ModelError if the server cannot be used; what was
    answered is kept in any case.
    """
    config, wanted = prepared.config.prompts.expand, count_requests(prepared)
    if config is None or not wanted:
        return prepared
    on_message(
        f"prompts.expand: {wanted:,} requests to {config.model} at {config.url}; {len(prepared.answers):,} answers are there already"
    )
    told = time.monotonic()

    def on_answer(asked: expansion.Asked) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            on_message(f"prompts.expand: {asked.answers:,} of {wanted:,} answered")

    with draining(stop, prepared.config.executor.grace_seconds, on_message):
        asked = expansion.ask(prepared.config.prompts, prepared.unasked(), run_dir.store, stop, on_answer)
    run_dir.log("expanded", model=config.model, **{name: value for name, value in asdict(asked).items() if value})
    if asked.without_texts:
        on_message(f"prompts.expand: {asked.without_texts:,} prompts keep their own text; the tag {expansion.ERROR} says why")
    if asked.unanswered and not stop.is_set():
        raise PromptError(
            f"prompts.expand: {asked.unanswered:,} of {wanted:,} prompts have no answer ({asked.why});"
            " the others are kept: run the same command again, it asks for these only"
        )
    return with_answers(prepared, run_dir.store)
