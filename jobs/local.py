"""Executor in this process: one worker, the same shards, no Ray."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from jobs.executor import POLL_SECONDS, Control, Task, TaskQueue
from pipeline.worker import SHARDS_AT_ONCE, SHARDS_UNWRITTEN, ShardWorker, WorkOrder
from schemas.errors import ShardError
from schemas.records import ShardResult


def run_local(order: WorkOrder, shard_ids: Sequence[int], control: Control) -> Iterator[ShardResult]:
    """Make the shards here, a few at a time: one samples while the others' files are written."""
    worker = ShardWorker(order, stopped=control.stop.is_set)
    control.on_ready(worker.stages.worker, worker.loading)
    queue = TaskQueue(shard_ids, control)
    running: dict[Future[ShardResult], Task] = {}
    with ThreadPoolExecutor(SHARDS_AT_ONCE + SHARDS_UNWRITTEN, thread_name_prefix="shard") as pool:
        try:
            while running or (queue and not control.stop.is_set()):
                while queue and len(running) < worker.capacity and not control.stop.is_set():
                    task = queue.take()
                    running[pool.submit(worker.run, task.shard_id, keep_failures=task.is_last)] = task
                done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                control.on_sampled(worker.sampled)
                for future in done:
                    task = running.pop(future)
                    try:
                        result = future.result()
                    except ShardError as error:
                        queue.failed(task, error)
                    else:
                        queue.succeeded()
                        yield result
        finally:
            worker.stop()
