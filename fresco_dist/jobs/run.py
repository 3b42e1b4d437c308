"""The walk from requests to run folders: inputs, planning, pool, job, folder. Nothing below calls back up."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from rich.console import Console

from fresco_dist.config import InputError
from fresco_dist.jobs.folder import RunFolder, WriteError
from fresco_dist.jobs.inputs import digest_files
from fresco_dist.jobs.job import JobRun, Request
from fresco_dist.jobs.keeper import Keeper
from fresco_dist.jobs.planning import gpu_memory_gb, plan_runs, tell_plans, tell_schedule
from fresco_dist.jobs.pool import Pool, PoolSize
from fresco_dist.jobs.stop import ShouldStop, never
from fresco_dist.runtime.store import Store


def run(
    requests: Sequence[Request], pool: Pool, console: Console, *, should_stop: ShouldStop = never
) -> list[Exception | None]:
    """Animate pictures, all as one graph where model, cluster and dispatch are the same.

    Runs that are complete already are left as they are. With `plan_only`, print the plans and return; nothing is
    written. Returns for each request the error that it failed with: InputError for what the user can mend, WorkerError
    for tasks that failed or workers that are lost, WriteError for a disk that is full, others for defects. The caller
    closes the pool, whatever happens.
    """
    errors: list[Exception | None] = [None] * len(requests)
    groups: dict[str, list[int]] = {}
    with ExitStack() as claims:
        for i, error in _claim(requests, claims, console).items():
            if error is None:
                config = requests[i].config
                alike = (config.cluster, config.model, config.dispatch, config.store, config.plan_only)
                groups.setdefault(repr((alike, requests[i].store_path)), []).append(i)
            errors[i] = error
        for members in groups.values():
            try:
                found = _run_together([requests[i] for i in members], pool, console, should_stop)
            except Exception as error:  # those with another model or cluster still run
                found = [error] * len(members)
            for i, error in zip(members, found, strict=True):
                errors[i] = error
    return errors


def _claim(requests: Sequence[Request], claims: ExitStack, console: Console) -> dict[int, Exception | None]:
    """Claim the folders of all that are still to be run; the error of each whose folder cannot be had."""
    found: dict[int, Exception | None] = {}
    unlocked: set[str] = set()
    for i, request in enumerate(requests):
        folder = RunFolder(request.path)
        try:
            if not request.config.plan_only:
                claim = folder.prepare(claims)
                if folder.is_done(request.plain_config, partial(digest_files, request.config)):
                    claim.release()
                    _print(console, f"done      {request.path}: already")
                    continue
                unlocked |= {claim.unlocked} - {""}
            found[i] = None
        except (InputError, WriteError) as error:
            found[i] = error
    for reason in unlocked:
        _print(console, f"warning   hydra.run.dir cannot be locked ({reason}): start no other run in it")
    return found


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _run_together(
    requests: Sequence[Request], pool: Pool, console: Console, should_stop: ShouldStop
) -> list[Exception | None]:
    """Plan all, refuse those that cannot run, run the others as one graph; raises what concerns them all."""
    begun_s, first = time.time(), requests[0].config
    size = pool.size(first.cluster, plan_only=first.plan_only)
    store = _open_store(requests[0])
    memory_gb = gpu_memory_gb(first.cluster, size.gpus_per_worker)
    chosen = {} if store is None else store.read_note("choices")
    before = dict(chosen)
    configs = [request.config for request in requests]
    jobs, refused, num_open = plan_runs(configs, size.num_workers, memory_gb, chosen)
    if store is not None and chosen != before and not first.plan_only:
        _note_choices(store, chosen, console)
    errors: dict[int, Exception | None] = dict(refused)
    runs = {i: JobRun(requests[i], job) for i, job in jobs.items()}
    if runs:
        keeper = Keeper(
            store,
            [run.job for run in runs.values()],
            lambda text: _print(console, f"warning   {text}"),
            lasting=first.store.path is not None,
        )
        try:
            tell_plans(console, [run.job for run in runs.values()], keeper.plans, num_open)
            if not first.plan_only:
                for run, left in zip(runs.values(), keeper.plans, strict=True):
                    run.start(left)
                found = _start_and_run(list(runs.values()), keeper, size, pool, console, begun_s, should_stop)
                errors |= dict(zip(runs, found, strict=True))
        finally:
            keeper.close()
    return [errors.get(i) for i in range(len(requests))]


def _note_choices(store: Store, chosen: dict, console: Console) -> None:
    """For the run that goes on from this one: on whatever cluster, it is to choose the same."""
    try:
        store.write_note("choices", chosen)
    except OSError as error:
        _print(console, f"warning   what was chosen is not stored: {error}")


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
    runs: Sequence[JobRun],
    keeper: Keeper,
    size: PoolSize,
    pool: Pool,
    console: Console,
    begun_s: float,
    should_stop: ShouldStop,
) -> list[Exception | None]:
    """The error of each run that failed; the schedule is told while the workers start."""
    try:
        pool.start(runs[0].job.config, size, partial(_print, console))
        tell_schedule(console, [run.job for run in runs], keeper.plans)
        return pool.run(runs, keeper, console, begun_s, should_stop)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        for run in runs:
            run.fail(str(run.error or error) or "interrupted", status)
        if isinstance(error, Exception):
            return [None if run.finished else run.error or error for run in runs]
        raise
