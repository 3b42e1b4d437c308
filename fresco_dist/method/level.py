"""A level: a latent canvas and what happens to it at each step, as numbers and names; no tensor.

A method is a few levels, one above the other: FrescoDiffusion a thumbnail of one window, and the canvas that it guides.
Everything that the graph, the estimate of memory and the workers need to know of a canvas stands here. H, W are latent
cells. A step is named by its place among the noise scheduler's, which also gives it its noise level.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from fresco_dist.method.grid import Tiles, Window, WindowIndex
from fresco_dist.method.residual import ResidualTime

CANVAS_STREAM, PRIOR_STREAM = 0, 1  # of noise: the video's level and the thumbnail's; others take further numbers
RISE_STREAM = 1 << 16  # and from here on noises by which cells become four


@dataclass(frozen=True)
class Branch:
    """A prompt for which a window is predicted, and the coefficient with which that enters N (METHOD 1)."""

    prompt: int  # which of the job's
    coefficient: float
    shared: bool = False  # whether only the prompt's share of each cell counts, see `method.regions`


@dataclass(frozen=True)
class Batch:
    """Windows of one shape, predicted in one forward for each of the same branches; `cost` is that of one of these."""

    windows: tuple[int, ...]  # of the step's grid
    branches: tuple[Branch, ...]
    cost: float  # in forwards of one full window


@dataclass(frozen=True)
class Grid:
    """Windows that cover a canvas, and what their blending weights follow from, see `weights.window_weight`."""

    windows: tuple[Window, ...]
    overlap: tuple[int, int]  # nominal (height, width): the length of the ramps
    min_weight: float

    @cached_property
    def index(self) -> WindowIndex:
        """Finds the windows that overlap another."""
        return WindowIndex(self.windows)


@dataclass(frozen=True)
class Source:
    """The last canvas of a level below, resized: its clean latents, or its pixels, which are then encoded again."""

    level: int
    through_pixels: bool = False


@dataclass(frozen=True)
class Guide:
    """Something taken from a level below, and how strongly: where the job's map is light, and elsewhere.

    With a `time` these are exponents, by which a residual fades as the steps go on, see `method.residual`.
    """

    source: Source
    strengths: tuple[float, float]
    time: ResidualTime | None = None

    @property
    def by_map(self) -> bool:
        """Whether it differs over the picture."""
        return self.strengths[0] != self.strengths[1]


@dataclass(frozen=True)
class Rise:
    """A level takes over in mid-sampling from one below, of half its sides, see `method.rise`.

    At its first step or, with a `max_variance`, only where windows have settled by then: the rest follows the level
    below until that comes to the step `until`.
    """

    level: int
    until: int
    max_variance: float | None = None


@dataclass(frozen=True)
class Step:
    """What is done at one step: the windows that are predicted, and the guides.

    `prior` is the term of Eq. 5 in the fusion of the predictions. `residual` pulls the canvas before they are made:
    x <- (1 - c) x + c n, with n the source z at this step's noise level and the level's own noise. Before the first
    step x is noise: with c = 1 the level starts from its source.
    """

    grid: Grid
    batches: tuple[Batch, ...]
    stage: int = 0  # of the model: 1 if its low-noise expert predicts
    prior: Guide | None = None
    residual: Guide | None = None

    @cached_property
    def _batch_of(self) -> dict[int, int]:
        return {window: i for i, batch in enumerate(self.batches) for window in batch.windows}

    def batches_of(self, part: Window) -> list[int]:
        """The batches with windows whose predictions count in a part of the canvas."""
        return sorted({self._batch_of[window] for window in self.grid.index.overlapping(part)})

    def windows_over(self, parts: Iterable[Window]) -> list[int]:
        """The windows that count in any of some parts of the canvas, in order."""
        return sorted({window for part in parts for window in self.grid.index.overlapping(part)})

    @property
    def num_forwards(self) -> int:
        """Predictions of one window for one prompt."""
        return sum(len(batch.windows) * len(batch.branches) for batch in self.batches)

    @property
    def cost(self) -> float:
        """The same, in forwards of one full window."""
        return sum(batch.cost * len(batch.branches) for batch in self.batches)


@dataclass(frozen=True)
class Level:
    """A canvas, its partition into cells, and its steps `first_step` .. `num_steps` - 1.

    A run may go on from a canvas that is `given`, that before this step, and stop at that before step `until`. The
    clean canvas may be given the mean and the deviation of that of a level below, `standard`.
    """

    latent_shape: tuple[int, int, int, int]  # C, T, H, W
    cells: tuple[Window, ...]
    steps: tuple[Step, ...]
    encode_tiles: Tiles
    decode_tiles: Tiles
    stream: int  # of its noise
    sum_abs_coefficients: float  # over one prompt's branches, of each the largest of all steps
    shift: float | None = None  # of the noise scheduler; None: its own
    sigmas: tuple[float, ...] | None = None  # noise level of each of its steps, as given
    first_step: int = 0  # a later one needs a source to start from
    given: int | None = None
    until: int | None = None
    standard: int | None = None
    rise: Rise | None = None
    is_shown: bool = False  # its clip is asked for; that of another is decoded if a level takes its pixels

    def __post_init__(self) -> None:
        starts = self.steps[0].residual or self.rise
        assert self.first_step == 0 or starts, "noise alone at a level where it is not all there is"
        risen = [] if self.rise is None else self.steps[: self.rise.until + 1 - self.first_step]
        assert not any(step.residual for step in risen), "a canvas that follows the level below is pulled to another"

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W)."""
        return self.latent_shape[2:]

    @property
    def whole(self) -> Window:
        """All of the canvas."""
        return Window(0, 0, *self.canvas)

    @property
    def num_steps(self) -> int:
        """Steps of the noise scheduler; those before `first_step` are not this level's."""
        return self.first_step + len(self.steps)

    @property
    def todo(self) -> range:
        """The steps that are run."""
        first, end = self.given, self.until
        return range(self.first_step if first is None else first, self.num_steps if end is None else end)

    @property
    def begins_as_noise(self) -> bool:
        """Whether its canvas before the first step that is run is noise, which each worker can make."""
        return self.given is None and self.steps[0].residual is None and self.rise is None

    @property
    def decides(self) -> bool:
        """Whether a part of it follows the level below, at steps that are run, and which is found out by then."""
        return self.rise is not None and self.rise.max_variance is not None and self.todo.start < self.rise.until

    @property
    def undecided(self) -> range:
        """The steps that are run at which that is so."""
        return range(self.todo.start, min(self.rise.until, self.todo.stop)) if self.rise and self.decides else range(0)

    def shows_at(self, step: int) -> bool:
        """Whether a run stops before this step, and shows the estimate of the clean canvas."""
        return self.is_shown and step == self.until

    @property
    def ends(self) -> bool:
        """Whether the last step is run."""
        return self.num_steps - 1 in self.todo

    def at(self, step: int) -> Step:
        """The step of this number."""
        return self.steps[step - self.first_step]

    def residual_after(self, step: int) -> Guide | None:
        """What pulls the canvas between a step and the next one."""
        return self.at(step + 1).residual if step + 1 < self.num_steps else None

    @property
    def is_one_window(self) -> bool:
        """Whether no two of its forwards can run side by side, but for those of several prompts."""
        return len(self.cells) == 1 and all(len(step.grid.windows) == 1 for step in self.steps)

    def cells_of(self, part: Window) -> list[int]:
        """The cells that cover a part of the canvas."""
        return self._cell_index.overlapping(part)

    def cells_of_batch(self, step: Step, batch: int) -> list[int]:
        """The cells that cover the windows of a batch."""
        windows = (step.grid.windows[i] for i in step.batches[batch].windows)
        return sorted({cell for window in windows for cell in self.cells_of(window)})

    @cached_property
    def _cell_index(self) -> WindowIndex:
        return WindowIndex(self.cells)

    @property
    def sources(self) -> set[Source]:
        """What it takes from levels below."""
        guides = [guide for k in self.todo for guide in (self.at(k).prior, self.residual_after(k))]
        guides += [self.steps[0].residual] if self.given is None else []
        standard = {Source(self.standard)} if self.standard is not None and self.ends else set()
        return {guide.source for guide in guides if guide} | standard | self.rises_from

    @property
    def rises_from(self) -> set[Source]:
        """The level below whose canvases in mid-sampling it takes, if any."""
        return {Source(self.rise.level)} if self.rise and self.given is None else set()

    @property
    def num_forwards(self) -> int:
        """Predictions of one window for one prompt."""
        return sum(self.at(k).num_forwards for k in self.todo)

    @property
    def cost(self) -> float:
        """The same, in forwards of one full window."""
        return sum(self.at(k).cost for k in self.todo)

    @property
    def tile_shapes(self) -> Counter[tuple[int, int, int, int]]:
        """(B, T, H, W) of what one forward predicts, and how many forwards of all steps do."""
        shapes: Counter[tuple[int, int, int, int]] = Counter()
        for step in self.steps:
            for batch in step.batches:
                window = step.grid.windows[batch.windows[0]]
                shape = (len(batch.windows), self.latent_shape[1], window.height, window.width)
                shapes[shape] += len(batch.branches)
        return shapes


def make_branches(guidance_scale: float, guidance_scale_2: float | None = None) -> tuple[tuple[Branch, ...], ...]:
    """Classifier-free guidance m_u + g (m_c - m_u) as weighted branches: g for prompt 0, 1 - g for the negative one.

    Of stage 0 and of stage 1: `guidance_scale_2` is g while the low-noise expert predicts, None the same. A branch with
    a coefficient of 0 needs no forward.
    """
    scales = (guidance_scale, guidance_scale if guidance_scale_2 is None else guidance_scale_2)
    branches = [(Branch(0, g), Branch(1, 1.0 - g)) for g in scales]
    return tuple(tuple(branch for branch in stage if branch.coefficient != 0.0) for stage in branches)


def share_branches(branches: Sequence[Branch], prompts: Sequence[int], negative: int) -> tuple[Branch, ...]:
    """The branches of a window in which `prompts` count in place of prompt 0; `negative` is the last one's number.

    Shares add up to 1 in every cell: the negative prompt needs none, and one prompt alone has all.
    """
    shared: list[Branch] = []
    for branch in branches:
        if branch.prompt == 0:
            shared += [Branch(prompt, branch.coefficient, len(prompts) > 1) for prompt in prompts]
        else:
            shared.append(Branch(negative, branch.coefficient))
    return tuple(shared)


def sum_abs_coefficients(stages: Sequence[Sequence[Branch]]) -> float:
    """Over the prompts, the largest magnitude of the coefficient in any stage."""
    largest: dict[int, float] = {}
    for branch in (branch for stage in stages for branch in stage):
        largest[branch.prompt] = max(largest.get(branch.prompt, 0.0), abs(branch.coefficient))
    return sum(largest.values())


def make_batches(
    windows: Sequence[Window],
    branches: Sequence[tuple[Branch, ...]],
    size: int,
    share: Callable[[Window], float],
) -> tuple[Batch, ...]:
    """Neighbours, up to `size` windows at a time, of one shape and for the same branches, which are given per window.

    `share` says what a window's forward costs, in forwards of one full window.
    """
    batches = []

    def alike(i: int) -> tuple:
        return windows[i].height, windows[i].width, branches[i]

    for _, run in groupby(range(len(windows)), alike):
        members = list(run)
        for start in range(0, len(members), size):
            chosen = tuple(members[start : start + size])
            batches.append(Batch(chosen, branches[chosen[0]], len(chosen) * share(windows[chosen[0]])))
    return tuple(batches)


def part_below(part: Window, canvas: tuple[int, int], below: tuple[int, int]) -> Window:
    """What of a canvas of size `below` a part of it is made of, once resized to `canvas` (endpoint-aligned).

    With one cell more on each side, for rounding.
    """
    bounds = []
    for start, size, whole, source in zip((part.top, part.left), (part.height, part.width), canvas, below):
        ratio = (source - 1) / max(1, whole - 1)
        first = max(0, int(start * ratio) - 1)
        bounds.append((first, min(source, int((start + size - 1) * ratio) + 3) - first))
    (top, height), (left, width) = bounds
    return Window(top, left, height, width)


def part_to_rise(part: Window) -> Window:
    """What of a level of half the sides becomes a part of this one, see `method.rise`."""
    bottom, right = -(-(part.top + part.height) // 2), -(-(part.left + part.width) // 2)
    return Window(part.top // 2, part.left // 2, bottom - part.top // 2, right - part.left // 2)
