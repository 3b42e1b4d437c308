"""Who did what when: task records, their Chrome trace, and what they say of the schedule. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass

from fresco_dist.dispatch import COLLECTIVES, Task


@dataclass(frozen=True)
class TaskRecord:
    """A finished task: rank, start and end in Unix seconds, the worker's peak memory so far."""

    task: Task
    worker: int
    start_s: float
    end_s: float
    peak_memory_gb: float


def span_s(records: Sequence[TaskRecord], *kinds: str) -> float:
    """Seconds from the first start to the last end of the tasks of these kinds; 0 if there are none."""
    chosen = [record for record in records if record.task.kind in kinds]
    if not chosen:
        return 0.0
    return max(record.end_s for record in chosen) - min(record.start_s for record in chosen)


def schedule_summary(records: Sequence[TaskRecord], num_workers: int) -> dict[str, float]:
    """Busy fraction of the workers, makespan, and the lower bound (work / workers).

    Loading does not count, nor do commits: they are mostly waiting for the other workers.
    """
    work = [record for record in records if record.task.kind not in ("load", *COLLECTIVES)]
    busy_s = sum(record.end_s - record.start_s for record in work)
    makespan_s = max(record.end_s for record in work) - min(record.start_s for record in work)
    return {
        "busy_fraction": busy_s / (num_workers * makespan_s),
        "lower_bound_s": busy_s / num_workers,
        "makespan_s": makespan_s,
    }


def chrome_trace(records: Sequence[TaskRecord]) -> dict:
    """Trace Event Format: one row per worker, one complete event per task, microseconds from the first start."""
    origin_s = min((record.start_s for record in records), default=0.0)
    events: list[dict] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": worker, "args": {"name": f"worker {worker}"}}
        for worker in sorted({record.worker for record in records})
    ]
    events += [
        {
            "name": str(record.task),
            "cat": record.task.kind,
            "ph": "X",
            "pid": 0,
            "tid": record.worker,
            "ts": (record.start_s - origin_s) * 1e6,
            "dur": (record.end_s - record.start_s) * 1e6,
        }
        for record in records
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
