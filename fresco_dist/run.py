"""One run, from a checked configuration to a complete run folder.

Reads the picture and the model's configuration, prints the plan, starts workers, denoises, saves the latents, decodes,
writes. Whatever happens, the workers are gone when `run` returns or raises.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fresco_dist import backbones
from fresco_dist.config import ClusterConfig, Config, ExecutorKind, FusionMethod, InputError
from fresco_dist.dispatch import Graph, Task
from fresco_dist.engine import Receiver, decoding_graph, denoising_graph, execute
from fresco_dist.executor import Executor
from fresco_dist.inprocess_executor import InProcessExecutor
from fresco_dist.media import (
    contact_sheet,
    read_activity_map,
    read_image,
    read_last_image,
    resize_image,
    write_video,
)
from fresco_dist.memory import check_fit, worker_memory
from fresco_dist.plan import Plan, make_plan
from fresco_dist.prior_strength import needs_prior
from fresco_dist.progress import Phase, ProgressLine
from fresco_dist.run_folder import PRODUCTS, RunFolder
from fresco_dist.simulate import simulate_denoising
from fresco_dist.trace import TaskRecord, schedule_summary, span_s
from fresco_dist.worker import Job

ASSETS = files("fresco_dist") / "assets"


def run(config: Config, plain_config: dict, path: Path, console: Console) -> None:
    """Animate one picture into the run folder `path`; `plain_config` is the configuration as run.json records it.

    With `plan_only`, print the plan and return. Raises InputError for what the user can mend, WorkerError for a worker
    that is lost or fails.
    """
    if config.cluster.executor is ExecutorKind.inprocess:
        _run(config, plain_config, path, console)
        return
    from fresco_dist import ray_executor

    try:
        _run(config, plain_config, path, console)
    finally:
        ray_executor.stop_ray()


def _run(config: Config, plain_config: dict, path: Path, console: Console) -> None:
    started_s = time.time()
    image = read_image(Path(config.image).expanduser() if config.image else Path(str(ASSETS / "fresco.png")))
    spec = backbones.read_spec(config.model)
    if config.plan_only and config.cluster.num_workers:  # a plan may be for a cluster that is not here
        num_workers, gpus_per_worker = config.cluster.num_workers, 0
    else:
        num_workers, gpus_per_worker = _choose_workers(config.cluster)
    plan = make_plan(config, spec, image.size, num_workers, needs_prior(config.fusion, config.sampler.num_steps))
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
    console.print(plan.describe(), highlight=False, markup=False, soft_wrap=True)
    console.print(worker_memory(plan, config.model).describe(), highlight=False, soft_wrap=True)
    gpu_memory_gb = config.cluster.gpu_memory_gb or (_smallest_gpu_gb() if gpus_per_worker else None)
    if gpu_memory_gb is not None:
        check_fit(plan, config, gpu_memory_gb)
    schedule = simulate_denoising(plan)
    console.print(
        f"schedule  {schedule['makespan_s']:g} forwards long, at best {schedule['lower_bound_s']:.1f}:"
        f" workers {schedule['busy_fraction']:.0%} busy while denoising",
        highlight=False,
        soft_wrap=True,
    )
    if config.plan_only:
        return
    folder = RunFolder(path)
    folder.prepare()
    records: list[TaskRecord] = []
    try:
        facts = _animate(job, folder, records, gpus_per_worker, console)
    except BaseException as error:
        with suppress(OSError):  # a full disk must not hide what happened
            folder.write_run("failed", plain_config, plan, error=str(error) or "interrupted")
            folder.write_trace(records)
        raise
    timings_s = {"total": time.time() - started_s} | facts.pop("timings_s")
    folder.write_run("done", plain_config, plan, timings_s=timings_s, **facts)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings_s.items())
    console.print(f"done      {phases}", highlight=False, soft_wrap=True)
    for name in PRODUCTS:
        console.print(f"          {folder.path / name}", highlight=False, soft_wrap=True)


def _choose_workers(cluster: ClusterConfig) -> tuple[int, int]:
    """(number of workers, GPUs per worker); raises InputError if the cluster has too little."""
    if cluster.executor is ExecutorKind.inprocess:
        return 1, 1 if torch.cuda.is_available() and cluster.gpus_per_worker != 0 else 0
    from fresco_dist import ray_executor

    return ray_executor.choose_num_workers(cluster, ray_executor.resources(cluster))


def _smallest_gpu_gb() -> float | None:
    """Memory of the smallest GPU of this machine in GB; None if it has none (workers may be elsewhere)."""
    if not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    return min(torch.cuda.get_device_properties(device).total_memory for device in devices) / 1e9


def _start_workers(job: Job, gpus_per_worker: int) -> Executor:
    if job.config.cluster.executor is ExecutorKind.inprocess:
        return InProcessExecutor(job, use_gpu=gpus_per_worker > 0)
    from fresco_dist.ray_executor import RayExecutor

    return RayExecutor(job, num_workers=job.plan.num_workers, gpus_per_worker=gpus_per_worker)


def _animate(job: Job, folder: RunFolder, records: list[TaskRecord], gpus_per_worker: int, console: Console) -> dict:
    """Denoise, save the latents, decode, write; what run.json says of it. `records` grows as tasks finish."""
    plan = job.plan
    started_s = time.time()
    executor = _start_workers(job, gpus_per_worker)
    ready_s = time.time()
    try:
        latents_CTHW, (attention_backend, compile_s) = _denoise(plan, executor, records, console)
        digest = folder.write_latents(latents_CTHW)
        frames = _decode(plan, executor, records, console)
    finally:
        executor.close()
    decoded_s = time.time()
    fps = job.config.video.fps
    folder.write("video.mp4", lambda partial: write_video(partial, frames, plan.output_px, fps))
    folder.write("contact_sheet.png", contact_sheet(job.canvas_image, frames).save)
    folder.write_trace(records)
    return {
        "latents_sha256": digest,
        "schedule": schedule_summary(records, plan.num_workers),
        "peak_memory_gb": max(record.peak_memory_gb for record in records),
        "attention_backend": attention_backend,
        "timings_s": {
            "start": ready_s - started_s,
            "load": span_s(records, "load"),
            "compile": compile_s,  # a part of load
            "encode": span_s(records, "encode_prompt", "encode"),
            "prior": span_s(records, "encode_thumbnail", "prior"),
            "steps": span_s(records, "predict", "commit"),
            "decode": span_s(records, "decode", "blend", "pixels"),
            "write": time.time() - decoded_s,
        },
    }


def _denoise(
    plan: Plan, executor: Executor, records: list[TaskRecord], console: Console
) -> tuple[np.ndarray, tuple[str, float]]:
    """Final latents (C, T, H, W); the attention backend in use and the seconds that compilation took."""
    results: dict[str, Any] = {}

    def keep(task: Task, result: Any) -> None:
        results[task.kind] = result

    num_tiles = len(plan.canvas.windows) * len(plan.branches) * plan.canvas.num_steps
    phases = {
        "encode": Phase("encode", sum(map(len, plan.canvas.encode_tiles))),
        "predict": Phase("denoise", num_tiles, plan.canvas.num_steps),
    }
    progress = ProgressLine(console, phases)
    _execute(denoising_graph(plan), executor, records, progress, {"collect": keep, "load": keep})
    return results["collect"], results["load"]


def _decode(plan: Plan, executor: Executor, records: list[TaskRecord], console: Console) -> np.ndarray:
    """The decoded clip, uint8 (F, H, W, 3)."""
    frames = np.zeros((plan.num_frames, plan.canvas_px[1], plan.canvas_px[0], 3), dtype=np.uint8)
    tiles = [tile.scaled(plan.spec.spatial_factor) for row in plan.decode_tiles for tile in row]

    def paste(task: Task, block: np.ndarray) -> None:
        tile = tiles[task.index]
        frames[:, tile.top : tile.top + block.shape[1], tile.left : tile.left + block.shape[2]] = block

    progress = ProgressLine(console, {"decode": Phase("decode", len(tiles))})
    _execute(decoding_graph(plan), executor, records, progress, {"pixels": paste})
    return frames


def _execute(
    graph: Graph,
    executor: Executor,
    records: list[TaskRecord],
    progress: ProgressLine,
    receivers: Mapping[str, Receiver],
) -> None:
    def observe(record: TaskRecord) -> None:
        records.append(record)
        progress(record)

    with progress:
        execute(graph, executor, observe, receivers)


def _prompt(config: Config) -> str:
    if config.prompt is not None or config.image:
        return config.prompt or ""
    return (ASSETS / "fresco.txt").read_text().strip()


def _activity(config: Config, plan: Plan) -> np.ndarray | None:
    if config.fusion.method is not FusionMethod.regional:
        return None
    path = config.fusion.activity_map
    if path is None and config.image:
        raise InputError(
            "fusion.activity_map must be a picture, light where motion is expected, for your own image; got null."
        )
    source = Path(path).expanduser() if path else Path(os.fspath(ASSETS / "fresco_activity.png"))
    return read_activity_map(source, plan.image_px, plan.canvas.canvas)
