"""A run of four real actors that loses a worker, and a second one while the others form a new group.

Run by test_ray.py in a process of its own, since Ray reads its environment once. Prints who was lost, and why.
"""

import os
import signal

import ray
import torch
from make_jobs import denoise, graph_of, make_job

from fresco_dist.runtime import ray_cluster, ray_executor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import execute


class UnluckyExecutor(ray_executor.RayExecutor):
    """Loses one worker at the first commit, and another when the others form their next group."""

    def __init__(self, job: Job) -> None:
        self.pids: list[int] = []
        ray_cluster.start_ray(job.config.cluster)
        super().__init__(job.config.cluster, job.config.model.backbone, num_workers=4, gpus_per_worker=0)
        self.give([job])
        self.pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in self._actors.values()])

    def submit(self, worker, task, inputs):
        if task.kind == "commit" and 1 in self._actors:
            self._kill(1)
        super().submit(worker, task, inputs)

    def _form_group(self) -> None:
        if self.pids and 2 in self._actors:
            self._kill(2)
        super()._form_group()

    def _kill(self, worker: int) -> None:
        if self.pids[worker]:
            os.kill(self.pids[worker], signal.SIGKILL)
            self.pids[worker] = 0


def main() -> None:
    ray_executor.JOIN_TIMEOUT_S = 10.0
    small = ["model=synthetic", "model.forward_s=0.05", "tiles.window=[32,32]", "fusion=multidiffusion"]
    job = make_job(None, *small, "dispatch.mode=allreduce", "cluster.cpus_per_worker=0.2")
    executor = UnluckyExecutor(job)
    found, losses = [], []
    try:
        receivers = {"collect": lambda task, latents: found.append(torch.tensor(latents))}
        dropped = execute(graph_of(job), executor, lambda record: None, receivers, losses.append)
    finally:
        executor.close()
    assert not dropped and torch.equal(found[-1], denoise(job))
    print("\n".join(f"lost {failure.worker}: {failure.error}" for failure in losses))


if __name__ == "__main__":
    main()
