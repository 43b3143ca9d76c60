"""What it gives to have glibc keep freed memory: `python -m tests.benchmarks.allocator [--rounds 5]`.

Two processes at a time, a core each, draw the same batches of the demo model in a thread, as a worker does: one as it is, one with the
allocator's default. Processor time counts, so that what else runs on the machine weighs little.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time

from jobs.bench import machine, smaller
from jobs.prepare import prepare
from tests.conftest import REPOSITORY

BATCHES = 6


def draw(keep: bool) -> float:
    """Seconds of processor time, the first batch left out."""
    from pipeline.models import load_model
    from pipeline.worker import keep_freed_memory

    if keep:
        keep_freed_memory()
    prepared = prepare(REPOSITORY / "configs" / "demo.yaml")
    size = prepared.config.batch_size
    job, draws = smaller(prepared, size * (1 + BATCHES))
    model = load_model(job.model, job.config.model.model_copy(update={"cpu_threads": 1}))
    spent: list[float] = []

    def work() -> None:
        for start in range(0, len(draws), size):
            model.generate(draws[start : start + size])
            spent.append(time.process_time())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return spent[-1] - spent[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draw", choices=["keep", "default"], help="one process of it")
    args = parser.parse_args()
    if args.draw:
        print(draw(args.draw == "keep"))
        return
    ratios = []
    for _ in range(args.rounds):
        both = [
            subprocess.Popen([sys.executable, "-m", "tests.benchmarks.allocator", "--draw", kind], stdout=subprocess.PIPE, cwd=REPOSITORY)
            for kind in ("keep", "default")
        ]
        kept, default = (float(process.communicate()[0].split()[-1]) for process in both)
        ratios.append(default / kept)
    print(f"on {machine()}: {statistics.median(ratios):.2f} times as fast ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
