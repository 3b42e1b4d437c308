"""Plans and refusals, and what is printed of them: windows, memory, schedule. Nothing is loaded or started."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fresco_dist import models
from fresco_dist.config import ClusterConfig, Config, Dtype, InputError, TilesConfig, expanded
from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.found import Choices
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.media.playing import playing_notes
from fresco_dist.models.dino import check_dino
from fresco_dist.models.sam3 import check_sam3
from fresco_dist.runtime import machine
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.describe import describe, describe_schedule, describe_sharing
from fresco_dist.schedule.idle import idle_if_given
from fresco_dist.schedule.memory import check_fit
from fresco_dist.schedule.outlook import choose_grid
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.tasks import open_canvases


def plan_runs(
    configs: Sequence[Config],
    given: Sequence[Collection[str]],
    num_workers: int,
    gpu_memory_gb: float | None,
    choices: Choices,
    note: Callable[[str], object],
) -> tuple[dict[int, Job], dict[int, Exception], int]:
    """Plan runs that go together on a number of workers, and refuse those that cannot run, before any is started.

    Returns both by their place in `configs`, and how many canvases a worker holds at once. The jobs' configurations say
    what the planner chose. Runs that differ in the fusion alone get the first one's windows, or they could not be
    compared; what the planner has chosen before, on whatever cluster, it chooses again. `given` are the keys that the
    user has set for each. `gpu_memory_gb`: None if no GPU is known. `note` takes what is odd about a run.
    """
    inputs = Inputs()
    tiles: dict[Any, TilesConfig] = {}
    points = [(_but_fusion(config), repr(config.fusion)) for config in configs]
    jobs: dict[int, Job] = {}
    refused: dict[int, Exception] = {}
    choose = partial(choose_grid, num_workers=num_workers, gpu_memory_gb=gpu_memory_gb, points=points)
    for i, config in enumerate(configs):
        base, _ = points[i]
        try:
            job = _plan_one(config, tiles.get(base), inputs, choices, choose)
            tiles.setdefault(base, job.config.tiles)
            odd = (*job.plan.spec.notes, *inputs.notes(job), *idle_if_given(job.config, job.plan, given[i]))
            for text in (*odd, *_format_notes(job.config, job.plan)):
                note(text)
            jobs[i] = job
        except Exception as error:  # a defect, too, costs its own run alone
            refused[i] = error
    ends = [(job.keys.levels[-1].base, job.keys.levels[-1].last) for job in jobs.values()]
    num_open = max((open_canvases(job.plan, job.config.dispatch.mode, ends) for job in jobs.values()), default=1)
    if gpu_memory_gb is not None:
        for i, job in list(jobs.items()):
            try:
                check_fit(job.plan, job.config, gpu_memory_gb, num_open)
            except InputError as error:
                refused[i] = error
                del jobs[i]
    return jobs, refused, num_open


def _plan_one(
    config: Config,
    tiles: TilesConfig | None,
    inputs: Inputs,
    choices: Choices,
    choose: Callable[..., tuple[Config, Plan]],
) -> Job:
    """The job of a run, with the `tiles` of one that it is compared to, or what the planner chooses, now or before.

    `choose` is `choose_grid`, for these workers and all runs.
    """
    if config.dino_path:
        check_dino(expanded(config.dino_path))
    if config.sam3.path is not None:
        check_sam3(expanded(config.sam3.path))
    image_px, chooses = inputs.image_px(config), config.tiles.fit or config.tiles.batch is None
    name = ""
    if chooses:
        files = inputs.fingerprint(config.model), inputs.digest_masks(config)
        name = _name_of_choice(config, image_px, files)
    before = choices.get(name) if chooses else {}
    own = replace(config.tiles, fit=False, **before) if before else config.tiles
    config, plan = choose(
        replace(config, tiles=tiles or own),
        models.read_spec(config.model),
        image_px,
        shares=inputs.shares(config, image_px),
    )
    if before:
        chosen = f"tiles.overlap={plan.overlap:g} and tiles.batch={plan.batch}, as chosen when the run began"
        plan = replace(plan, notes=(*plan.notes, chosen))
    elif chooses and not config.plan_only:
        choices.put(name, plan.overlap, plan.batch)
    return inputs.job(config, plan)


def _but_fusion(config: Config) -> str:
    """Equal for configurations that differ in the fusion and in how the video is written, if windows of all move."""
    values = dataclasses.asdict(config) | {"moves": config.fusion.moves}
    del values["fusion"], values["plan_only"], values["preview"]
    for key in ("fps", "format", "quality"):
        del values["video"][key]
    return json.dumps(values, default=str, sort_keys=True)


def _format_notes(config: Config, plan: Plan) -> Iterator[str]:
    """What is odd about how the video is written; previews are H.264."""
    if plan.canvas.until is not None:
        return
    yield from playing_notes(config.video, plan.output_px)
    if config.video.encoding.bits > 8 and config.model.vae_dtype is not Dtype.float32:
        dtype = config.model.vae_dtype.value
        yield f"model.vae_dtype={dtype} gives video.format={config.video.format.value} about 8 bits; float32 gives all"


def _name_of_choice(config: Config, image_px: tuple[int, int], files: tuple[str, ...]) -> str:
    """Equal for runs that differ in the fusion, in how far or in where and how they run."""
    values = json.loads(_but_fusion(config))
    del values["sampler"]["stop_after"]
    for key in ("cluster", "dispatch", "store"):
        del values[key]
    return hashlib.sha256(json.dumps([values, image_px, files], sort_keys=True).encode()).hexdigest()


def gpu_memory_gb(cluster: ClusterConfig, gpus_per_worker: int) -> float | None:
    """Memory of the GPU that is given, or of the smallest one here; None if no GPU is known."""
    if cluster.gpu_memory_gb is None and gpus_per_worker:  # workers may be elsewhere
        return machine.gpu_memory_gb()
    return cluster.gpu_memory_gb


def tell_plans(caller: Caller, jobs: Sequence[Job], plans: Sequence[Plan], num_open: int) -> None:
    """Say what differs once: what needs no simulation, and with `plan_only` all there is to say.

    `plans` are of what is left to do of the jobs.
    """
    for job, plan in zip(jobs, plans, strict=True):
        texts = tuple(describe(job.config, plan, num_open))
        if (told := (texts, job.plan.notes)) not in caller.told:
            caller.told.add(told)
            caller.say(*texts)
            for note in job.plan.notes:
                caller.note(note)
            if job.config.plan_only:
                for line in describe_schedule(job.config, plan):  # as it is known
                    caller.say(line)
    if len(jobs) > 1:
        caller.say(describe_sharing([job.plan for job in jobs], [job.keys for job in jobs]))


def tell_schedule(caller: Caller, jobs: Sequence[Job], plans: Sequence[Plan]) -> None:
    """Say how a run will go; for several different ones that takes longer than it is worth."""
    if len({tuple(describe(job.config, plan)) for job, plan in zip(jobs, plans, strict=True)}) == 1:
        for line in describe_schedule(jobs[0].config, plans[0]):
            caller.say(line)
