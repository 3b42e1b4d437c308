"""The walk from requests to run folders: inputs, planning, pool, job, folder. Nothing below calls back up."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.folder import PASSING, RunFolder, WriteError
from fresco_dist.jobs.found import Choices, restore
from fresco_dist.jobs.inputs import digest_files
from fresco_dist.jobs.job import JobRun, Request
from fresco_dist.jobs.keeper import Keeper
from fresco_dist.jobs.planning import gpu_memory_gb, plan_runs, tell_plans, tell_schedule
from fresco_dist.jobs.pool import Pool, PoolSize
from fresco_dist.runtime.store import Store


def run(requests: Sequence[Request], pool: Pool, caller: Caller) -> list[Exception | None]:
    """Animate pictures, all as one graph where model, cluster and dispatch are the same.

    Runs that are complete already are left as they are. With `plan_only`, say the plans and return; nothing is written.
    Returns for each request the error that it failed with: InputError for what the user can mend, WorkerError for tasks
    that failed or workers that are lost, WriteError for a disk that is full, others for defects. Whose the pool is
    closes it, whatever happens.
    """
    errors: list[Exception | None] = [None] * len(requests)
    groups: dict[str, list[int]] = {}
    with ExitStack() as claims:
        for i, error in _claim(requests, claims, caller).items():
            if error is None:
                request, config = requests[i], requests[i].config
                alike = (config.cluster, config.model, config.dispatch, config.store, config.plan_only)
                groups.setdefault(repr((alike, request.store_path, request.goes_on)), []).append(i)
            errors[i] = error
        for members in groups.values():
            try:
                found = _run_together([requests[i] for i in members], pool, caller.of(members))
            except Exception as error:  # those with another model or cluster still run
                found = [error] * len(members)
            for i, failure in zip(members, found, strict=True):
                errors[i] = failure
        _clean_up(requests, errors)
    return errors


def _clean_up(requests: Sequence[Request], errors: Sequence[Exception | None]) -> None:
    """Stores of the runs' own go when all who have used them are done."""
    for path in {request.store_path for request in requests if not request.config.store.path}:
        users = [i for i, request in enumerate(requests) if request.store_path == path]
        is_over = all(errors[i] is None and not requests[i].goes_on and not requests[i].shares_store for i in users)
        if path is None or requests[users[0]].config.plan_only:
            continue
        with suppress(OSError):
            Store(path).clear() if is_over and path.is_dir() else path.rmdir()  # nothing may have come to be in it


def _claim(requests: Sequence[Request], claims: ExitStack, caller: Caller) -> dict[int, Exception | None]:
    """Claim the folders of all that are still to be run; the error of each whose folder cannot be had."""
    found: dict[int, Exception | None] = {}
    unlocked: set[str] = set()
    paths: set[Path] = set()
    for i, request in enumerate(requests):
        folder = RunFolder(request.path)
        try:
            if request.path in paths:
                raise InputError(
                    f"hydra.run.dir must be another one for each of the runs that go together; got {request.path}"
                    " twice. Give each its own."
                )
            paths.add(request.path)
            if not request.config.plan_only:
                claim = folder.prepare(claims, request.config.video.encoding.file_name)
                if folder.is_done(request.plain_config, partial(digest_files, request.config)):
                    if not request.goes_on:
                        folder.remove(PASSING)  # it may have been killed before it did
                    claim.release()
                    caller.say(f"done      {request.path}: already")
                    continue
                unlocked |= {claim.unlocked} - {""}
                if others := folder.differing(request.plain_config):
                    keys = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
                    caller.note(f"{request.path} has a run with other {keys}: this one takes its place")
            found[i] = None
        except (InputError, WriteError) as error:
            found[i] = error
    for reason in unlocked:
        caller.warn(f"hydra.run.dir cannot be locked ({reason}): start no other run in it")
    return found


def _run_together(requests: Sequence[Request], pool: Pool, caller: Caller) -> list[Exception | None]:
    """Plan all, refuse those that cannot run, run the others as one graph; raises what concerns them all."""
    begun_s, first = time.time(), requests[0].config
    size = pool.size(first.cluster, plan_only=first.plan_only)
    store = _open_store(requests[0])
    memory_gb = gpu_memory_gb(first.cluster, size.gpus_per_worker)
    choices = Choices(store, caller.warn)
    configs = [request.config for request in requests]
    given = [request.given for request in requests]
    jobs, refused, num_open = plan_runs(configs, given, size.num_workers, memory_gb, choices, caller.note)
    errors: dict[int, Exception | None] = dict(refused)
    runs = {i: JobRun(requests[i], job) for i, job in jobs.items()}
    if runs:
        if store is not None and not first.plan_only:
            _restore(store, runs.values(), caller.warn)
        keeper = Keeper(
            store,
            [run.job for run in runs.values()],
            caller.warn,
            lasting=first.store.path is not None,
            shared=requests[0].shares_store,
            plan_only=first.plan_only,
        )
        try:
            tell_plans(caller, [run.job for run in runs.values()], keeper.plans, num_open)
            if not first.plan_only:
                found = _start_and_run(list(runs.values()), keeper, size, pool, caller.of(list(runs)), begun_s)
                errors |= dict(zip(runs, found, strict=True))
        finally:
            keeper.close()
        if all(run.finished and not run.is_preview for run in runs.values()):
            choices.remove()
    return [errors.get(i) for i in range(len(requests))]


def _restore(store: Store, runs: Iterable[JobRun], tell: Callable[[str], None]) -> None:
    """Take what earlier runs have left in the same folders as stored."""
    for run in runs:
        try:
            restore(store, run.folder, run.job.keys.levels[-1].last)
        except OSError as error:
            tell(f"{run.folder.path}: the latents there are not used: {error}")


def _open_store(request: Request) -> Store | None:
    """Where what is made is kept; a plan alone makes no folder for it. Raises InputError if it cannot be written."""
    path, given = request.store_path, request.config.store
    if path is None or (request.config.plan_only and not path.is_dir()):
        return None
    try:
        return Store(path, given.max_gb)
    except OSError as error:
        raise InputError(
            f"store.path must be a folder that can be written; got {path} ({error.strerror})."
            " Choose another one, or store.enabled=false."
        ) from None


def _start_and_run(
    runs: Sequence[JobRun], keeper: Keeper, size: PoolSize, pool: Pool, caller: Caller, begun_s: float
) -> list[Exception | None]:
    """The error of each run that failed; the schedule is told while the workers start."""
    try:
        pool.start(runs[0].job.config, size, caller.say)
        tell_schedule(caller, [run.job for run in runs], keeper.plans)
        return pool.run(runs, keeper, caller, begun_s)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        for run in runs:
            run.fail(str(run.error or error) or "interrupted", status)
        if isinstance(error, Exception):
            return [None if run.finished else run.error or error for run in runs]
        raise
