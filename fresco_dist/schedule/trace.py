"""Who did what when: task records, their Chrome trace, and what they say of the schedule. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fresco_dist.schedule.graph import PHASES, Graph, Task


@dataclass(frozen=True)
class TaskRecord:
    """A finished task: rank, start and end in Unix seconds, the worker's peak memory so far.

    `read_gb` came from storage meanwhile; None where the system does not tell.
    """

    task: Task
    worker: int
    start_s: float
    end_s: float
    peak_memory_gb: float
    read_gb: float | None = None
    beside: bool = False  # it ran beside the worker's forwards
    left_out: bool = False  # its forward turned out not to be needed
    looks: Mapping[int, Any] = field(default_factory=dict, compare=False, repr=False)  # at cells, see `Denoiser.look`
    blind: str = ""  # why there will be none


def loaded_gb(records: Sequence[TaskRecord]) -> float | None:
    """What all workers together read from storage to load their replicas; None if one of them cannot tell."""
    loads = [record for record in records if record.task.kind == "load"]
    known = [record.read_gb for record in loads if record.read_gb is not None]
    return sum(known) if len(known) == len(loads) else None


def span_s(records: Sequence[TaskRecord]) -> float:
    """Seconds from the first start to the last end; 0 if there are none."""
    return max((r.end_s for r in records), default=0.0) - min((r.start_s for r in records), default=0.0)


def phase_s(records: Sequence[TaskRecord]) -> dict[str, float]:
    """Seconds of each phase, from its first start to its last end; 0 for one without tasks.

    "prior" is all that is denoised below the last level, from its pictures on.
    """
    top = max((record.task.level for record in records), default=-1)
    of_phase: dict[str, list[TaskRecord]] = {phase: [] for phase in PHASES}
    for record in records:
        phase, is_below = record.task.traits.phase, 0 <= record.task.level < top
        if phase is not None and not (is_below and phase == "decode"):
            of_phase["prior" if is_below else phase].append(record)
    return {phase: span_s(members) for phase, members in of_phase.items()}


def schedule_summary(records: Sequence[TaskRecord], num_workers: int, graph: Graph) -> dict[str, float]:
    """Busy fraction of the workers, makespan, and its two lower bounds: work / workers, and the critical path."""
    durations_s = {record.task: record.end_s - record.start_s for record in records if record.task.traits.work}
    work = [record for record in records if record.task.traits.work]
    busy_s = sum(record.end_s - record.start_s for record in work)
    makespan_s = span_s(work)
    return {
        "busy_fraction": busy_s / (num_workers * makespan_s) if makespan_s else 0.0,
        "lower_bound_s": busy_s / num_workers,
        "critical_path_s": max(graph.critical_paths(lambda task: durations_s.get(task, 0.0)).values(), default=0.0),
        "makespan_s": makespan_s,
    }


def chrome_trace(records: Sequence[TaskRecord]) -> dict:
    """Trace Event Format: a row per worker, and one for what runs beside its forwards; microseconds from the start."""
    origin_s = min((record.start_s for record in records), default=0.0)
    rows = sorted({_row(record) for record in records})
    names = {row: f"worker {row // 2}" + ", beside" * (row % 2) for row in rows}
    events: list[dict] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": name}} for row, name in names.items()
    ]
    events += [
        {
            "name": str(record.task),
            "cat": record.task.kind,
            "ph": "X",
            "pid": 0,
            "tid": _row(record),
            "ts": (record.start_s - origin_s) * 1e6,
            "dur": (record.end_s - record.start_s) * 1e6,
            "args": {"key": record.task.of},
        }
        for record in records
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _row(record: TaskRecord) -> int:
    return 2 * record.worker + record.beside
