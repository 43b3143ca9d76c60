"""Kills ``promptmill filter`` at each of its I/O operations and looks at the verdicts: ``python -m tests.crash_filter RUN``.

Everything happens in forked processes, as in ``tests.crash_points``. Prints one JSON object: how many operations there
are, and how often the verdicts were the old ones, the new ones, or others.
"""

import itertools
import json
import sys

from jobs.filter import filter_run
from jobs.query import query
from tests.crash_points import Operations, in_child, watch

RULES = ['filter.rules=[{"keep": 3}]']


def verdicts(root: str) -> list[dict]:
    """As readers see them."""
    return query([root], "select sample_id, status, reason, rank_in_prompt from metadata order by sample_id").to_pylist()


def judge(root: str, point: int | None) -> int:
    """Filter; killed at an operation. How many there were."""
    operations = Operations(point, "kill")
    watch(operations, on_disk=True)
    filter_run(root, RULES)
    return operations.count


def main() -> None:
    root = sys.argv[1]
    old = in_child(lambda: verdicts(root))[1]
    assert in_child(lambda: judge(root, None))[0] == 0
    new = in_child(lambda: verdicts(root))[1]
    assert new != old
    seen = {"old": 0, "new": 0, "other": 0}
    for point in itertools.count(1):
        assert in_child(lambda: filter_run(root) and None)[0] == 0
        assert in_child(lambda: verdicts(root))[1] == old
        code, _ = in_child(lambda point=point: judge(root, point))
        found = in_child(lambda: verdicts(root))[1]
        seen["old" if found == old else "new" if found == new else "other"] += 1
        if code == 0:
            print(json.dumps({"points": point - 1, **seen}))
            return


if __name__ == "__main__":
    main()
