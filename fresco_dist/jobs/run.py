"""The walk from requests to run folders: inputs, planning, pool, job, folder. Nothing below calls back up."""

import time
from collections.abc import Hashable, Sequence

from rich.console import Console

from fresco_dist.config import InputError
from fresco_dist.jobs.folder import RunFolder
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.jobs.job import JobRun, Request
from fresco_dist.jobs.planning import Planner
from fresco_dist.jobs.pool import Pool
from fresco_dist.jobs.stop import ShouldStop, never


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
    """Plan all, refuse those that cannot run, run the others as one graph. Workers start while the driver prepares."""
    begun_s = time.time()
    errors: list[Exception | None] = [None] * len(requests)
    first = requests[0].config
    try:
        num_workers, gpus_per_worker = pool.size(first.cluster, plan_only=first.plan_only)
    except InputError as error:
        return [error] * len(requests)
    inputs = Inputs()
    planner = Planner(inputs, console, [request.config for request in requests], num_workers, gpus_per_worker)
    planned = {}
    for i, request in enumerate(requests):
        try:
            planned[i] = planner.plan(request.config)
            if not first.plan_only:
                RunFolder(request.path).prepare()
        except InputError as error:
            errors[i] = error
    if not planned:
        return errors
    if first.plan_only:
        planner.tell_schedule(planned.values())
        return errors
    runs = [JobRun(requests[i], inputs.job(*planned[i])) for i in planned]
    inputs.forget()
    try:
        pool.start(first.cluster, first.model.backbone, num_workers, gpus_per_worker)
        planner.tell_schedule(planned.values())
        found = pool.run(runs, console, begun_s, should_stop)
    except BaseException as error:
        for run in runs:
            run.fail(str(error) or "interrupted", "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    for i, error in zip(planned, found, strict=True):
        errors[i] = error
    return errors
