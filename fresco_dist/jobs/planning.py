"""Plans and refusals, and what is printed of them: workers, windows, memory. Nothing is loaded or started."""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fresco_dist import models
from fresco_dist.config import Config, DispatchMode, TilesConfig
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.method.prior_strength import prior_steps
from fresco_dist.models.dino import check_dino
from fresco_dist.runtime import machine
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


class Planner:
    """Plans runs that go together on a number of workers, and prints what is different."""

    def __init__(self, inputs: Inputs, console: Console, num_workers: int, gpus_per_worker: int) -> None:
        self._inputs, self._console = inputs, console
        self._num_workers, self._gpus_per_worker = num_workers, gpus_per_worker
        self._tiles: dict[Hashable, TilesConfig] = {}
        self._told: list[Plan] = []  # the points of a sweep often have the same

    def plan(self, config: Config) -> tuple[Config, Plan]:
        """The plan of a run, and the configuration with what the planner chose; prints what needs no simulation.

        Runs that differ in the fusion alone get the first one's windows, or they could not be compared. Raises
        InputError for what cannot run.
        """
        if config.dino_path:
            check_dino(Path(config.dino_path).expanduser())
        base = base_key(config)
        config = replace(config, tiles=self._tiles.get(base, config.tiles))
        config, plan = self._choose_grid(config)
        self._tiles.setdefault(base, config.tiles)
        self._inputs.check(config, plan)
        gpu_memory_gb = self._gpu_memory_gb(config)
        if gpu_memory_gb is not None:
            check_fit(plan, config, gpu_memory_gb)
        if plan not in self._told:
            self._told.append(plan)
            self._print(plan.describe(), worker_memory(plan, config.model).describe())
        return config, plan

    def tell_schedule(self, planned: Iterable[tuple[Config, Plan]]) -> None:
        """Print how the runs will go; with `plan_only` also their tasks, the other mode, and what would help."""
        configs, plans = zip(*planned, strict=True)
        for i, (config, plan) in enumerate(zip(configs, plans)):
            if plan in plans[:i]:
                continue
            modes = [config.dispatch.mode]
            if config.plan_only:
                modes += [mode for mode in DispatchMode if mode not in modes]
                self._print(describe_tasks(plan, config.dispatch.mode))
            self._print(describe_schedule(plan, modes))
            if config.plan_only:
                self._print(describe_advice(config, plan))
        if len(plans) > 1:
            self._print(describe_sharing(configs, plans))

    def _choose_grid(self, config: Config) -> tuple[Config, Plan]:
        """With the overlap and the batch that fill the workers, where they are left to the planner."""
        spec, image_px = models.read_spec(config.model), self._inputs.image(config).size
        steps = prior_steps(config.fusion, config.sampler.num_steps)
        plan = make_plan(config, spec, image_px, self._num_workers, steps)
        if config.tiles.fit:
            config = fit_overlap(config, plan)
            plan = make_plan(config, spec, image_px, self._num_workers, steps)
        if config.tiles.batch is None:
            gpu_memory_gb = self._gpu_memory_gb(config)
            config = fit_batch(config, plan, gpu_memory_gb)
            plan = make_plan(config, spec, image_px, self._num_workers, steps)
            if gpu_memory_gb is None:
                note = "tiles.batch is 1 since no GPU is known here; cluster.gpu_memory_gb tells of one"
                plan = replace(plan, notes=(*plan.notes, note))
        return config, plan

    def _gpu_memory_gb(self, config: Config) -> float | None:
        """Memory of the GPU that is given, or of the smallest one here; None if no GPU is known."""
        if config.cluster.gpu_memory_gb is None and self._gpus_per_worker:  # workers may be elsewhere
            return machine.gpu_memory_gb()
        return config.cluster.gpu_memory_gb

    def _print(self, *lines: str) -> None:
        for line in filter(None, lines):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
