"""Plans and refusals, and what is printed of them: windows, memory, schedule. Nothing is loaded or started."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fresco_dist import models
from fresco_dist.config import Config, TilesConfig
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.models.dino import check_dino
from fresco_dist.runtime import machine
from fresco_dist.schedule.describe import describe, describe_schedule, describe_sharing
from fresco_dist.schedule.memory import check_fit
from fresco_dist.schedule.outlook import choose_grid
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.sharing import base_key, find_owners
from fresco_dist.schedule.tasks import open_canvases


class Planner:
    """Plans runs that go together on a number of workers, and prints what is different."""

    def __init__(
        self, inputs: Inputs, console: Console, configs: Sequence[Config], num_workers: int, gpus_per_worker: int
    ) -> None:
        self._inputs, self._console = inputs, console
        self._num_workers, self._gpus_per_worker = num_workers, gpus_per_worker
        self._num_canvases = len({owner.canvas[-1] for owner in find_owners(configs)})
        self._tiles: dict[Hashable, TilesConfig] = {}
        self._told: list[Plan] = []  # the points of a sweep often have the same

    def plan(self, config: Config) -> tuple[Config, Plan]:
        """The plan of a run, and the configuration with what the planner chose; prints what needs no simulation.

        Runs that differ in the fusion alone get the first one's windows, or they could not be compared. Raises
        InputError for what cannot run.
        """
        if config.dino_path:
            check_dino(Path(config.dino_path).expanduser())
        base, gpu_memory_gb = base_key(config), self._gpu_memory_gb(config)
        config, plan = choose_grid(
            replace(config, tiles=self._tiles.get(base, config.tiles)),
            models.read_spec(config.model),
            self._inputs.image(config).size,
            self._num_workers,
            gpu_memory_gb,
            self._num_canvases,
        )
        self._tiles.setdefault(base, config.tiles)
        self._inputs.check(config, plan)
        if gpu_memory_gb is not None:
            check_fit(plan, config, gpu_memory_gb, open_canvases(plan, config.dispatch.mode, self._num_canvases))
        if plan not in self._told:
            self._told.append(plan)
            self._print(describe(config, plan, self._num_canvases))
        return config, plan

    def tell_schedule(self, planned: Iterable[tuple[Config, Plan]]) -> None:
        """Print how the runs will go."""
        configs, plans = zip(*planned, strict=True)
        for i, (config, plan) in enumerate(zip(configs, plans)):
            if plan not in plans[:i]:
                self._print(describe_schedule(config, plan))
        if len(plans) > 1:
            self._print([describe_sharing(configs, plans)])

    def _gpu_memory_gb(self, config: Config) -> float | None:
        """Memory of the GPU that is given, or of the smallest one here; None if no GPU is known."""
        if config.cluster.gpu_memory_gb is None and self._gpus_per_worker:  # workers may be elsewhere
            return machine.gpu_memory_gb()
        return config.cluster.gpu_memory_gb

    def _print(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
