"""Runs, from checked configurations to complete run folders: one, or the points of a sweep together on one pool.

Reads pictures and models' configurations, refuses what cannot run, prints the plans; `pool_run` does the rest.
Whatever happens, the workers are gone when `run` returns or raises.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fresco_dist import models
from fresco_dist.config import ClusterConfig, Config, DispatchMode, ExecutorKind, FusionMethod, InputError
from fresco_dist.jobs.folder import RunFolder
from fresco_dist.jobs.job import JobRun
from fresco_dist.jobs.pool import PoolRun
from fresco_dist.media.pictures import read_activity_map, read_image, read_last_image, resize_image
from fresco_dist.method.prior_strength import prior_steps
from fresco_dist.models.dino import check_dino
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.memory import check_fit, worker_memory
from fresco_dist.schedule.outlook import (
    describe_advice,
    describe_schedule,
    describe_sharing,
    describe_tasks,
    fit_batch,
    fit_overlap,
)
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.sharing import base_key

ASSETS = Path(str(files("fresco_dist") / "assets"))


@dataclass(frozen=True)
class Request:
    """One run that is asked for: its configuration, the same as run.json records it, and its run folder."""

    config: Config
    plain_config: dict
    path: Path


def run(requests: Sequence[Request], console: Console, *, resume: bool = False) -> list[Exception | None]:
    """Animate pictures, all on one pool of workers where model, cluster and dispatch are the same.

    With `resume`, runs that are complete already are left as they are. With `plan_only`, print the plans and return.
    Returns for each request the error that it failed with: InputError for what the user can mend, WorkerError for tasks
    that failed or workers that are lost.
    """
    errors: list[Exception | None] = [None] * len(requests)
    pools: dict[tuple, list[int]] = {}
    for i, request in enumerate(requests):
        config = request.config
        key = (repr(config.model), repr(config.cluster), repr(config.dispatch), config.plan_only)
        pools.setdefault(key, []).append(i)
    uses_ray = any(request.config.cluster.executor is ExecutorKind.ray for request in requests)
    try:
        for members in pools.values():
            found = _run_pool([requests[i] for i in members], console, resume)
            for i, error in zip(members, found, strict=True):
                errors[i] = error
    finally:
        if uses_ray:
            from fresco_dist.runtime import ray_cluster

            ray_cluster.stop_ray()
    return errors


def _run_pool(requests: Sequence[Request], console: Console, resume: bool) -> list[Exception | None]:
    """Prepare all, refuse those that cannot run, run the others as one graph."""
    begun_s = time.time()
    errors: list[Exception | None] = [None] * len(requests)
    runs: dict[int, JobRun] = {}
    gpus_per_worker = 0
    bases: dict[Hashable, Job] = {}
    plans: list[Plan] = []
    for i, request in enumerate(requests):
        folder = RunFolder(request.path)
        if resume and folder.is_done(request.plain_config):
            _print(console, f"done      {request.path}: already")
            continue
        try:
            base = base_key(request.config)
            job, gpus_per_worker = _prepare(request.config, bases.get(base))
            bases.setdefault(base, job)
            gpu_memory_gb = _gpu_memory_gb(job.config.cluster, gpus_per_worker)
            if gpu_memory_gb is not None:
                check_fit(job.plan, job.config, gpu_memory_gb)
            if not request.config.plan_only:
                folder.prepare()
        except InputError as error:
            errors[i] = error
            continue
        runs[i] = JobRun(job, request.plain_config, folder)
        if job.plan not in plans:  # the points of a sweep often have the same
            plans.append(job.plan)
            _print(console, _describe(job))
    if len(runs) > 1:
        _print(
            console,
            describe_sharing([run.job.config for run in runs.values()], [run.job.plan for run in runs.values()]),
        )
    if runs and not requests[0].config.plan_only:
        found = PoolRun(list(runs.values()), console, begun_s).run(gpus_per_worker)
        for i, error in zip(runs, found, strict=True):
            errors[i] = error
    return errors


def _prepare(config: Config, base: Job | None) -> tuple[Job, int]:
    """What the workers are told, and the GPUs that each needs; raises InputError.

    A job that differs from `base` in the fusion alone has its pictures, so that they are held and sent once.
    """
    image = None if base else read_image(Path(config.image).expanduser() if config.image else ASSETS / "fresco.png")
    image_px = base.plan.image_px if base else image.size
    spec = models.read_spec(config.model)
    if config.plan_only and config.cluster.num_workers:  # a plan may be for a cluster that is not here
        num_workers, gpus_per_worker = config.cluster.num_workers, 0
    else:
        num_workers, gpus_per_worker = _choose_workers(config.cluster)
    if config.dino_path:
        check_dino(Path(config.dino_path).expanduser())
    if base:  # the same windows, whatever the planner chose, or they could not be compared
        config = replace(config, tiles=base.config.tiles)
    steps = prior_steps(config.fusion, config.sampler.num_steps)
    plan = make_plan(config, spec, image_px, num_workers, steps)
    if config.tiles.fit:
        config = fit_overlap(config, plan)
        plan = make_plan(config, spec, image_px, num_workers, steps)
    if config.tiles.batch is None:
        gpu_memory_gb = _gpu_memory_gb(config.cluster, gpus_per_worker)
        config = fit_batch(config, plan, gpu_memory_gb)
        plan = make_plan(config, spec, image_px, num_workers, steps)
        if gpu_memory_gb is None:
            note = "tiles.batch is 1 since no GPU is known here; cluster.gpu_memory_gb tells of one"
            plan = replace(plan, notes=(*plan.notes, note))
    if base:
        return replace(base, config=config, plan=plan, activity=_activity(config, plan)), gpus_per_worker
    last = read_last_image(Path(config.image_last).expanduser(), image.size) if config.image_last else None
    job = Job(
        config=config,
        plan=plan,
        prompts=(_prompt(config), config.negative_prompt)[: len(plan.branches)],
        canvas_image=resize_image(image, plan.canvas_px),
        thumbnail=resize_image(image, plan.native_px),
        activity=_activity(config, plan),
        canvas_last=resize_image(last, plan.canvas_px) if last else None,
        thumbnail_last=resize_image(last, plan.native_px) if last else None,
    )
    return job, gpus_per_worker


def _describe(job: Job) -> str:
    """The plan and its schedule; with `plan_only` also the tasks, the other mode, and what would help."""
    config, plan = job.config, job.plan
    modes = [config.dispatch.mode]
    lines = [plan.describe(), worker_memory(plan, config.model).describe()]
    if config.plan_only:
        modes += [mode for mode in DispatchMode if mode not in modes]
        lines.append(describe_tasks(plan, config.dispatch.mode))
    lines.append(describe_schedule(plan, modes))
    if config.plan_only and (advice := describe_advice(config, plan)):
        lines.append(advice)
    return "\n".join(lines)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _gpu_memory_gb(cluster: ClusterConfig, gpus_per_worker: int) -> float | None:
    """Memory of the GPU that is given, or of the smallest one here; None if no GPU is known."""
    if cluster.gpu_memory_gb is None and gpus_per_worker and torch.cuda.is_available():  # workers may be elsewhere
        devices = range(torch.cuda.device_count())
        return min(torch.cuda.get_device_properties(device).total_memory for device in devices) / 1e9
    return cluster.gpu_memory_gb


def _choose_workers(cluster: ClusterConfig) -> tuple[int, int]:
    """(number of workers, GPUs per worker); raises InputError if the cluster has too little."""
    if cluster.executor is ExecutorKind.inprocess:
        return 1, 1 if torch.cuda.is_available() and cluster.gpus_per_worker != 0 else 0
    from fresco_dist.runtime import ray_cluster

    return ray_cluster.choose_num_workers(cluster, ray_cluster.resources(cluster))


def _prompt(config: Config) -> str:
    if config.prompt is not None or config.image:
        return config.prompt or ""
    return (ASSETS / "fresco.txt").read_text().strip()


def _activity(config: Config, plan: Plan) -> np.ndarray | None:
    """The activity map where fusion needs it, or where one is given to be measured by."""
    path = config.fusion.activity_map
    if path is None and config.fusion.method is not FusionMethod.regional:
        return None
    if path is None and config.image:
        raise InputError(
            "fusion.activity_map must be a picture, light where motion is expected, for your own image; got null."
        )
    source = Path(path).expanduser() if path else ASSETS / "fresco_activity.png"
    return read_activity_map(source, plan.image_px, plan.canvas.canvas)
