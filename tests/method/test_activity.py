"""The activity map from masks, against loops over pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_jobs import make_config

from fresco_dist.method.activity import active_cells, dilate, is_kept, mean_support, support

SIZE = (12, 20)


def settings(**changes):
    overrides = [f"sam3.{name}={value}" for name, value in changes.items()]
    return make_config("fusion=regional", "fusion.activity_map=sam3", "sam3.path=x", *overrides).sam3


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random(SIZE) < rng.choice([0.02, 0.3, 0.8])


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.1, 0.17, 0.26]))
def test_dilate_reaches_every_pixel_within_the_radius(seed, share):
    mask = random_mask(seed)
    if not mask.any():
        return
    ys, xs = np.nonzero(mask)
    expected = [[min(np.hypot(ys - y, xs - x)) <= share * 12 for x in range(20)] for y in range(12)]
    assert np.array_equal(dilate(mask, share), expected)


@given(seed=st.integers(0, 2**32 - 1))
def test_mask_is_kept_by_its_area_and_by_its_share_at_the_border(seed):
    mask = random_mask(seed)
    config = settings(max_area=0.5, border=0.15, max_border=0.4)  # a margin of 2 of 12 pixels
    near = sum(mask[y, x] and (min(y, 11 - y) < 2 or min(x, 19 - x) < 2) for y in range(12) for x in range(20))
    area = mask.sum()
    assert is_kept(mask, config) == (0 < area <= 0.5 * 240 and near <= 0.4 * area)


def test_no_margin_drops_no_mask():
    edge = np.zeros(SIZE, dtype=bool)
    edge[0] = True
    assert is_kept(edge, settings(border=0, max_border=0))
    assert not is_kept(edge, settings(border=0.1, max_border=0))


def test_support_is_the_union_of_what_each_kept_mask_grows_to():
    masks = [np.zeros(SIZE, dtype=bool) for _ in range(3)]
    masks[0][3, 4] = masks[1][8, 15] = True
    masks[2][:] = True  # the whole picture
    config = settings(dilation=0.17, max_area=0.5)
    covered, num_kept = support(masks, config, SIZE)
    assert num_kept == 2
    assert np.array_equal(covered, dilate(masks[0], 0.17) | dilate(masks[1], 0.17))
    nothing, none_kept = support(masks[2:], config, SIZE)
    assert none_kept == 0 and not nothing.any()


def test_cells_are_active_where_the_mean_over_prompts_and_pixels_is_above_the_threshold():
    supports = np.zeros((3, 8, 16), dtype=bool)
    supports[0, :, :4] = True  # one prompt of three
    supports[1:, :, 4:6] = True  # two of three, in half of the second column of cells
    map_hw = mean_support(supports)
    assert map_hw.dtype == np.float32
    for threshold, columns in ((0.0, [1, 1, 0, 0]), (0.3334, [0, 0, 0, 0]), (0.33, [1, 1, 0, 0])):
        assert np.array_equal(active_cells(map_hw, (2, 4), threshold), [columns] * 2), threshold
    halves = np.kron([[1, 0], [0, 0]], np.ones((4, 8))).astype(np.float32)
    assert active_cells(halves, (1, 1), 0.2) and not active_cells(halves, (1, 1), 0.25)


@pytest.mark.parametrize("canvas", [(6, 10), (12, 20), (3, 4)])
def test_cells_are_the_mean_over_their_area(canvas):
    map_hw = np.random.default_rng(0).random(SIZE).astype(np.float32)
    fine = np.kron(map_hw, np.ones(canvas))  # every cell is a block of SIZE entries
    means = fine.reshape(canvas[0], SIZE[0], canvas[1], SIZE[1]).mean((1, 3))
    clear = abs(means - 0.5) > 1e-3
    assert np.array_equal(active_cells(map_hw, canvas, 0.5)[clear], (means > 0.5)[clear])
