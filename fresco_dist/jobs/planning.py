"""Plans and refusals, and what is printed of them: windows, memory, schedule. Nothing is loaded or started."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fresco_dist import models
from fresco_dist.config import ClusterConfig, Config, InputError, TilesConfig
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.models.dino import check_dino
from fresco_dist.runtime import machine
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.describe import describe, describe_schedule, describe_sharing
from fresco_dist.schedule.memory import check_fit
from fresco_dist.schedule.outlook import choose_grid
from fresco_dist.schedule.sharing import base_key, find_owners
from fresco_dist.schedule.tasks import open_canvases


def plan_runs(
    configs: Sequence[Config], num_workers: int, gpu_memory_gb: float | None
) -> tuple[dict[int, Job], dict[int, Exception], int]:
    """Plan runs that go together on a number of workers, and refuse those that cannot run, before any is started.

    Returns both by their place in `configs`, and how many canvases a worker holds at once. The jobs' configurations say
    what the planner chose. Runs that differ in the fusion alone get the first one's windows, or they could not be
    compared. `gpu_memory_gb`: None if no GPU is known.
    """
    inputs, owners = Inputs(), find_owners(configs)
    tiles: dict[Hashable, TilesConfig] = {}
    jobs: dict[int, Job] = {}
    refused: dict[int, Exception] = {}
    for i, config in enumerate(configs):
        base = base_key(config)
        try:
            if config.dino_path:
                check_dino(Path(config.dino_path).expanduser())
            config, plan = choose_grid(
                replace(config, tiles=tiles.get(base, config.tiles)),
                models.read_spec(config.model),
                inputs.image_px(config),
                num_workers,
                gpu_memory_gb,
                owners,
            )
            tiles.setdefault(base, config.tiles)
            jobs[i] = inputs.job(config, plan)
        except Exception as error:  # a defect, too, costs its own run alone
            refused[i] = error
    num_open = max((open_canvases(job.plan, job.config.dispatch.mode, owners) for job in jobs.values()), default=1)
    if gpu_memory_gb is not None:
        for i, job in list(jobs.items()):
            try:
                check_fit(job.plan, job.config, gpu_memory_gb, num_open)
            except InputError as error:
                refused[i] = error
                del jobs[i]
    return jobs, refused, num_open


def gpu_memory_gb(cluster: ClusterConfig, gpus_per_worker: int) -> float | None:
    """Memory of the GPU that is given, or of the smallest one here; None if no GPU is known."""
    if cluster.gpu_memory_gb is None and gpus_per_worker:  # workers may be elsewhere
        return machine.gpu_memory_gb()
    return cluster.gpu_memory_gb


def tell_plans(console: Console, jobs: Sequence[Job], num_open: int) -> None:
    """Print what differs once: what needs no simulation, and with `plan_only` all there is to say."""
    told: set[tuple[str, ...]] = set()
    for job in jobs:
        texts = tuple(describe(job.config, job.plan, num_open))
        if texts not in told:
            told.add(texts)
            _print(console, texts)
            if job.config.plan_only:
                _print(console, describe_schedule(job.config, job.plan))
    if len(jobs) > 1:
        _print(console, [describe_sharing([job.config for job in jobs], [job.plan for job in jobs])])


def tell_schedule(console: Console, jobs: Sequence[Job]) -> None:
    """Print how a run will go; for several different ones that takes longer than it is worth."""
    if len({tuple(describe(job.config, job.plan)) for job in jobs}) == 1:
        _print(console, describe_schedule(jobs[0].config, jobs[0].plan))


def _print(console: Console, texts: Iterable[str]) -> None:
    for text in texts:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
