"""The run as a graph of tasks, to be read beside Algorithm 1 of the paper: what depends on what.

Where a task runs is decided in `dispatch`, what it does stands in `runtime.worker` and `runtime.step`.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fresco_dist.config import DispatchMode
from fresco_dist.method.grid import Tiles, Window, flat, tile_cores
from fresco_dist.method.level import Guide, Level, Rise, Source, Step, part_below, part_to_rise
from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.keys import Keys
from fresco_dist.schedule.plan import Plan

VAE_COST = 0.1  # of encoding or decoding a tile, in forwards: an estimate, for the dispatcher's decisions only


def jobs_together(plan: Plan, mode: DispatchMode) -> int:
    """How many jobs run at a time, the others after them: enough for three forwards side by side per worker.

    And at least three where workers wait for each other. More would make the first video late; with these, simulations
    of 4 to 8 jobs, 25 to 72 windows and 8 to 64 workers, also unequal ones, are within 2% of all jobs at once.
    """
    if not plan.cost:  # all is stored
        return 1 if mode is DispatchMode.wavefront else 3
    width = plan.cost / plan.critical_path
    return max(1 if mode is DispatchMode.wavefront else 3, int(3 * plan.num_workers / width))


def open_canvases(plan: Plan, mode: DispatchMode, points: Iterable[tuple[Hashable, Hashable]]) -> int:
    """How many canvases a worker holds at once; at least 1.

    `points` says of each job with which others it begins, and with which it ends on the same canvas. One canvas for
    each that has begun and not ended, `jobs_together` and one at most; with an all-reduce as many as there are ends.
    """
    ends: dict[Hashable, set[Hashable]] = {}
    for begin, end in points:
        ends.setdefault(begin, set()).add(end)
    held = sorted((len(of) if mode is DispatchMode.allreduce else 1 for of in ends.values()), reverse=True)
    return max(1, sum(held[: jobs_together(plan, mode) + 1]))


def run_graph(
    plans: Sequence[Plan],
    keys: Sequence[Keys],
    mode: DispatchMode,
    stored: Collection[str] = (),
    decoded: Mapping[str, Collection[int]] = MappingProxyType({}),
    *,
    checkpoints: bool = False,
) -> Graph:
    """All jobs as one graph, each from its picture to its pixels; tasks with the same key are one task.

    `mode` is how the windows of the last level meet; those of the levels below do cell by cell. What is `stored` of
    encoded pictures and texts need not be made, nor the tiles of clips that are `decoded`. A level that has its canvas
    given starts from it. With `checkpoints` there is one of the canvas after each step, for who wants to store it.
    """
    graph = Graph(num_together=max(jobs_together(plan, mode) for plan in plans))
    for job, of_job in enumerate(keys):
        for key in of_job:
            graph.jobs.setdefault(key, job)
    load = graph.add(Task("load"), place=Place.EVERYWHERE, cost=0.0)
    encoders = _add_encoders(graph, plans, keys, load, stored)
    whole = {  # clips whose pixels are taken: for that all of their tiles are
        of_job.levels[source.level].clip
        for plan, of_job in zip(plans, keys, strict=True)
        for i in plan.needed
        for source in plan.levels[i].sources
        if source.through_pixels
    }
    for plan, of_job in zip(plans, keys, strict=True):
        ends: dict[int, _Level] = {}
        for i in plan.needed:
            ends[i] = _Level(graph, plan, of_job, i, ends, mode)
            ends[i].add_inputs(load, encoders, stored)
            ends[i].add_steps(load, checkpoints)
            clip = of_job.levels[i].clip
            if clip in whole or plan.levels[i].is_shown:
                ends[i].add_decoding(() if clip in whole else decoded.get(clip, ()))
    return graph


def _add_encoders(
    graph: Graph, plans: Sequence[Plan], keys: Sequence[Keys], load: Task, stored: Collection[str]
) -> list[Task]:
    """Encode each text and each picture once, and segment it, all on one worker, one after the other.

    They enter its queue before any canvas begins: what it loaded for them has gone by then.
    """
    tasks = [task for plan, of_job in zip(plans, keys, strict=True) for task in _texts(plan, of_job)]
    for plan, of_job in zip(plans, keys, strict=True):
        if plan.spec.embeds_pictures:
            denoised = [i for i in plan.needed if plan.levels[i].todo]
            tasks += [Task("embed_picture", level=i, of=of_job.levels[i].inputs) for i in denoised]
    tasks += [segment for of_job in keys for segment in _segment(of_job)]
    tasks = [task for task in dict.fromkeys(tasks) if task.of not in stored]
    for task in tasks:
        graph.add(task, after=[load], place=Place.ANY if task == tasks[0] else tasks[0], cost=VAE_COST)
    return tasks


def _texts(plan: Plan, keys: Keys) -> list[Task]:
    """Those of the prompts that windows are predicted for."""
    if not any(plan.levels[i].todo for i in plan.needed):
        return []
    return [Task("encode_text", of=keys.texts[prompt]) for prompt in plan.prompts]


def _segment(keys: Keys) -> list[Task]:
    """What makes the activity map, if one is made."""
    return [Task("segment", of=keys.activity)] if keys.activity else []


class _Level:
    """Adds the tasks of one level of a job."""

    def __init__(
        self, graph: Graph, plan: Plan, keys: Keys, index: int, below: dict[int, "_Level"], mode: DispatchMode
    ) -> None:
        self._graph, self._plan, self._texts, self._index, self._below = graph, plan, _texts(plan, keys), index, below
        self._level: Level = plan.levels[index]
        self._keys = keys.levels[index]
        self._segment = [task for task in _segment(keys) if task in graph.nodes]
        meets = mode is DispatchMode.allreduce and index == plan.top and not self._level.decides
        self._replicated = meets and bool(self._level.todo) and self._level.until is None  # windows meet in all-reduces
        self._roots: dict[int, Task] = {}  # of a level of one window: where each branch was predicted first, and stays
        self._cells: list[Task] = []  # the canvas after the last step so far; none: noise, which each worker can make
        self._before: dict[int, list[Task]] = {}  # the cells before each step
        self._decisions: list[Task] = []  # whether each window goes up before all do
        self._canvas: Task | None = None  # or the same as a state of all workers
        self._estimates: list[Task] = []  # where it stops before its last step: the cells of the clean canvas
        self._blended: dict[int, Task] = {}  # the decoded tiles

    def add_inputs(self, load: Task, encoders: list[Task], stored: Collection[str]) -> None:
        """Encode the picture, and bring to all workers what every step takes."""
        if not self._level.todo:
            return
        index, of = self._index, self._keys.inputs
        tiles = [Task("encode", index=i, level=index, of=of) for i in range(len(flat(self._level.encode_tiles)))]
        encoded = [self._graph.add(tile, after=[load], cost=VAE_COST) for tile in tiles if of not in stored]
        pictures = [task for task in encoders if task == Task("embed_picture", level=index, of=of)]
        self._begin = self._graph.add(
            Task("begin", level=index, of=self._keys.base),
            inputs={
                "texts": [text for text in self._texts if text.of not in stored],
                "embeds": pictures,
                "encoded": encoded,
            },
            after=[load],
            place=Place.EVERYWHERE,
            cost=0.0,
        )

    def add_steps(self, load: Task, checkpoints: bool) -> None:
        """All steps, from the start on."""
        level = self._level
        self._incidence: dict[tuple[int, int], tuple[list, list]] = {}  # of windows and cells, by grid and batches
        if self._replicated:
            self._canvas = self._add_start(-1, level.whole, Place.EVERYWHERE, load)
        elif not level.begins_as_noise:
            self._cells = [self._add_start(cell, window, Place.ANY, load) for cell, window in enumerate(level.cells)]
        if level.rise and level.decides:
            self._decide(level.rise)
        for k in level.todo:
            self._before[k] = self._cells
            (self._step_replicated if self._replicated else self._step_cells)(k)
            if level.standard is not None and k + 1 == level.num_steps:
                self._standardise(k, level.standard)
            is_collected = self._index == self._plan.top and k + 1 == level.num_steps
            if checkpoints and not is_collected and k + 1 not in level.undecided:  # where cells differ in their history
                self._graph.add(self._task("checkpoint", k, after=True), cost=0.0, **self._last_canvas())
        self._before[level.todo.stop] = self._cells

    def _task(self, kind: str, step: int, index: int = -1, branch: int = -1, *, after: bool = False) -> Task:
        """A task on the canvas before a step, or on that after it."""
        of = self._keys.canvas[step + after - self._level.first_step]
        return Task(kind, step, index, branch, self._index, of)

    def _add_start(self, cell: int, part: Window, place: Place, load: Task) -> Task:
        """A cell before the first step, where that is more than noise; or, on every worker, the whole canvas."""
        task, beside = self._task("start", self._level.todo.start, cell), place is Place.ANY
        is_stored = self._level.given is not None
        if is_stored and beside:
            return self._graph.add(task, after=[load], place=place, cost=0.0, beside=True)
        given = {} if is_stored else {"residual": self._covering(self._level.steps[0].residual, part)}
        if self._level.rise and not is_stored:
            given |= {"rise": self._rising(self._level.first_step, part)}
        states = {"denoiser": self._begin}
        return self._graph.add(task, inputs=given, states=states, place=place, cost=0.0, beside=beside)

    def _guides(self, step: int, part: Window) -> dict[str, list[Task]]:
        """What the fusion of a step takes from levels below, and what pulls the canvas after it, before the next."""
        level = self._level
        guides = {"prior": level.at(step).prior, "residual": level.residual_after(step)}
        given = {name: self._covering(guide, part) for name, guide in guides.items()}
        return given | ({"activity": self._segment} if any(guide and guide.by_map for guide in guides.values()) else {})

    def _rising(self, step: int, part: Window) -> list[Task]:
        """The cells of the level below, before a step, of which `part` of this one is made."""
        assert self._level.rise is not None
        below = self._below[self._level.rise.level]
        return [below._before[step][cell] for cell in below._level.cells_of(part_to_rise(part))]

    def _decide(self, rise: Rise) -> None:
        """Whether each window goes up before all do, from what the level below has come to so far."""
        below, first = self._below[rise.level], self._level.first_step
        settling = below._level.rise.until if below._level.rise else below._level.first_step
        steps = range(settling + below._level.begins_as_noise, first + 1)
        for i, window in enumerate(self._level.steps[0].grid.windows):
            cells = [cell for k in steps for cell in self._rising(k, window)]
            decide = Task("decide", first, i, level=self._index, of=self._keys.canvas[0])
            self._decisions.append(
                self._graph.add(decide, inputs={"cells": cells}, states={"denoiser": below._begin}, cost=0.0)
            )

    def _up(self, step: Step, parts: Iterable[Window]) -> list[Task]:
        """Whether the windows that count in any of some parts go up."""
        return [self._decisions[i] for i in step.windows_over(parts)]

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
        task = Task("encode_clip", step=source.level, index=index, level=self._index, of=self._keys.again[source])
        if task in self._graph.nodes:
            return task
        below = self._below[source.level]
        factor = self._plan.spec.spatial_factor
        inner = part_below(tile.scaled(factor), self._px(), below._px())
        cores = tile_cores(below._level.decode_tiles)
        frames = [below._blended[i] for i, core in enumerate(cores) if core.scaled(factor).overlaps(inner)]
        return self._graph.add(task, inputs={"frames": frames}, cost=VAE_COST)

    def _step_replicated(self, k: int) -> None:
        """Predict all windows; then all workers together fuse, with what is taken from below, and step the canvas."""
        states = self._replica()
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
        states, chain = {"denoiser": self._begin}, level.is_one_window  # a chain stays on one worker
        predictions: list[list[Task]] = []
        for i, batch in enumerate(step.batches):
            given = {"cells": [cells[cell] for cell in cells_of[i]] if cells else []}
            if k in level.undecided:
                given["up"] = self._up(step, [level.cells[cell] for cell in cells_of[i]])
            predictions.append([])
            for branch in range(len(batch.branches)):
                task, place = self._task("predict", k, i, branch), self._roots.get(branch, Place.ANY)
                self._graph.add(task, inputs=given, states=states, place=place, cost=batch.cost)
                predictions[i].append(task)
                if chain:
                    self._roots.setdefault(branch, task)
        self._cells = []
        for cell in range(len(level.cells)):
            given = {
                "before": cells[cell : cell + 1],
                "predictions": [task for i in batches_of[cell] for task in predictions[i]],
                **self._guides(k, level.cells[cell]),
            }
            if k in level.undecided:
                window = level.cells[cell]
                given["up"] = self._up(step, [window])
                given["rise"] = self._rising(k + 1, window)
            place = self._roots[0] if chain else Place.ANY
            fuse = self._task("fuse", k, cell, after=True)
            self._cells.append(
                self._graph.add(fuse, inputs=given, states=states, place=place, cost=0.0, beside=not chain)
            )
            if level.shows_at(k + 1):
                estimate = self._task("estimate", k, cell, after=True)
                self._estimates.append(self._graph.add(estimate, inputs=given, states=states, cost=0.0))

    def _standardise(self, k: int, target: int) -> None:
        """Give the clean canvas the mean and the deviation of that of a level below; it is there in cells then."""
        given = {"own": self._add_moments(k), "target": self._below[target]._add_moments()}
        standard = self._graph.add(self._task("standard", k, after=True), inputs=given, cost=0.0)
        cells = [
            self._graph.add(self._task("standardise", k, cell, after=True), cost=0.0, **self._with(standard, window))
            for cell, window in enumerate(self._level.cells)
        ]
        self._cells, self._canvas, self._replicated = cells, None, False

    def _with(self, standard: Task, window: Window) -> dict[str, Any]:
        last = self._last_canvas(window)
        states = {"denoiser": self._begin, **last.get("states", {})}
        return {"inputs": {**last["inputs"], "standard": [standard]}, "states": states}

    def _add_moments(self, k: int = -1) -> list[Task]:
        """The moments of the clean canvas, cell by cell; with k of what step k makes, before it is standardised."""
        of = self._keys.canvas[-1]
        return [
            self._graph.add(Task("moments", k, cell, level=self._index, of=of), cost=0.0, **self._last_canvas(window))
            for cell, window in enumerate(self._level.cells)
        ]

    def _incidence_of(self, step: Step) -> tuple[list[list[int]], list[list[int]]]:
        """The cells of each batch and the batches of each cell; once for steps that have the same."""
        level = self._level
        key = id(step.grid), id(step.batches)
        if key not in self._incidence:
            cells_of = [level.cells_of_batch(step, i) for i in range(len(step.batches))]
            self._incidence[key] = cells_of, [step.batches_of(cell) for cell in level.cells]
        return self._incidence[key]

    def _last_canvas(self, part: Window | None = None) -> dict[str, Any]:
        """What a task takes that reads the canvas as it is now, or a part of it."""
        cells = self._cells if part is None or not self._cells else [self._cells[i] for i in self._level.cells_of(part)]
        if not self._replicated:
            return {"inputs": {"cells": cells}}
        # what the steps had in common stays until the replica goes, and no other canvas begins in its place
        return {"inputs": {"cells": []}, "states": self._replica()}

    def _replica(self) -> dict[str, Task]:
        assert self._canvas is not None, "not replicated"
        return {"denoiser": self._begin, "canvas": self._canvas}

    def _px(self) -> tuple[int, int]:
        height, width = self._level.canvas
        return height * self._plan.spec.spatial_factor, width * self._plan.spec.spatial_factor

    def add_decoding(self, decoded: Collection[int]) -> None:
        """Collect the video's latents; decode each VAE tile, then blend it with the edges of those above and left.

        Cell by cell, a tile is decoded when its cells are there; after an all-reduce the latents are safe before. Of
        tiles that are there already, those next to the others are decoded again, for their edges.
        """
        graph, level, of = self._graph, self._level, self._keys.clip
        after = []
        if self._index == self._plan.top and level.until is None:
            collect = graph.add(Task("collect", level=self._index, of=self._keys.last), **self._last_canvas(), cost=0.0)
            after = [collect] * self._replicated
        self._cells = self._estimates or self._cells
        tiles = level.decode_tiles
        wanted = _with_neighbours(tiles, decoded)
        for i, tile in enumerate(flat(tiles)):
            if i not in wanted:
                continue
            row, column = divmod(i, len(tiles[0]))
            decode = Task("decode", index=i, level=self._index, of=of)
            graph.add(decode, after=after, cost=VAE_COST, **self._last_canvas(tile))
            edges = {"above": i - len(tiles[0]) if row else -1, "left": i - 1 if column else -1}
            given = {name: [self._blended[j]] if j in self._blended else [] for name, j in edges.items()}
            blend = Task("blend", index=i, level=self._index, of=of)
            self._blended[i] = graph.add(blend, inputs={"tile": [decode], **given}, cost=0.0)


def _with_neighbours(tiles: Tiles, decoded: Collection[int]) -> set[int]:
    """The tiles that are not decoded, and those whose edges they are blended with."""
    wanted = set(range(len(flat(tiles)))) - set(decoded)
    if not decoded:
        return wanted
    width = len(tiles[0])
    for i in list(wanted):
        row, column = divmod(i, width)
        wanted |= {(row - up) * width + column - left for up in {0, min(1, row)} for left in {0, min(1, column)}}
    return wanted
