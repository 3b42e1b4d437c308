"""How fast each worker is, as its own forwards tell; without a clock."""

from collections.abc import Iterable

from fresco_dist.schedule.graph import Task


class Pace:
    """How long a worker takes for a forward, learned from its own; one without any is as the others."""

    def __init__(self, num_workers: int) -> None:
        self._seconds, self._cost = [0.0] * num_workers, [0.0] * num_workers

    def learn(self, worker: int, task: Task, cost: float, duration_s: float) -> None:
        """Take note of a finished task; one that took no time was left out."""
        if task.traits.forward and cost > 0 and duration_s > 0:
            self._seconds[worker] += duration_s
            self._cost[worker] += cost

    def relative(self, workers: Iterable[int]) -> dict[int, float]:
        """Seconds per unit of cost, over the mean of all workers."""
        mean = sum(self._seconds) / max(1e-9, sum(self._cost))
        known = {w: self._seconds[w] / self._cost[w] for w in workers if self._cost[w] > 0 and mean > 0}
        return {w: known[w] / mean if w in known else 1.0 for w in workers}
