"""Levels: batches, what cells and windows need of each other, and what a part needs of the level below."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_dist.method.fusion import resize_part
from fresco_dist.method.grid import Window, place_cells, place_windows
from fresco_dist.method.level import Branch, Grid, Level, Step, make_batches, part_below

BRANCHES = [(Branch(0, 1.0),), (Branch(0, 3.0), Branch(1, -2.0)), (Branch(1, 1.0),)]
sides = st.integers(1, 24)


def random_windows(seed: int, canvas: tuple[int, int]) -> list[Window]:
    """Windows that cover a canvas, at any stride."""
    generator = torch.Generator().manual_seed(seed)
    height, top, width, left = (int(torch.randint(1, 10, (), generator=generator)) for _ in range(4))
    return place_windows(canvas, (height, width), (min(top, height), min(left, width)))


@st.composite
def parts(draw, canvas: tuple[int, int]) -> Window:
    """Any part of a canvas."""
    top, left = (draw(st.integers(0, side - 1)) for side in canvas)
    return Window(top, left, draw(st.integers(1, canvas[0] - top)), draw(st.integers(1, canvas[1] - left)))


def share(window: Window) -> float:
    """Another cost for each shape."""
    return window.height + window.width / 32


@given(
    windows=st.lists(st.sampled_from([(4, 6), (4, 5), (3, 6)]), min_size=1, max_size=30),
    size=st.integers(1, 5),
    data=st.data(),
)
def test_batches_are_neighbours_of_one_shape_for_the_same_branches(windows, size, data):
    windows = [Window(i, 2 * i, *shape) for i, shape in enumerate(windows)]
    branches = [data.draw(st.sampled_from(BRANCHES)) for _ in windows]
    batches = make_batches(windows, branches, size, share)
    assert [i for batch in batches for i in batch.windows] == list(range(len(windows)))

    def alike(i: int) -> tuple:
        return windows[i].height, windows[i].width, branches[i]

    for batch in batches:
        assert {alike(i) for i in batch.windows} == {alike(batch.windows[0])}
        assert batch.branches == branches[batch.windows[0]] and len(batch.windows) <= size
        assert batch.cost == pytest.approx(sum(share(windows[i]) for i in batch.windows))
    for before, after in zip(batches, batches[1:]):  # none could have held more
        assert len(before.windows) == size or alike(before.windows[-1]) != alike(after.windows[0])


def test_batches_of_a_step_add_up_to_its_forwards():
    windows = [Window(0, 0, 4, 6)] * 3 + [Window(0, 0, 4, 3)]
    step = Step(
        Grid(tuple(windows), (0, 0), 0.1),
        make_batches(windows, [BRANCHES[1]] * 3 + [BRANCHES[0]], 2, lambda window: window.width / 6),
    )
    assert [(batch.windows, batch.cost) for batch in step.batches] == [((0, 1), 2.0), ((2,), 1.0), ((3,), 0.5)]
    assert step.num_forwards == 7 and step.cost == 6.5


@given(canvas=st.tuples(sides, sides), seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), data=st.data())
def test_cells_and_batches_that_need_each_other_are_those_that_overlap(canvas, seeds, data):
    """On cells of another grid than the step's windows, of which neighbours differ in shape and branches."""
    cells = place_cells(canvas, random_windows(seeds[0], canvas))
    windows = random_windows(seeds[1], canvas) + data.draw(st.lists(parts(canvas), max_size=6))
    branches = [data.draw(st.sampled_from(BRANCHES)) for _ in windows]
    step = Step(Grid(tuple(windows), (0, 0), 0.1), make_batches(windows, branches, data.draw(st.integers(1, 4)), share))
    level = Level((1, 1, *canvas), tuple(cells), (step,), (), (), 0, 1.0)
    for i, batch in enumerate(step.batches):
        members = [windows[j] for j in batch.windows]
        overlapping = [j for j, cell in enumerate(cells) if any(cell.overlaps(window) for window in members)]
        assert level.cells_of_batch(step, i) == overlapping
    for part in (*cells[:5], data.draw(parts(canvas))):
        assert level.cells_of(part) == [j for j, cell in enumerate(cells) if cell.overlaps(part)]
        needed = [i for i, b in enumerate(step.batches) if any(windows[j].overlaps(part) for j in b.windows)]
        assert step.batches_of(part) == needed


def cells_read(below: tuple[int, int], canvas: tuple[int, int], part: Window) -> torch.Tensor:
    """Which cells of a canvas torch reads for a part of it, resized: bool (H, W), by the gradient of their sum."""
    z = torch.zeros(1, 1, *below, dtype=torch.float64, requires_grad=True)
    resized = F.interpolate(z, size=canvas, mode="bilinear", align_corners=True)
    (gradient,) = torch.autograd.grad(resized[(..., *part.slices)].sum(), z)
    return gradient[0, 0] != 0


@given(below=st.tuples(sides, sides), canvas=st.tuples(st.integers(1, 60), st.integers(1, 60)), data=st.data())
def test_part_below_holds_what_is_read_and_little_more(below, canvas, data):
    part = data.draw(parts(canvas))
    ours = part_below(part, canvas, below)
    read = cells_read(below, canvas, part).nonzero()
    for axis, (start, size) in enumerate(((ours.top, ours.height), (ours.left, ours.width))):
        first, last = int(read[:, axis].min()), int(read[:, axis].max())
        assert 0 <= start <= first and last < start + size <= below[axis]
        assert first - start <= 2 and start + size - 1 - last <= 3  # for rounding


@given(below=st.tuples(sides, sides), canvas=st.tuples(st.integers(1, 60), st.integers(1, 60)), data=st.data())
@settings(deadline=None)
def test_prior_from_a_part_has_the_bits_of_that_from_the_whole(below, canvas, data):
    z = torch.randn(2, 3, *below, generator=torch.Generator().manual_seed(0))
    whole = Window(0, 0, *below)
    cell = data.draw(parts(canvas))
    part = part_below(cell, canvas, below)
    from_part = resize_part(z[(..., *part.slices)], part, below, canvas, cell)
    assert torch.equal(from_part, resize_part(z, whole, below, canvas, cell))
    everything = resize_part(z, whole, below, canvas, Window(0, 0, *canvas))
    assert torch.equal(from_part, everything[(..., *cell.slices)])
