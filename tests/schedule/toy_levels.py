"""Random level programs on canvases of whole numbers: what a plain loop makes of them, and what tasks do.

The loop knows windows and whole canvases alone; the tasks know cells, batches, states and what is taken from below.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from itertools import chain

import numpy as np
from hypothesis import strategies as st
from test_plan import WAN

from fresco_dist.method.grid import (
    Window,
    place_cells,
    place_fine_cells,
    place_windows,
    tile_cores,
    tiles_over,
    vae_tiles,
)
from fresco_dist.method.level import (
    Branch,
    Grid,
    Guide,
    Level,
    Rise,
    Source,
    Step,
    make_batches,
    part_below,
    part_to_rise,
)
from fresco_dist.schedule.execute import Failure, WorkerError
from fresco_dist.schedule.graph import NO_INPUTS, Place, Task
from fresco_dist.schedule.keys import Content, Keys, make_keys
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.simulate import SimulatedExecutor

PRIME = 1_000_003
BRANCHES = ((Branch(0, 1.0),), (Branch(0, 3.0), Branch(1, -2.0)))
SPEC = dataclasses.replace(WAN, spatial_factor=1)


def cut_windows(canvas: tuple[int, int], size: tuple[int, int], offset: tuple[int, int]) -> list[Window]:
    """Windows side by side whose grid is shifted, cut at the border."""
    axes = []
    for whole, side, shift in zip(canvas, size, offset):
        edges = sorted({0, whole, *range(shift % side or side, whole, side)})
        axes.append(list(zip(edges, edges[1:])))
    return [Window(top, left, bottom - top, right - left) for top, bottom in axes[0] for left, right in axes[1]]


@st.composite
def grids(draw, canvas: tuple[int, int]) -> Grid:
    size = tuple(draw(st.integers(2, 7)) for _ in range(2))
    if draw(st.booleans()):
        stride = tuple(draw(st.integers(1, side)) for side in size)
        windows = place_windows(canvas, size, stride)
    else:
        windows = cut_windows(canvas, size, tuple(draw(st.integers(0, side - 1)) for side in size))
    return Grid(tuple(windows), (0, 0), 1.0)


@st.composite
def levels(draw, below: list[Level]) -> Level:
    canvas = (draw(st.integers(2, 11)), draw(st.integers(2, 11)))
    rise = draw(rises(below)) if below and draw(st.integers(0, 2)) == 0 else None
    if rise:
        canvas = tuple(2 * side - draw(st.integers(0, 1)) for side in below[rise.level].canvas)
    one_window = draw(st.integers(0, 3)) == 0
    whole = Grid((Window(0, 0, *canvas),), (0, 0), 1.0)
    num_steps = draw(st.integers(1, 3))

    def source() -> Source:
        index = draw(st.integers(0, len(below) - 1))
        return Source(index, through_pixels=draw(st.booleans()))

    def guide() -> Guide | None:
        pulls = below and draw(st.integers(0, 2)) == 0
        return Guide(source(), (draw(st.integers(1, 9)),) * 2) if pulls else None

    fixed = whole if one_window else draw(grids(canvas))

    def step() -> Step:
        grid = fixed if one_window or rise else draw(grids(canvas))
        branches = [draw(st.sampled_from(BRANCHES)) for _ in grid.windows]
        batches = make_batches(grid.windows, branches, draw(st.integers(1, 3)), lambda window: 1.0)
        return Step(grid, batches, prior=guide(), residual=guide())

    first_step = 0
    if rise:
        last = rise.until - (rise.max_variance is not None)
        first_step = draw(st.integers(max(1, below[rise.level].first_step), last)) if last else 0
        num_steps = max(num_steps, rise.until - first_step + 1)
    steps = tuple(step() for _ in range(num_steps))
    if rise:
        num_risen = rise.until + 1 - first_step
        steps = tuple(dataclasses.replace(s, residual=None) if i < num_risen else s for i, s in enumerate(steps))
    elif steps[0].residual:
        first_step = draw(st.integers(0, 2))
    cells = (whole.windows[0],) if one_window else tuple(place_cells(canvas, draw(grids(canvas)).windows))
    if rise and rise.max_variance is not None:
        cells = tuple(place_fine_cells(canvas, fixed.windows))
    tile = draw(st.integers(2, 6))
    return Level(
        latent_shape=(1, 1, *canvas),
        cells=cells,
        steps=steps,
        encode_tiles=vae_tiles(canvas, tile, draw(st.integers(1, tile))),
        decode_tiles=vae_tiles(canvas, tile, draw(st.integers(1, tile))),
        is_shown=draw(st.booleans()),
        standard=draw(st.integers(0, len(below) - 1)) if below and draw(st.integers(0, 2)) == 0 else None,
        stream=len(below),
        sum_abs_coefficients=5.0,
        first_step=first_step,
        rise=rise,
    )


@st.composite
def rises(draw, below: list[Level]) -> Rise | None:
    """From a level with two steps or more, or None."""
    index = draw(st.integers(0, len(below) - 1))
    level = below[index]
    if level.num_steps - level.first_step < 2 or max(level.canvas) > 8:
        return None
    decides = draw(st.booleans())
    until = draw(st.integers(level.first_step + 1 + decides, level.num_steps))
    return Rise(index, until, 0.0 if decides else None)


@st.composite
def plans(draw) -> Plan:
    """One to three levels, of which some may not be needed."""
    below: list[Level] = []
    for _ in range(draw(st.integers(1, 3))):
        below.append(draw(levels(below)))
    top = below[-1]
    below[-1] = dataclasses.replace(top, is_shown=True)
    return Plan((8, 8), (8, 8), 1, tuple(below), (), 0.0, 1, 1, SPEC)


@dataclasses.dataclass(frozen=True)
class ToyJob:
    """A plan, and whose noise it has."""

    plan: Plan
    seed: int

    @cached_property
    def keys(self) -> Keys:
        return make_keys(self.plan, Content(seed=self.seed))


def fork(plan: Plan, step: int) -> Plan:
    """The same but for how strongly levels below count after a step of the last level, so from the next canvas on."""
    top, steps = plan.canvas, list(plan.canvas.steps)
    for k in range(step, len(steps)):
        if steps[k].prior:
            steps[k] = dataclasses.replace(steps[k], prior=dataclasses.replace(steps[k].prior, strengths=(11, 11)))
    return dataclasses.replace(plan, levels=(*plan.levels[:-1], dataclasses.replace(top, steps=tuple(steps))))


def at_once(plan: Plan) -> Plan:
    """The same but for the last level's cells, which all go up at its first step, if they rise."""
    top = plan.canvas
    rise = top.rise and Rise(top.rise.level, top.first_step)
    return dataclasses.replace(plan, levels=(*plan.levels[:-1], dataclasses.replace(top, rise=rise)))


def from_latents(plan: Plan) -> Plan:
    """The same but for what the last level takes, which is no pixels."""

    def changed(guide: Guide | None) -> Guide | None:
        return guide and dataclasses.replace(guide, source=Source(guide.source.level))

    steps = (dataclasses.replace(s, prior=changed(s.prior), residual=changed(s.residual)) for s in plan.canvas.steps)
    return dataclasses.replace(plan, levels=(*plan.levels[:-1], dataclasses.replace(plan.canvas, steps=tuple(steps))))


def noise(level: Level, seed: int) -> np.ndarray:
    h, w = np.indices(level.canvas)
    return (h * 7919 + w * 104729 + level.stream * 31 + seed * 17) % PRIME


def predict(x: np.ndarray, step: int, branch: Branch, window: Window, condition: int) -> np.ndarray:
    """Of all cells of a window together."""
    place = window.top * 13 + window.left * 29
    value = x * 3 + int(x.sum()) * 5 + step * 7 + branch.prompt * 11 + place + condition
    return value % PRIME * int(branch.coefficient)


def resize(z: np.ndarray, part: Window, below: tuple[int, int], canvas: tuple[int, int], inner: Window) -> np.ndarray:
    """`inner` of a canvas of size `below`, made larger; `z` is a part of that. Two neighbours count for each cell."""
    for axis, start, size, origin in ((0, inner.top, inner.height, part.top), (1, inner.left, inner.width, part.left)):
        low = np.arange(start, start + size) * (below[axis] - 1) // max(1, canvas[axis] - 1)
        high = np.minimum(low + 1, below[axis] - 1)
        z = np.take(z, low - origin, axis) * 2 + np.take(z, high - origin, axis)
    return z % PRIME


def decoded(x: np.ndarray) -> np.ndarray:
    return (x * 3 + 1) % PRIME


def encoded(pixels: np.ndarray, index: int) -> np.ndarray:
    """A tile; neighbours, where they overlap, are added up."""
    return (pixels * 7 + index) % PRIME


def run_loop(job: ToyJob) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The last level's canvas, and the pixels of the decoded levels."""
    plan, seed = job.plan, job.seed
    canvases: dict[int, np.ndarray] = {}
    before: dict[int, dict[int, np.ndarray]] = {}  # each step, by level

    def z_of(level: Level, source: Source) -> np.ndarray:
        below = plan.levels[source.level]
        everything = (below.whole, below.canvas, level.canvas)
        if not source.through_pixels:
            return resize(canvases[source.level], *everything, level.whole)
        pixels = resize(decoded(canvases[source.level]), *everything, level.whole)
        z = np.zeros(level.canvas, dtype=np.int64)
        for i, tile in enumerate(chain.from_iterable(level.encode_tiles)):
            z[tile.slices] += encoded(pixels[tile.slices], i)
        return z % PRIME

    for i in plan.needed:
        level = plan.levels[i]
        own, condition = noise(level, seed), condition_of(plan, i, seed)
        x, up, before[i] = own, np.ones(level.canvas, dtype=bool), {}
        if level.rise and level.rise.max_variance is not None:
            watched, below = before[level.rise.level], plan.levels[level.rise.level]
            for window in level.steps[0].grid.windows:
                part = part_to_rise(window)
                steps = range(below.rise.until if below.rise else below.first_step, level.first_step + 1)
                up[window.slices] &= goes_up([watched[k][part.slices] for k in steps])
        for k in range(level.first_step, level.num_steps):
            step, total = level.at(k), np.zeros(level.canvas, dtype=np.int64)
            if level.rise and k <= level.rise.until:
                follows = ~up | (k == level.first_step)
                x = np.where(follows, risen(before[level.rise.level][k], level.whole, own, k), x)
            if step.residual:
                x = pull(x, z_of(level, step.residual.source), own, k, weight_of(step.residual))
            before[i][k] = x
            for batch in step.batches:
                for window in (step.grid.windows[index] for index in batch.windows):
                    for branch in batch.branches:
                        total[window.slices] += predict(x[window.slices], k, branch, window, condition)
            x = fuse(x, total)
            if step.prior:
                x = (x + z_of(level, step.prior.source) * weight_of(step.prior)) % PRIME
        if level.standard is not None:
            x = standardise(x, standard(int(x.sum()), int(canvases[level.standard].sum())))
        canvases[i] = before[i][level.num_steps] = x
    return canvases[plan.top], {i: decoded(canvases[i]) for i in plan.needed if plan.levels[i].is_shown}


def fuse(x: np.ndarray, total: np.ndarray) -> np.ndarray:
    return (x + total * 5) % PRIME


def risen(z: np.ndarray, part: Window, own: np.ndarray, step: int) -> np.ndarray:
    """`part` of a level, before a step, from all of what becomes it, and its own noise there."""
    below = part_to_rise(part)
    larger = z.repeat(2, axis=0).repeat(2, axis=1)
    inner = part.within(Window(2 * below.top, 2 * below.left, 2 * below.height, 2 * below.width))
    return (larger[inner.slices] * 3 + own * 7 + step) % PRIME


def goes_up(canvases: list[np.ndarray]) -> bool:
    return sum(int(x.sum()) for x in canvases) % 3 > 0


def standard(own: int, target: int) -> int:
    return own * 3 + target


def standardise(x: np.ndarray, value: int) -> np.ndarray:
    return (x + value) % PRIME


def pull(x: np.ndarray, z: np.ndarray, own: np.ndarray, step: int, weight: int) -> np.ndarray:
    return (x * 2 + (z + own * (step + 1)) * weight) % PRIME


def weight_of(guide: Guide) -> int:
    return int(guide.strengths[0] * 10)


def condition_of(plan: Plan, level: int, seed: int) -> int:
    """Of what is encoded: of each tile its place."""
    num_tiles = sum(map(len, plan.levels[level].encode_tiles))
    return sum((level + 1) * (i + 1) for i in range(num_tiles)) + seed


class ToyExecutor(SimulatedExecutor):
    """Runs the tasks of level programs on workers that hold states of their own, in virtual time."""

    def __init__(self, jobs: list[ToyJob], *args, stored: Mapping[str, object] = NO_INPUTS, **options) -> None:
        super().__init__(*args, **options)
        self.stored = stored
        self.jobs = {key: job for job in reversed(jobs) for key in job.keys}
        self.given, self.values = {}, {}
        self.states: dict[int, dict[Task, object]] = {worker: {} for worker in range(self.num_workers)}
        self.sums: dict[int, dict[Task, Counter]] = {worker: {} for worker in range(self.num_workers)}

    def submit(self, worker, task, node):
        self.given[task] = node
        super().submit(worker, task, node)

    def wait(self):
        event = super().wait()
        if isinstance(event, Failure):
            if event.task is None:
                self.states.pop(event.worker, None)  # its sums have gone to those who waited with it
            return event
        task, node = event.task, self.given[event.task]
        inputs = {name: [self.values[source] for source in sources] for name, sources in node.inputs.items()}
        held = self.states[event.worker]
        if not held.keys() >= set(node.states.values()):  # what makes it has failed here
            self.held.discard(task)
            self._doom({task})
            return Failure(event.worker, task, WorkerError("out of step"), consequence=True)
        state = {name: held[made_by] for name, made_by in node.states.items()}
        value = getattr(self, task.kind)(task, event.worker, **inputs, **state)
        if node.place is Place.EVERYWHERE:
            self.states[event.worker][task] = value
            self.sums[event.worker].pop(task, None)  # a canvas that is made once more has no predictions on it yet
        else:
            self.values[task] = value
        return event

    def regroup(self):
        super().regroup()
        for worker in self.sums.keys() - self._alive:
            del self.sums[worker]

    def release(self, task):
        super().release(task)
        if self.given[task].place is Place.EVERYWHERE:
            for states in self.states.values():
                states.pop(task, None)

    def load(self, task, worker):
        return None

    def encode_text(self, task, worker):
        return 0

    def encode(self, task, worker):
        return (task.level + 1) * (task.index + 1)

    def begin(self, task, worker, texts, embeds, encoded):
        job = self.jobs[task.of]
        encoded = self.stored.get(job.keys.levels[task.level].inputs, encoded)
        return sum(encoded) + job.seed  # the condition, and whose noise

    def _levels(self, task) -> tuple[Plan, Level]:
        plan = self.jobs[task.of].plan
        return plan, plan.levels[task.level]

    def _below(self, task, source: Source, given: list, part: Window) -> np.ndarray:
        """z in a part of the task's level."""
        plan, level = self._levels(task)
        below = plan.levels[source.level]
        if source.through_pixels:
            z = np.zeros((part.height, part.width), dtype=np.int64)
            for tile, value in zip(chain.from_iterable(tiles_over(level.encode_tiles, part)), given, strict=True):
                common = tile.intersection(part)
                z[common.within(part).slices] += value[common.within(tile).slices]
            return z % PRIME
        outer = part_below(part, level.canvas, below.canvas)
        covering = [below.cells[i] for i in below.cells_of(outer)]
        return resize(put_together(outer, covering, given), outer, below.canvas, level.canvas, part)

    def encode_clip(self, task, worker, frames):
        plan, level = self._levels(task)
        below = plan.levels[task.step]
        tile = list(chain.from_iterable(level.encode_tiles))[task.index]
        outer = part_below(tile, level.canvas, below.canvas)
        cores = [core for core in tile_cores(below.decode_tiles) if core.overlaps(outer)]
        pixels = resize(put_together(outer, cores, frames), outer, below.canvas, level.canvas, tile)
        return encoded(pixels, task.index)

    def _residual(self, task, x, given, part: Window, step: int, seed: int) -> np.ndarray:
        _, level = self._levels(task)
        guide = level.at(step).residual if step < level.num_steps else None
        if guide is None:
            return x
        own = noise(level, seed)[part.slices]
        return pull(x, self._below(task, guide.source, given, part), own, step, weight_of(guide))

    def start(self, task, worker, denoiser=None, residual=(), rise=()):
        _, program = self._levels(task)
        part = program.cells[task.index] if task.index >= 0 else program.whole
        if task.of in self.stored:
            return self.stored[task.of][part.slices]
        seed = self._seed(task, denoiser)
        x = noise(program, seed)[part.slices]
        if program.rise:
            return self._risen(task, rise, part, program.first_step, seed)
        return self._residual(task, x, residual, part, program.first_step, seed)

    def _risen(self, task, given, part: Window, step: int, seed: int) -> np.ndarray:
        plan, program = self._levels(task)
        below, inner = plan.levels[program.rise.level], part_to_rise(part)
        z = put_together(inner, [below.cells[i] for i in below.cells_of(inner)], given)
        return risen(z, part, noise(program, seed)[part.slices], step)

    def decide(self, task, worker, denoiser, cells):
        plan, program = self._levels(task)
        below, part = plan.levels[program.rise.level], part_to_rise(program.steps[0].grid.windows[task.index])
        covering = [below.cells[i] for i in below.cells_of(part)]
        by_step = [cells[i : i + len(covering)] for i in range(0, len(cells), len(covering))]
        canvases = [put_together(part, covering, given) for given in by_step]
        first = below.rise.until if below.rise else below.first_step
        if len(canvases) < task.step + 1 - first:  # what is before its first step is noise
            seed = denoiser - condition_of(plan, program.rise.level, 0)
            canvases.append(noise(below, seed)[part.slices])
        return goes_up(canvases)

    def _seed(self, task, condition: int) -> int:
        return condition - condition_of(self.jobs[task.of].plan, task.level, 0)

    def predict(self, task, worker, denoiser, cells=(), up=(), canvas=None):
        _, program = self._levels(task)
        if up:
            over = sorted({i for cell in self._cells_of(task) for i in self._over(task, cell)})
            is_up = dict(zip(over, up, strict=True))
            if not any(all(is_up[i] for i in self._over(task, cell)) for cell in self._cells_of(task)):
                return None
        step = program.at(task.step)
        batch = step.batches[task.index]
        windows = [step.grid.windows[i] for i in batch.windows]
        if canvas is not None:
            xs = [canvas[window.slices] for window in windows]
        elif cells:
            covering = [program.cells[i] for i in program.cells_of_batch(step, task.index)]
            xs = [put_together(window, covering, cells) for window in windows]
        else:
            xs = [noise(program, self._seed(task, denoiser))[window.slices] for window in windows]
        branch = batch.branches[task.branch]
        made = [predict(x, task.step, branch, window, denoiser) for x, window in zip(xs, windows)]
        if canvas is None:
            return made
        sums = self.sums[worker].setdefault(self.given[task].states["canvas"], Counter())
        assert (task.index, task.branch) not in sums
        sums[task.index, task.branch] += 1
        total = sums.setdefault("total", np.zeros(program.canvas, dtype=np.int64))
        for window, value in zip(windows, made):
            total[window.slices] += value
        return None

    def _over(self, task, part: Window) -> list[int]:
        _, program = self._levels(task)
        return [i for i, window in enumerate(program.at(task.step).grid.windows) if window.overlaps(part)]

    def _cells_of(self, task) -> list[Window]:
        _, program = self._levels(task)
        step = program.at(task.step)
        windows = [step.grid.windows[i] for i in step.batches[task.index].windows]
        return [cell for cell in program.cells if any(window.overlaps(cell) for window in windows)]

    def fuse(self, task, worker, denoiser, before, predictions, prior, residual, up=(), rise=()):
        _, program = self._levels(task)
        step, cell, seed = program.at(task.step), program.cells[task.index], self._seed(task, denoiser)
        if not all(up):
            return self._risen(task, rise, cell, task.step + 1, seed)
        x = before[0] if before else noise(program, seed)[cell.slices]
        total = np.zeros_like(x)
        batches = [step.batches[i] for i in step.batches_of(cell)]
        members = [batch.windows for batch in batches for _ in batch.branches]
        for indices, made in zip(members, predictions, strict=True):
            for i, value in zip(indices, made, strict=True):
                window = step.grid.windows[i]
                common = cell.intersection(window)
                if common.height > 0 and common.width > 0:
                    total[common.within(cell).slices] += value[common.within(window).slices]
        return self._step(task, x, total, prior, residual, cell, seed)

    def _step(self, task, x, total, prior, residual, part: Window, seed: int) -> np.ndarray:
        _, program = self._levels(task)
        guide = program.at(task.step).prior
        x = fuse(x, total)
        if guide:
            x = (x + self._below(task, guide.source, prior, part) * weight_of(guide)) % PRIME
        return self._residual(task, x, residual, part, task.step + 1, seed)

    def commit(self, task, worker, denoiser, canvas, prior, residual):
        _, program = self._levels(task)
        before = self.given[task].states["canvas"]
        total, counted = np.zeros(program.canvas, dtype=np.int64), Counter()
        for sums in self.sums.values():
            for key, value in sums.get(before, {}).items():
                if key == "total":
                    total = total + value
                else:
                    counted[key] += value
        step = program.at(task.step)
        once = {(i, branch): 1 for i, batch in enumerate(step.batches) for branch in range(len(batch.branches))}
        assert counted == once, "a prediction is missing, or counted twice"
        return self._step(task, canvas, total, prior, residual, program.whole, self._seed(task, denoiser))

    def _latents(self, task, part: Window, cells, canvas) -> np.ndarray:
        if canvas is not None:
            return canvas[part.slices]
        _, program = self._levels(task)
        return put_together(part, [program.cells[i] for i in program.cells_of(part)], cells)

    def collect(self, task, worker, cells, denoiser=None, canvas=None):
        return self._latents(task, self._levels(task)[1].whole, cells, canvas)

    checkpoint = collect

    def moments(self, task, worker, cells, denoiser=None, canvas=None):
        return int(self._latents(task, self._levels(task)[1].cells[task.index], cells, canvas).sum())

    def standard(self, task, worker, own, target):
        return standard(sum(own), sum(target))

    def standardise(self, task, worker, standard, cells, denoiser, canvas=None):
        part = self._levels(task)[1].cells[task.index]
        return standardise(self._latents(task, part, cells, canvas), standard[0])

    def later(self, task):
        return lambda value=self.values[task]: value

    def decode(self, task, worker, cells, denoiser=None, canvas=None):
        tile = list(chain.from_iterable(self._levels(task)[1].decode_tiles))[task.index]
        return decoded(self._latents(task, tile, cells, canvas))

    def blend(self, task, worker, tile, above, left):
        core = tile_cores(self._levels(task)[1].decode_tiles)[task.index]
        return tile[0][: core.height, : core.width]


def put_together(part: Window, windows: list[Window], arrays: list[np.ndarray]) -> np.ndarray:
    """`part` of a space from arrays in windows that cover it; -1 where none does."""
    whole = np.full((part.height, part.width), -1, dtype=np.int64)
    for window, array in zip(windows, arrays, strict=True):
        common = part.intersection(window)
        if common.height > 0 and common.width > 0:
            whole[common.within(part).slices] = array[common.within(window).slices]
    assert (whole >= 0).all(), "not covered"
    return whole
