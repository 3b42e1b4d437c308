"""The run as a graph of tasks, to be read beside Algorithm 1 of the paper: what depends on what.

Where a task runs is decided in `dispatch`, what it does stands in `runtime.worker` and `runtime.step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fresco_dist.config import DispatchMode
from fresco_dist.method.grid import Window, flat, tile_cores
from fresco_dist.method.level import Guide, Level, Source, Step, part_below
from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.plan import Plan

VAE_COST = 0.1  # of encoding or decoding a tile, in forwards: an estimate, for the dispatcher's decisions only


@dataclass(frozen=True)
class Owners:
    """Which job a job's tasks belong to: the first that does the same.

    `base`: same picture, model, windows, sampler and seed. `canvas[k]`: also the same canvas of the last level before
    step k. `texts`: for each of its prompts, the first job with that text, and which of that one's it is.
    """

    base: int
    canvas: tuple[int, ...]  # num_steps + 1
    texts: tuple[tuple[int, int], ...]

    def of(self, level: int, step: int, plan: Plan) -> int:
        """Whose the canvas of a level before a step is; -1: after the last one."""
        return self.canvas[step] if level == plan.top else self.base

    @classmethod
    def alone(cls, job: int, plan: Plan) -> "Owners":
        """Of a job that shares nothing."""
        return cls(job, (job,) * (plan.canvas.num_steps + 1), ((job, 0), (job, 1)))


def jobs_together(plan: Plan, mode: DispatchMode) -> int:
    """How many jobs run at a time, the others after them: enough for three forwards side by side per worker.

    And at least three where workers wait for each other. More would make the first video late; with these, simulations
    of 4 to 8 jobs, 25 to 72 windows and 8 to 64 workers, also unequal ones, are within 2% of all jobs at once.
    """
    width = plan.cost / plan.critical_path
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
    """All jobs as one graph, each from its picture to its pixels; tasks with the same owner are one task.

    `mode` is how the windows of the last level meet; those of the levels below do cell by cell.
    """
    graph = Graph(num_together=max(jobs_together(plan, mode) for plan in plans))
    load = graph.add(Task("load"), place=Place.EVERYWHERE, cost=0.0)
    encoders = _add_encoders(graph, plans, owners, load)
    for plan, owner in zip(plans, owners, strict=True):
        ends: dict[int, _Level] = {}
        for i in plan.needed:
            replicated = mode is DispatchMode.allreduce and i == plan.top
            ends[i] = _Level(graph, plan, owner, i, ends, replicated)
            ends[i].add_inputs(load, encoders)
            ends[i].add_steps()
            ends[i].add_decoding()
    return graph


def _add_encoders(graph: Graph, plans: Sequence[Plan], owners: Sequence[Owners], load: Task) -> list[Task]:
    """Encode each text and each picture once, all of them on one worker, one after the other.

    They enter its queue before any canvas begins: what it loaded for them has gone by then.
    """
    tasks = [task for plan, owner in zip(plans, owners, strict=True) for task in _texts(plan, owner)]
    for plan, owner in zip(plans, owners, strict=True):
        if plan.spec.embeds_pictures:
            tasks += [Task("embed_picture", level=level, job=owner.base) for level in plan.needed]
    tasks = list(dict.fromkeys(tasks))
    for task in tasks:
        graph.add(task, after=[load], place=Place.ANY if task == tasks[0] else tasks[0], cost=VAE_COST)
    return tasks


def _texts(plan: Plan, owner: Owners) -> list[Task]:
    """Those of the prompts that windows are predicted for."""
    return [Task("encode_text", index=prompt, job=job) for job, prompt in owner.texts[: plan.num_prompts]]


class _Level:
    """Adds the tasks of one level of a job."""

    def __init__(
        self, graph: Graph, plan: Plan, owner: Owners, index: int, below: dict[int, "_Level"], replicated: bool
    ) -> None:
        self._graph, self._plan, self._owner, self._index, self._below = graph, plan, owner, index, below
        self._level: Level = plan.levels[index]
        self._replicated = replicated  # windows meet in an all-reduce
        self._roots: dict[int, Task] = {}  # of a level of one window: where each branch was predicted first, and stays
        self._cells: list[Task] = []  # the canvas after the last step so far; none: noise, which each worker can make
        self._canvas: Task | None = None  # or the same as a state of all workers
        self._blended: list[Task] = []  # the decoded tiles

    def add_inputs(self, load: Task, encoders: list[Task]) -> None:
        """Encode the picture, and bring to all workers what every step takes."""
        base, index = self._owner.base, self._index
        tiles = [Task("encode", index=i, level=index, job=base) for i in range(len(flat(self._level.encode_tiles)))]
        encoded = [self._graph.add(tile, after=[load], cost=VAE_COST) for tile in tiles]
        pictures = [task for task in encoders if task == Task("embed_picture", level=index, job=base)]
        self._begin = self._graph.add(
            Task("begin", level=index, job=base),
            inputs={"texts": _texts(self._plan, self._owner), "embeds": pictures, "encoded": encoded},
            place=Place.EVERYWHERE,
            cost=0.0,
        )

    def add_steps(self) -> None:
        """All steps, from the start on."""
        level = self._level
        self._incidence: dict[tuple[int, int], tuple[list, list]] = {}  # of windows and cells, by grid and batches
        if self._replicated:
            self._canvas = self._add_start(-1, level.whole, Place.EVERYWHERE)
        elif level.steps[0].residual:
            self._cells = [self._add_start(cell, window, Place.ANY) for cell, window in enumerate(level.cells)]
        for k in range(level.first_step, level.num_steps):
            (self._step_replicated if self._replicated else self._step_cells)(k)

    def _task(self, kind: str, step: int, index: int = -1, branch: int = -1, *, after: bool = False) -> Task:
        """A task on the canvas before a step, or on that after it."""
        job = self._owner.of(self._index, step + after, self._plan)
        return Task(kind, step, index, branch, self._index, job)

    def _add_start(self, cell: int, part: Window, place: Place) -> Task:
        """A cell before the first step, where that is more than noise; or, on every worker, the whole canvas."""
        task = self._task("start", self._level.first_step, cell)
        given = {"residual": self._covering(self._level.steps[0].residual, part)}
        states, beside = {"denoiser": self._begin}, place is Place.ANY
        return self._graph.add(task, inputs=given, states=states, place=place, cost=0.0, beside=beside)

    def _guides(self, step: int, part: Window) -> dict[str, list[Task]]:
        """What the fusion of a step takes from levels below, and what pulls the canvas after it, before the next."""
        level = self._level
        guides = {"prior": level.at(step).prior, "residual": level.residual_after(step)}
        return {name: self._covering(guide, part) for name, guide in guides.items()}

    def _covering(self, guide: Guide | None, part: Window) -> list[Task]:
        """What holds a guide's source there: cells of the level below, or tiles of it that are encoded again."""
        if guide is None:
            return []
        source, tiles = guide.source, enumerate(flat(self._level.encode_tiles))
        if source.through_pixels:
            return [self._encode_again(source, i, tile) for i, tile in tiles if tile.overlaps(part)]
        below = self._below[source.level]
        inner = part_below(part, self._level.canvas, below._level.canvas)
        return [below._cells[cell] for cell in below._level.cells_of(inner)]

    def _encode_again(self, source: Source, index: int, tile: Window) -> Task:
        """A VAE tile of this level's size, from the pixels of the level below."""
        task = Task("encode_clip", step=source.level, index=index, level=self._index, job=self._owner.base)
        if task in self._graph.nodes:
            return task
        below = self._below[source.level]
        factor = self._plan.spec.spatial_factor
        sizes = [tuple(side * factor for side in level.canvas) for level in (self._level, below._level)]
        inner = part_below(tile.scaled(factor), *sizes)
        cores = tile_cores(below._level.decode_tiles)
        frames = [blend for core, blend in zip(cores, below._blended) if core.scaled(factor).overlaps(inner)]
        return self._graph.add(task, inputs={"frames": frames}, cost=VAE_COST)

    def _step_replicated(self, k: int) -> None:
        """Predict all windows; then all workers together fuse, with what is taken from below, and step the canvas."""
        states = {"denoiser": self._begin, "canvas": self._canvas}
        predictions = [
            self._graph.add(self._task("predict", k, i, branch), states=states, cost=batch.cost)
            for i, batch in enumerate(self._level.at(k).batches)
            for branch in range(len(batch.branches))
        ]
        self._canvas = self._graph.add(
            self._task("commit", k, after=True),
            inputs=self._guides(k, self._level.whole),
            states=states,
            after=predictions,
            place=Place.EVERYWHERE,
            cost=0.0,
        )

    def _step_cells(self, k: int) -> None:
        """Windows are predicted when the cells inside them have stepped, a cell is fused and stepped when the windows
        that count in it are predicted (METHOD 6.2): no barrier."""
        level, step, cells = self._level, self._level.at(k), self._cells
        cells_of, batches_of = self._incidence_of(step)
        states, chain = (
            {"denoiser": self._begin},
            level.is_one_window,
        )  # then all stay on one worker, between the forwards
        predictions: list[list[Task]] = []
        for i, batch in enumerate(step.batches):
            given = {"cells": [cells[cell] for cell in cells_of[i]] if cells else []}
            predictions.append([])
            for branch in range(len(batch.branches)):
                task, place = self._task("predict", k, i, branch), self._roots.get(branch, Place.ANY)
                self._graph.add(task, inputs=given, states=states, place=place, cost=batch.cost)
                predictions[i].append(task)
                if chain:
                    self._roots.setdefault(branch, task)
        self._cells = [
            self._graph.add(
                self._task("fuse", k, cell, after=True),
                inputs={
                    "before": cells[cell : cell + 1],
                    "predictions": [task for i in batches_of[cell] for task in predictions[i]],
                    **self._guides(k, level.cells[cell]),
                },
                states=states,
                place=self._roots[0] if chain else Place.ANY,
                cost=0.0,
                beside=not chain,
            )
            for cell in range(len(level.cells))
        ]

    def _incidence_of(self, step: Step) -> tuple[list[list[int]], list[list[int]]]:
        """The cells of each batch and the batches of each cell; once for steps that have the same."""
        level = self._level
        key = id(step.grid), id(step.batches)
        if key not in self._incidence:
            cells_of = [level.cells_of_batch(step, i) for i in range(len(step.batches))]
            self._incidence[key] = cells_of, [step.batches_of(cell) for cell in level.cells]
        return self._incidence[key]

    def add_decoding(self) -> None:
        """Collect the video's latents; decode each VAE tile, then blend it with the edges of those above and left.

        Cell by cell, a tile is decoded when its cells are there; after an all-reduce the latents are safe before.
        """
        graph, level, job = self._graph, self._level, self._owner.of(self._index, -1, self._plan)
        # what the steps had in common stays until the replica goes, and no other canvas begins in its place
        states = {"denoiser": self._begin, "canvas": self._canvas} if self._replicated else {}
        after = []
        if self._index == self._plan.top:
            collect = Task("collect", level=self._index, job=job)
            graph.add(collect, inputs={"cells": self._cells}, states=states, cost=0.0)
            after = [collect] * self._replicated
        tiles = level.decode_tiles
        blended = self._blended
        for i, tile in enumerate(flat(tiles)):
            row, column = divmod(i, len(tiles[0]))
            cells = {"cells": [self._cells[cell] for cell in level.cells_of(tile)] if self._cells else []}
            decode = Task("decode", index=i, level=self._index, job=job)
            graph.add(decode, inputs=cells, states=states, after=after, cost=VAE_COST)
            given = {
                "tile": [decode],
                "above": [blended[i - len(tiles[0])]] if row else [],
                "left": [blended[i - 1]] if column else [],
            }
            blended.append(graph.add(Task("blend", index=i, level=self._index, job=job), inputs=given, cost=0.0))
