"""Workers that stay warm between runs on the same cluster."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fresco_dist.config import ClusterConfig, Config, ExecutorKind
from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.job import JobRun
from fresco_dist.jobs.keeper import Keeper
from fresco_dist.jobs.measuring import Measurer
from fresco_dist.jobs.pool_run import PoolRun
from fresco_dist.runtime import machine
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import Executor


class Workers(Executor, Protocol):
    """An executor whose workers take jobs one after another."""

    def give(self, jobs: Sequence[Job], stored: Mapping[str, Any]) -> "Workers":
        """Wait until all workers have started; the tasks that follow are of these jobs. Returns itself.

        `stored`: see Worker.

        Raises WorkerError if one does not start.
        """

    def numerics(self, config: Config) -> Mapping[int, Mapping[str, str]]:
        """What decides the bits of each worker's results, see `runtime.numerics`; waits as `give` does."""

    def answers(self) -> bool:
        """Whether all workers live."""


class PoolSize(NamedTuple):
    """How many workers, and what each is given."""

    num_workers: int
    gpus_per_worker: int


class Pool:
    """Workers of one cluster at a time; its caller's, who closes it. They stay for further runs on the same cluster."""

    def __init__(self) -> None:
        self._executor: Workers | None = None
        self._started: tuple[str, PoolSize] | None = None  # what the workers were started for
        self._uses_ray = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def size(self, cluster: ClusterConfig, *, plan_only: bool = False) -> PoolSize:
        """What the cluster gives; raises InputError if it has too little."""
        if plan_only and cluster.num_workers:  # a plan may be for a cluster that is not here
            return PoolSize(cluster.num_workers, 0)
        if cluster.executor is ExecutorKind.inprocess:
            return PoolSize(1, 1 if cluster.gpus_per_worker != 0 and machine.num_gpus() else 0)
        from fresco_dist.runtime import ray_cluster

        if not self._uses_ray:  # to see what a cluster has, it is joined
            ray_cluster.enter()
            self._uses_ray = True
        return PoolSize(*ray_cluster.choose_num_workers(cluster, ray_cluster.resources(cluster)))

    def start(self, config: Config, size: PoolSize, tell: Callable[[str], object]) -> None:
        """Start workers, unless they are there; `run` waits for them, and they import the model's code meanwhile.

        `tell` takes a line now and then about what is waited for, then and later.
        Raises InputError if the cluster cannot be joined, WorkerError if others hold its resources.
        """
        wanted = (repr(config.cluster), size)
        if self._executor is not None and self._started == wanted and self._executor.answers():
            return
        self.stop_workers()
        self._executor, self._started = start_workers(config, size, tell), wanted

    def run(self, runs: Sequence[JobRun], keeper: Keeper, caller: Caller, begun_s: float) -> list[Exception | None]:
        """Run jobs on the workers that were started; the error of each that failed.

        `begun_s` is when their preparation began, in Unix seconds. Workers of a run that lost some, or did not come to
        its end, are not used again. Raises WorkerError if workers do not start, InputError for what they refuse.
        """
        assert self._executor is not None
        measurer = Measurer(self._busy_gpus(runs[0].job.config))
        together = PoolRun(runs, keeper, caller, begun_s, measurer)
        with together:
            try:
                dropped = together.run(self._executor)
            finally:
                keeper.flush()  # while those are there that have made it
                if not together.is_whole:  # at once: nobody waits for what they are at
                    self.stop_workers()
        return together.conclude(dropped)

    def _busy_gpus(self, config: Config) -> int | None:
        """How many GPUs of this machine the workers have; None if others may have the rest."""
        assert self._started is not None
        _, size = self._started
        return size.num_workers * size.gpus_per_worker if config.cluster.address is None else None

    def stop_workers(self) -> None:
        """End the workers, if there are any."""
        executor, self._executor, self._started = self._executor, None, None
        if executor is not None:
            executor.close()

    def close(self) -> None:
        """End the workers, and the Ray that was started for them; one that was joined is left."""
        try:
            self.stop_workers()
        finally:
            if self._uses_ray:
                from fresco_dist.runtime import ray_cluster

                self._uses_ray = False
                ray_cluster.leave()


def start_workers(config: Config, size: PoolSize, tell: Callable[[str], object]) -> Workers:
    """The executor that the configuration asks for; workers of their own processes are still starting."""
    if config.cluster.executor is ExecutorKind.inprocess:
        from fresco_dist.runtime.inprocess_executor import InProcessExecutor

        return InProcessExecutor(use_gpu=size.gpus_per_worker > 0)
    from fresco_dist.runtime import ray_cluster
    from fresco_dist.runtime.ray_executor import RayExecutor

    ray_cluster.start_ray(config.cluster)
    return RayExecutor(config.cluster, config.model.backbone, **size._asdict(), tell=tell)
