"""``promptmill submit`` and ``promptmill jobs``: runs as jobs of a Ray cluster, through its job API.

The job is ``promptmill run`` itself, on the cluster's head; submitting the same configuration again resumes. A token
(``RAY_AUTH_TOKEN``, or the file ``~/.ray/auth_token``) is read and sent by Ray's own client.
"""

import asyncio
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.bundle import bundle
from schemas.errors import UserError

DRAIN_SECONDS = 600  # that a cancelled job gets to finish its current batches
POLL_SECONDS = 1.0
RUN = "promptmill_run"  # key of the job's metadata that holds the run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a cluster. ``exit_code`` is that of ``promptmill run``, None before its end."""

    id: str
    state: str
    run: str
    started: str
    exit_code: int | None
    message: str


def submit(config: Path, address: str, *, out: str | None = None, overrides: Sequence[str] = ()) -> Job:
    """Hand a job to the cluster. Raises UserError with one line."""
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder, _told(address):
        made = bundle(config, Path(folder), out=out, overrides=overrides)
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=f"exec {made.command}",
            submission_id=f"{re.sub(r'[^A-Za-z0-9-]+', '-', config.stem)}-{secrets.token_hex(3)}",
            runtime_env={"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(DRAIN_SECONDS)}},
            metadata={RUN: made.out},
        )
    return get_job(job_id, address)


def list_jobs(address: str) -> list[Job]:
    """The jobs that were submitted by promptmill, the newest last."""
    with _told(address):
        found = [job for job in JobSubmissionClient(address).list_jobs() if job.submission_id and RUN in (job.metadata or {})]
    return [_job(one) for one in sorted(found, key=lambda one: one.start_time or 0)]


def get_job(job_id: str, address: str) -> Job:
    """One job, now."""
    with _told(address, job_id):
        return _job(JobSubmissionClient(address).get_job_info(job_id))


def logs(job_id: str, address: str) -> str:
    """What the job has printed so far."""
    with _told(address, job_id):
        return JobSubmissionClient(address).get_job_logs(job_id)


def follow(job_id: str, address: str, on_text: Callable[[str], None]) -> Job:
    """Pass on what the job prints until it ends."""

    async def tail() -> None:
        async for text in JobSubmissionClient(address).tail_job_logs(job_id):
            on_text(text)

    get_job(job_id, address)
    with _told(address, job_id):
        asyncio.run(tail())
    return wait(job_id, address)


def wait(job_id: str, address: str) -> Job:
    """The job, once it has ended."""
    while True:
        job = get_job(job_id, address)
        if JobStatus(job.state.upper()).is_terminal():
            return job
        time.sleep(POLL_SECONDS)


def cancel(job_id: str, address: str) -> Job:
    """Ask a job to stop: it finishes and keeps its current batches. Submitting it again goes on."""
    job = get_job(job_id, address)
    if JobStatus(job.state.upper()).is_terminal():
        raise UserError(f"job {job_id}: has ended already ({job.state}); to go on with it, submit it again")
    with _told(address, job_id):
        JobSubmissionClient(address).stop_job(job_id)
    return job


def _job(details: JobDetails) -> Job:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((details.start_time or 0) / 1000))
    return Job(
        id=details.submission_id or "",
        state=details.status.value.lower(),
        run=(details.metadata or {}).get(RUN, ""),
        started=started,
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip(),
    )


@contextmanager
def _told(address: str, job_id: str = "") -> Iterator[None]:
    """What Ray's client raises, as one line."""
    try:
        yield
    except AuthenticationError:
        raise UserError(
            f"{address}: the token is missing or wrong; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or put the token into ~/.ray/auth_token"
        ) from None
    except (ConnectionError, OSError, ValueError) as error:
        raise UserError(
            f"{address}: no Ray cluster answers there ({type(error).__name__}); give the address of the head's dashboard, http://HEAD:8265"
        ) from None
    except RuntimeError as error:
        text = str(error)
        if "status code 404" in text or "does not exist" in text:
            raise UserError(f"job {job_id}: is not known at {address}; 'promptmill jobs list' shows those that are") from None
        if "status code 401" in text or "status code 403" in text:
            raise UserError(f"{address}: the token is missing or wrong; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN") from None
        raise UserError(f"{address}: {' '.join(text.split())[:300]}; look at the head's dashboard") from None
