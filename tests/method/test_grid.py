"""Windows and VAE tiles for any canvas, window, overlap and model grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco_dist.method.grid import (
    Window,
    WindowIndex,
    core_size,
    place_cells,
    place_windows,
    seam_offsets,
    shifted_windows,
    snap_down,
    tile_cores,
    tiles_over,
    vae_tiles,
    window_and_stride,
)
from fresco_dist.method.weights import denominator, ramp, window_weight
from fresco_dist.models.tiling import blend_tiles, join_tiles

cells = st.integers(1, 24)


@given(
    canvas=st.tuples(cells, cells),
    window_px=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    overlap=st.floats(0.0, 0.99),
    factor=st.sampled_from([1, 4, 8, 16]),
    patch=st.sampled_from([1, 2, 3]),
    min_weight=st.floats(0.01, 1.0),
)
def test_windows_cover_the_canvas_exactly(canvas, window_px, overlap, factor, patch, min_weight):
    canvas = tuple(side * patch for side in canvas)
    axes = [window_and_stride(px, overlap, factor, patch) for px in window_px]
    windows = place_windows(canvas, tuple(w for w, _ in axes), tuple(s for _, s in axes))
    assert len(set(windows)) == len(windows)
    cells_of_canvas = place_cells(canvas, windows)
    assert len(cells_of_canvas) == len(windows)
    assert sum(cell.height * cell.width for cell in cells_of_canvas) == canvas[0] * canvas[1]
    for window in {windows[0], windows[len(windows) // 2], windows[-1]}:  # its cells need those that overlap it
        needed = {w for cell in cells_of_canvas if cell.overlaps(window) for w in windows if w.overlaps(cell)}
        assert needed == {w for w in windows if w.overlaps(window)}
    for window in windows:
        assert window.top >= 0 and window.top + window.height <= canvas[0]
        assert window.left >= 0 and window.left + window.width <= canvas[1]
        assert not (window.height % patch or window.width % patch)
    overlap_cells = tuple(w - s for w, s in axes)
    weights = [window_weight(window, canvas, overlap_cells, min_weight) for window in windows]
    assert min(float(weight.min()) for weight in weights) >= min_weight**2 * (1 - 1e-6)
    assert max(float(weight.max()) for weight in weights) <= 1.0
    D_HW = denominator(windows, weights, canvas)
    assert D_HW.shape == canvas and bool((D_HW > 0).all())


@given(size=st.integers(1, 200), window=st.integers(1, 40), patch=st.sampled_from([1, 2, 3]))
def test_windows_side_by_side_move_far_and_are_cut_to_no_less_than_a_quarter(size, window, patch):
    size, window = size * patch, window * patch
    offsets, other = seam_offsets(size, window, patch), 7
    lengths, seams = set(), []
    for offset in offsets:
        windows = shifted_windows((size, other), (window, other), (offset, 0), inside=False)
        covered = [row for w in windows for row in range(w.top, w.top + w.height)]
        assert covered == list(range(size)), "each row once, in order"
        assert all(4 * w.height >= min(window, size) and w.height <= window for w in windows)
        assert not any(w.height % patch for w in windows)
        lengths |= {w.height for w in windows}
        seams.append([w.top for w in windows[1:]])
    assert len(lengths) <= len(offsets) + 1 + (offsets == (0,))  # those of first windows are those of last ones, too
    least = window // (4 * patch) * patch if window >= 32 * patch else 1  # with fewer cells, as far as there are any
    for i, one in enumerate(seams):
        assert all(abs(a - b) >= least for two in seams[i + 1 :] for a in one for b in two)
    assert len(offsets) >= 2 or size <= window or window < 6 * patch


@given(canvas=st.tuples(cells, cells), window=st.tuples(cells, cells), data=st.data())
def test_windows_moved_inside_are_all_of_one_size_and_cover(canvas, window, data):
    offsets = tuple(data.draw(st.integers(0, side - 1)) for side in window)
    count = torch.zeros(canvas)
    for w in shifted_windows(canvas, window, offsets, inside=True):
        assert (w.height, w.width) == tuple(map(min, window, canvas))
        count[w.slices] += 1
    assert bool((count >= 1).all()) and float(count.sum()) == sum(
        w.height * w.width for w in shifted_windows(canvas, window, offsets, inside=True)
    )


@st.composite
def rectangles(draw) -> Window:
    top, left = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    return Window(top, left, draw(cells), draw(cells))


@given(windows=st.lists(rectangles(), max_size=30), other=rectangles())
def test_index_finds_the_windows_that_overlap_whatever_their_sizes(windows, other):
    """Partial windows at borders, windows inside others, and some twice."""
    assert WindowIndex(windows).overlapping(other) == [i for i, w in enumerate(windows) if w.overlaps(other)]


def test_windows_of_a_uhd_canvas_are_those_of_the_paper():
    """A.1: 1280 x 720 windows at 50% on 3840 x 2160 with factor 8 and patch 2 are 5 x 5 = 25 windows."""
    height, width = window_and_stride(720, 0.5, 8, 2), window_and_stride(1280, 0.5, 8, 2)
    assert (height, width) == ((90, 45), (160, 80))
    assert len(place_windows((270, 480), (height[0], width[0]), (height[1], width[1]))) == 25


def test_canvas_smaller_than_a_window_gets_one_window():
    assert place_windows((10, 200), (32, 64), (16, 32))[0] == Window(0, 0, 10, 64)
    assert place_windows((10, 20), (32, 64), (16, 32)) == [Window(0, 0, 10, 20)]


def test_ramp_is_flat_at_the_canvas_border_and_falls_to_the_minimum_elsewhere():
    assert torch.equal(ramp(6, 2, 0.2, rising=False, falling=False), torch.ones(6))
    rising = ramp(6, 2, 0.2, rising=True, falling=False)
    torch.testing.assert_close(rising, torch.tensor([0.2, 0.6, 1.0, 1.0, 1.0, 1.0]))
    both = ramp(3, 4, 0.2, rising=True, falling=True)  # ramps longer than the window meet at the smaller value
    torch.testing.assert_close(both, torch.tensor([0.2, 0.4, 0.2]))


@given(size=st.tuples(cells, cells), tile=st.integers(4, 32), stride=st.integers(2, 32))
def test_vae_tile_cores_partition_the_canvas(size, tile, stride):
    stride = min(stride, tile)
    tiles = vae_tiles(size, tile, stride)
    count = torch.zeros(size, dtype=torch.int64)
    for i, row in enumerate(tiles):
        for j, window in enumerate(row):
            height, width = core_size(tiles, i, j)
            assert height <= window.height and width <= window.width
            count[window.top : window.top + height, window.left : window.left + width] += 1
    assert bool((count == 1).all())


@given(size=st.tuples(cells, cells), tile=st.integers(4, 32), stride=st.integers(2, 32))
def test_vae_tile_cores_are_the_parts_that_blending_keeps(size, tile, stride):
    """A partition, each from the corner of its tile on, of the size of what is kept."""
    tiles = vae_tiles(size, tile, min(stride, tile))
    raw = [torch.ones(window.height, window.width) for row in tiles for window in row]
    cores, count = tile_cores(tiles), torch.zeros(size, dtype=torch.int64)
    flat = [window for row in tiles for window in row]
    for core, window, kept in zip(cores, flat, blend_tiles(tiles, raw), strict=True):
        assert (core.top, core.left) == (window.top, window.left) and (core.height, core.width) == kept.shape
        count[core.slices] += 1
    assert bool((count == 1).all())


@given(size=st.tuples(cells, cells), tile=st.integers(4, 16), stride=st.integers(1, 16), data=st.data())
@settings(deadline=None)
def test_vae_tiles_over_a_part_give_what_all_tiles_give_there(size, tile, stride, data):
    """Those that overlap it, and bit for bit what is blended of all."""
    tiles, generator = vae_tiles(size, tile, min(stride, tile)), torch.Generator().manual_seed(0)
    raw = {window: torch.randn(2, window.height, window.width, generator=generator) for row in tiles for window in row}
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    part = Window(top, left, data.draw(st.integers(1, size[0] - top)), data.draw(st.integers(1, size[1] - left)))
    chosen = tiles_over(tiles, part)
    assert [window for row in chosen for window in row] == [window for window in raw if window.overlaps(part)]
    whole = join_tiles(tiles, blend_tiles(tiles, raw.values()))
    ours = join_tiles(chosen, blend_tiles(chosen, [raw[window] for row in chosen for window in row]))
    assert torch.equal(ours[(..., *part.within(chosen[0][0]).slices)], whole[(..., *part.slices)])


@pytest.mark.parametrize(("size", "multiple", "expected"), [(17, 8, 16), (16, 8, 16), (5, 8, 8), (8, 1, 8)])
def test_snap_down_keeps_at_least_one_multiple(size, multiple, expected):
    assert snap_down(size, multiple) == expected
