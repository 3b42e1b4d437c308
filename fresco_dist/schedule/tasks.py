"""The run as a graph of tasks, to be read beside Algorithm 1 of the paper: what depends on what.

Where a task runs is decided in `dispatch`, what it does stands in `runtime.worker` and `runtime.step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fresco_dist.config import DispatchMode
from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.plan import Plan, counting

VAE_COST = 0.1  # of encoding or decoding a tile, in forwards: an estimate, for the dispatcher's decisions only


@dataclass(frozen=True)
class Owners:
    """Which job a job's tasks belong to: the first that does the same.

    `base`: same picture, model, windows, sampler and seed. `canvas[k]`: also the same canvas before step k.
    """

    base: int
    canvas: tuple[int, ...]  # num_steps + 1

    @classmethod
    def alone(cls, job: int, num_steps: int) -> "Owners":
        """Of a job that shares nothing."""
        return cls(job, (job,) * (num_steps + 1))


def jobs_together(plan: Plan, mode: DispatchMode) -> int:
    """How many jobs run at a time, the others after them: enough for three forwards side by side per worker.

    And at least three where workers wait for each other. More would make the first video late; with these, simulations
    of 4 to 8 jobs, 25 to 72 windows and 8 to 64 workers, also unequal ones, are within 2% of all jobs at once.
    """
    width = plan.num_forwards / plan.critical_path
    return max(1 if mode is DispatchMode.wavefront else 3, int(3 * plan.num_workers / width))


def open_canvases(plan: Plan, mode: DispatchMode, owners: Sequence[Owners]) -> int:
    """How many canvases a worker holds at once, of jobs with these owners; at least 1.

    One for each base that has begun and not ended, `jobs_together` and one at most; with an all-reduce as many as the
    base's jobs have different ones.
    """
    canvases: dict[int, set[int]] = {}
    for owner in owners:
        canvases.setdefault(owner.base, set()).add(owner.canvas[-1])
    held = sorted((len(of) if mode is DispatchMode.allreduce else 1 for of in canvases.values()), reverse=True)
    return max(1, sum(held[: jobs_together(plan, mode) + 1]))


def run_graph(plans: Sequence[Plan], owners: Sequence[Owners], mode: DispatchMode) -> Graph:
    """All jobs as one graph, each from its picture to its pixels; tasks with the same owner are one task."""
    graph = Graph(num_together=max(jobs_together(plan, mode) for plan in plans))
    load = graph.add(Task("load"), place=Place.EVERYWHERE, cost=0.0)
    ends: dict[int, list[Task]] = {}
    for plan, owner in zip(plans, owners, strict=True):
        begin, prior = _add_inputs(graph, plan, owner.base, load)
        denoise = _add_wavefront if mode is DispatchMode.wavefront else _add_allreduce
        stepped = denoise(graph, plan, owner, begin, prior)
        ends.setdefault(owner.base, []).extend(_add_decoding(graph, plan, owner, mode, stepped))
    for base, last in ends.items():
        graph.add(Task("end", job=base), after=last, place=Place.EVERYWHERE, cost=0.0)
    return graph


def _add_inputs(graph: Graph, plan: Plan, base: int, load: Task) -> tuple[Task, list[Task]]:
    """Encode prompts and picture; animate the thumbnail, one task per step and branch, if the prior counts at all.

    The thumbnail's clip is needed by the first fusion only, so it is made while the first windows are predicted
    (METHOD 6.1).
    """
    prompt = graph.add(Task("encode_prompt", job=base), after=[load], cost=VAE_COST)
    prior: list[Task] = []
    if plan.num_prior_steps:
        thumbnail = graph.add(Task("encode_thumbnail", job=base), after=[load], cost=VAE_COST)
        given, places = {"embeddings": [prompt], "encoded": [thumbnail]}, (thumbnail, prompt)
        for step in range(plan.num_prior_steps):
            prior = [  # each branch stays where it begins: no other task comes between its steps
                graph.add(
                    Task("prior", step, 0, branch, job=base), inputs=given | {"previous": prior}, place=places[branch]
                )
                for branch in counting(plan.branches, plan.prior.stages[step])
            ]
        last = Task("prior", plan.num_prior_steps, 0, 0, job=base)
        prior = [graph.add(last, inputs=given | {"previous": prior}, place=thumbnail, cost=0.0)]
    if plan.prior_tiles:
        graph.add(Task("decode_prior", job=base), inputs={"prior": prior}, cost=VAE_COST)
    num_tiles = sum(map(len, plan.canvas.encode_tiles))
    encoded = [graph.add(Task("encode", index=i, job=base), after=[load], cost=VAE_COST) for i in range(num_tiles)]
    given = {"embeddings": [prompt], "encoded": encoded}
    begin = graph.add(Task("begin", job=base), inputs=given, place=Place.EVERYWHERE, cost=0.0)
    return begin, prior


def _add_allreduce(graph: Graph, plan: Plan, owner: Owners, begin: Task, prior: list[Task]) -> list[Task]:
    """S steps of: predict all windows, then all workers together fuse with the prior and step the canvas."""
    stepped = begin
    job = owner.canvas[-1]
    batches = plan.canvas.batches
    for step in range(plan.canvas.num_steps):
        branches = counting(plan.branches, plan.canvas.stages[step])
        predictions = [
            graph.add(Task("predict", step, i, branch, job=job), after=[stepped], cost=float(len(windows)))
            for i, windows in enumerate(batches)
            for branch in branches
        ]
        inputs = {"prior": prior if plan.prior_steps[step] else []}
        commit = Task("commit", step, job=job)
        stepped = graph.add(commit, inputs=inputs, after=predictions, place=Place.EVERYWHERE, cost=0.0)
    return [stepped]


def _add_wavefront(graph: Graph, plan: Plan, owner: Owners, begin: Task, prior: list[Task]) -> list[Task]:
    """S steps without a barrier: windows are predicted when the cells inside them have stepped, a cell is fused and
    stepped when the windows that count in it are predicted (METHOD 6.2)."""
    layout = plan.canvas
    cells_of = [layout.cells_of_batch(i) for i in range(len(layout.batches))]
    batches_of = [layout.batches_of(cell) for cell in layout.cells]
    cells: list[Task] = []
    for step in range(layout.num_steps):
        branches = counting(plan.branches, layout.stages[step])
        predictions = {
            (i, branch): graph.add(
                Task("predict", step, i, branch, job=owner.canvas[step]),
                inputs={"cells": [cells[cell] for cell in cells_of[i]] if cells else []},
                after=[begin],
                cost=float(len(windows)),
            )
            for i, windows in enumerate(layout.batches)
            for branch in branches
        }
        cells = [
            graph.add(
                Task("fuse", step, cell, job=owner.canvas[step + 1]),
                inputs={
                    "before": cells[cell : cell + 1],
                    "predictions": [predictions[i, branch] for i in batches_of[cell] for branch in branches],
                    "prior": prior if plan.prior_steps[step] else [],
                },
                after=[begin],
                cost=0.0,
            )
            for cell in range(len(layout.cells))
        ]
    return cells


def _add_decoding(graph: Graph, plan: Plan, owner: Owners, mode: DispatchMode, stepped: list[Task]) -> list[Task]:
    """Collect the latents; decode each VAE tile, then blend it with the edges of the tiles above and to the left.

    `stepped` are the last cells, or the last commit. A wavefront decodes a tile when its cells are there; after an
    all-reduce the latents are safe before anything is decoded.
    """
    job, layout, wavefront = owner.canvas[-1], plan.canvas, mode is DispatchMode.wavefront
    collect = Task("collect", job=job)
    graph.add(collect, inputs={"cells": stepped if wavefront else []}, after=stepped, cost=0.0)
    blended: dict[tuple[int, int], Task] = {}
    for row, tiles in enumerate(plan.decode_tiles):
        for column, tile in enumerate(tiles):
            index = row * len(tiles) + column
            cells = {"cells": [stepped[cell] for cell in layout.cells_of(tile)] if wavefront else []}
            after = [] if wavefront else [collect]
            decode = graph.add(Task("decode", index=index, job=job), inputs=cells, after=after, cost=VAE_COST)
            given = {
                "tile": [decode],
                "above": [blended[row - 1, column]] if row else [],
                "left": [blended[row, column - 1]] if column else [],
            }
            blended[row, column] = graph.add(Task("blend", index=index, job=job), inputs=given, cost=0.0)
    return [collect, *blended.values()]
