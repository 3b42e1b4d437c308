"""Shares of the prompts: a partition of the canvas, of the same shape at every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fresco_dist.method.grid import Window
from fresco_dist.method.regions import MIN_SHARE, cover, feather, main_prompt, prompts_in, share_out

sides = st.integers(1, 12)
shares_of_1 = st.floats(0.0, 1.0)


@st.composite
def masks(draw) -> np.ndarray:
    """Any masks of one to five regions, that may overlap or leave holes."""
    shape = draw(st.integers(1, 5)), draw(sides), draw(sides)
    return draw(arrays(np.float64, shape, elements=st.one_of(st.sampled_from([0.0, 1.0]), shares_of_1)))


@given(masks_RHW=masks())
def test_shares_add_up_to_1_exactly_and_count_or_are_0(masks_RHW):
    shares_PHW = share_out(masks_RHW)
    assert shares_PHW.dtype == np.float32 and shares_PHW.shape == (len(masks_RHW) + 1, *masks_RHW.shape[1:])
    assert (shares_PHW >= 0).all()
    for order in (shares_PHW, shares_PHW[::-1]):
        total_HW = np.zeros(shares_PHW.shape[1:], np.float32)
        for share_HW in order:
            total_HW += share_HW
        assert (total_HW == 1).all()
    counting = shares_PHW[shares_PHW > 0]
    assert counting.min() > 0.9 * min(MIN_SHARE, 1 / len(shares_PHW))


@given(masks_RHW=masks())
def test_shares_are_what_masks_say_and_regions_that_overlap_share(masks_RHW):
    total_HW = masks_RHW.sum(axis=0)
    wanted_PHW = np.concatenate([np.maximum(0, 1 - total_HW)[None], masks_RHW / np.maximum(1, total_HW)])
    assert np.abs(share_out(masks_RHW) - wanted_PHW).max() <= MIN_SHARE * len(wanted_PHW)


@given(bounds=st.tuples(shares_of_1, shares_of_1, shares_of_1, shares_of_1), size=st.tuples(sides, sides), fine=sides)
def test_cells_are_covered_by_the_part_that_lies_in_the_box(bounds, size, fine):
    left, right, top, bottom = (*sorted(bounds[:2]), *sorted(bounds[2:]))
    covered_HW = cover((left, top, right, bottom), size)
    assert covered_HW.mean() == pytest.approx((right - left) * (bottom - top), abs=1e-12)
    finer = cover((left, top, right, bottom), (size[0] * fine, size[1] * fine))
    coarse = finer.reshape(size[0], fine, size[1], fine).mean(axis=(1, 3))
    np.testing.assert_allclose(covered_HW, coarse, atol=1e-12)


@given(size=st.tuples(sides, sides), widths=st.tuples(st.floats(0, 30), st.floats(0, 30)), level=shares_of_1)
def test_soft_edges_leave_an_even_mask_as_it_is_up_to_the_border(size, widths, level):
    np.testing.assert_allclose(feather(np.full(size, level), widths), level, atol=1e-12)


def test_soft_edge_falls_from_1_to_0_over_its_width_and_has_one_half_in_the_middle():
    soft = feather(cover((0.0, 0.0, 0.5, 1.0), (40, 100)), (16.0, 16.0))
    row = soft[20]
    assert (soft == row).all()
    assert (row[:41] > 1 - 1e-12).all() and (row[59:] < 1e-12).all() and (np.diff(row[41:59]) < 0).all()
    np.testing.assert_allclose(row + row[::-1], 1.0, atol=1e-12)
    assert (feather(row[None], (0.0, 0.0)) == row).all()


def test_levels_of_all_sizes_have_the_same_shapes():
    """A picture of 300 x 200 px whose cells are 2, 4, 5 and 10 px: edges in the same places, as soft."""
    box, width_px = (0.21, 0.33, 0.74, 1.0), 20.0
    finest = feather(cover(box, (100, 150)), (width_px / 2, width_px / 2))
    for cell in (4, 5, 10):
        ours = feather(cover(box, (200 // cell, 300 // cell)), (width_px / cell, width_px / cell))
        mean = np.kron(finest, np.ones((2, 2))).reshape(200 // cell, cell, 300 // cell, cell).mean(axis=(1, 3))
        assert np.abs(ours - mean).max() < 0.02 * cell


@given(masks_RHW=masks(), data=st.data())
def test_prompts_of_a_window_are_those_with_a_share_and_the_main_one_has_the_largest(masks_RHW, data):
    shares_PHW = share_out(masks_RHW)
    P, H, W = shares_PHW.shape
    top, left = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    window = Window(top, left, data.draw(st.integers(1, H - top)), data.draw(st.integers(1, W - left)))
    cells = [
        (h, w) for h in range(top, top + window.height) for w in range(left, left + window.width)
    ]  # fmt: skip
    totals = [sum(float(shares_PHW[p, h, w]) for h, w in cells) for p in range(P)]
    assert prompts_in(shares_PHW, window) == tuple(p for p in range(P) if totals[p] > 0)
    assert totals[main_prompt(shares_PHW, window)] == max(totals)
