"""Metrics on clips whose value is known."""

import numpy as np
import pytest
from scipy import ndimage

from fresco_dist.media.metrics import (
    grey,
    motion_similarity,
    prior_distance,
    seam_energy,
    sharpness,
    temporal_difference,
)
from fresco_dist.method.grid import Window


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)


def test_sharpness_is_the_mean_squared_sobel_gradient(clip):
    expected = np.mean([ndimage.sobel(f, 0, mode="nearest") ** 2 + ndimage.sobel(f, 1, mode="nearest") ** 2
                        for f in grey(clip)])  # fmt: skip
    assert sharpness(clip) == pytest.approx(expected, rel=1e-4)


def test_temporal_difference_is_that_of_small_frames(clip):
    still = np.repeat(clip[:1], 4, axis=0)
    assert temporal_difference(still, (8, 6)) == 0
    brighter = np.clip(still.astype(int) // 2 + np.arange(4)[:, None, None, None] * 10, 0, 255).astype(np.uint8)
    assert temporal_difference(brighter, (8, 6)) == pytest.approx(100, rel=0.02)


def test_prior_distance_is_zero_for_the_enlarged_prior(clip):
    assert prior_distance(clip.repeat(4, axis=1).repeat(4, axis=2), clip) == 0
    assert prior_distance(np.full_like(clip, 7), np.full_like(clip, 3)) == 16
    left = np.arange(32)[None, :].repeat(24, axis=0) < 16
    half = np.where(left[None, :, :, None], clip, 255 - clip)
    assert prior_distance(half, clip, left) == 0 < prior_distance(half, clip, ~left)


def test_motion_similarity_compares_changes_since_the_first_frame(clip):
    large = clip.repeat(4, axis=1).repeat(4, axis=2)
    assert motion_similarity(large, clip) == pytest.approx(1)
    assert motion_similarity(255 - large, clip) == pytest.approx(-1)
    dim = np.concatenate([clip[:1] // 2, clip[:1] // 2 + (clip[1:] // 2 - clip[:1] // 2)])
    assert motion_similarity(dim, clip) == pytest.approx(1, abs=0.01)
    assert motion_similarity(np.repeat(large[:1], 3, axis=0), clip) == 0
    other = np.random.default_rng(1).integers(0, 256, large.shape, dtype=np.uint8)
    assert abs(motion_similarity(other, clip)) < 0.2


def test_seam_energy_sees_motion_that_breaks_at_a_window_edge():
    windows = [Window(0, 0, 32, 24), Window(0, 16, 32, 24)]
    rng = np.random.default_rng(0)
    first = rng.integers(60, 120, (1, 32, 40, 3))
    smooth = np.cumsum(rng.normal(0, 1, (5, 32, 40, 1)), axis=2)
    together = np.concatenate([first, first + smooth]).clip(0, 255).astype(np.uint8)
    assert 0.5 < seam_energy(together, windows) < 2
    apart = smooth.copy()
    apart[:, :, 16:] += 20
    broken = np.concatenate([first, first + apart]).clip(0, 255).astype(np.uint8)
    assert seam_energy(broken, windows) > 20
    shifted = np.concatenate([first, first + np.roll(apart, 4, axis=2)]).clip(0, 255).astype(np.uint8)
    assert seam_energy(shifted, windows) < 2  # as strong a break, but not at an edge
    assert seam_energy(np.repeat(together[:1], 3, axis=0), windows) == 1.0
