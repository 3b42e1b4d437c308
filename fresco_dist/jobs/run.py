"""The walk from requests to run folders: inputs, planning, pool, job, folder. Nothing below calls back up."""

import time
from collections.abc import Hashable, Sequence
from functools import partial

from rich.console import Console

from fresco_dist.config import InputError
from fresco_dist.jobs.folder import RunFolder
from fresco_dist.jobs.job import JobRun, Request
from fresco_dist.jobs.planning import gpu_memory_gb, plan_runs, tell_plans, tell_schedule
from fresco_dist.jobs.pool import Pool, PoolSize
from fresco_dist.jobs.stop import ShouldStop, never
from fresco_dist.schedule.execute import WorkerError


def run(
    requests: Sequence[Request],
    pool: Pool,
    console: Console,
    *,
    resume: bool = False,
    should_stop: ShouldStop = never,
) -> list[Exception | None]:
    """Animate pictures, all as one graph where model, cluster and dispatch are the same.

    With `resume`, runs that are complete already are left as they are. With `plan_only`, print the plans and return.
    Returns for each request the error that it failed with: InputError for what the user can mend, WorkerError for tasks
    that failed or workers that are lost. The caller closes the pool, whatever happens.
    """
    errors: list[Exception | None] = [None] * len(requests)
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        if resume and RunFolder(request.path).is_done(request.plain_config):
            console.print(f"done      {request.path}: already", highlight=False, markup=False, soft_wrap=True)
            continue
        config = request.config
        key = (repr(config.cluster), repr(config.model), repr(config.dispatch), config.plan_only)
        groups.setdefault(key, []).append(i)
    for members in groups.values():
        found = _run_together([requests[i] for i in members], pool, console, should_stop)
        for i, error in zip(members, found, strict=True):
            errors[i] = error
    return errors


def _run_together(
    requests: Sequence[Request], pool: Pool, console: Console, should_stop: ShouldStop
) -> list[Exception | None]:
    """Plan all, refuse those that cannot run, run the others as one graph."""
    begun_s, first = time.time(), requests[0].config
    try:
        size = pool.size(first.cluster, plan_only=first.plan_only)
    except InputError as error:
        return [error] * len(requests)
    memory_gb = gpu_memory_gb(first.cluster, size.gpus_per_worker)
    jobs, refused, num_open = plan_runs([request.config for request in requests], size.num_workers, memory_gb)
    errors: dict[int, Exception | None] = dict(refused)
    runs = {i: JobRun(requests[i], job) for i, job in jobs.items()}
    for i in [] if first.plan_only else jobs:
        try:
            runs[i].folder.prepare()
        except InputError as error:
            errors[i] = error
            del runs[i]
    if runs:
        tell_plans(console, [run.job for run in runs.values()], num_open)
    if runs and not first.plan_only:
        found = _start_and_run(list(runs.values()), size, pool, console, begun_s, should_stop)
        errors |= dict(zip(runs, found, strict=True))
    return [errors.get(i) for i in range(len(requests))]


def _start_and_run(
    runs: Sequence[JobRun], size: PoolSize, pool: Pool, console: Console, begun_s: float, should_stop: ShouldStop
) -> list[Exception | None]:
    """The error of each run that failed; the schedule is told while the workers start."""
    try:
        tell = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        pool.start(runs[0].job.config, size, tell)
        tell_schedule(console, [run.job for run in runs])
        return pool.run(runs, console, begun_s, should_stop)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        for run in runs:
            run.fail(str(error) or "interrupted", status)
        if isinstance(error, (InputError, WorkerError)):
            return [error] * len(runs)
        raise
