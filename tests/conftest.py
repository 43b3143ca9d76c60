"""Shared by all tests: no network, and a job over a fake model in a temporary folder."""

import atexit
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "1"  # a third less of the time that a compiled network takes g++
REPOSITORY = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = str(REPOSITORY)  # so that Ray workers find tests.fakes


_status: list[int] = []


def pytest_sessionfinish(exitstatus: int) -> None:
    _status.append(int(exitstatus))


@atexit.register
def _leave() -> None:
    """End without the interpreter's teardown, which once ended in a segmentation fault after all tests had passed.

    This process has the native threads of a dozen libraries that no program of ours has together; that each command of
    ``promptmill`` ends as it should is tested in processes of their own.
    """
    if _status and not hasattr(sys, "last_value"):  # an error after the session ends the process in the usual way, with status 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status[-1])
