"""Metrics on clips whose value is known."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fresco_dist.media.metrics import (
    grey,
    measure,
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


SEAMS = [Window(0, 0, 24, 16), Window(0, 16, 24, 16)]


def small(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def encode(frame: np.ndarray) -> np.ndarray:
    return frame.mean(axis=(0, 1))


def test_one_pass_gives_what_the_formulas_give_on_whole_clips():
    rng = np.random.default_rng(3)
    frames, prior = (rng.integers(0, 256, (7, *size, 3), dtype=np.uint8) for size in ((24, 32), (6, 8)))
    activity = rng.random((12, 16)) < 0.3
    figures = measure(iter(frames), iter(prior), (8, 6), SEAMS, activity, encode)
    luma, ours = grey(frames).astype(float), grey(small(frames, (8, 6))).astype(float)
    sobels = [[ndimage.sobel(frame, axis, mode="nearest") ** 2 for axis in (0, 1)] for frame in luma]
    error_FHW = np.mean((small(frames, (8, 6)).astype(float) - prior) ** 2, axis=-1)
    active = activity[1::2, 1::2]  # the nearest to the centre of each pixel
    moved, wanted = (clip[1:] - clip[0] for clip in (ours, grey(prior).astype(float)))
    across = np.diff(luma[1:] - luma[0], axis=2) ** 2  # no window ends between two rows
    features = [[encode(frame) for frame in clip] for clip in (frames, prior)]
    assert figures == pytest.approx(
        {
            "sharpness": np.mean(np.sum(sobels, axis=1)),
            "temporal_difference": np.mean(np.diff(ours, axis=0) ** 2),
            "seam_energy": across[..., 15].mean() / np.delete(across, 15, axis=2).mean(),
            "prior_distance": np.mean(error_FHW),
            "motion_similarity": np.sum(moved * wanted) / np.sqrt(np.sum(moved**2) * np.sum(wanted**2)),
            "prior_similarity": np.mean([a @ b / np.sqrt(a @ a * (b @ b)) for a, b in zip(*features)]),
            "prior_distance_active": np.mean(error_FHW[:, active]),
            "prior_distance_background": np.mean(error_FHW[:, ~active]),
        },
        rel=1e-5,
    )


def test_clip_of_one_frame_has_no_motion(clip):
    figures = measure(clip[:1], clip[:1], (32, 24), SEAMS)
    still = {"temporal_difference": 0, "seam_energy": 1, "prior_distance": 0, "motion_similarity": 0}
    assert figures == {"sharpness": sharpness(clip[:1]), **still}


def test_clips_of_different_lengths_are_not_compared(clip):
    with pytest.raises(ValueError, match="shorter"):
        measure(clip, clip[:2], (32, 24), SEAMS)


def test_memory_does_not_grow_with_the_clip():
    def frames(num: int, height: int, width: int):
        return (np.full((height, width, 3), i + 1, dtype=np.uint8) for i in range(num))

    def peak_bytes(num: int) -> int:
        tracemalloc.start()
        try:
            measure(frames(num, 192, 256), frames(num, 48, 64), (64, 48), SEAMS, np.eye(24, 32, dtype=bool), encode)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(2)  # imports and caches
    assert peak_bytes(64) < peak_bytes(8) + 4 * 192 * 256  # less than one grey frame more
