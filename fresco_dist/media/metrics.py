"""What a clip is measured by. Frames are uint8 (F, H, W, 3), numpy; frame by frame, so that a 4K clip fits.

Sharpness, temporal consistency and prior similarity are those of the paper's C.1. Prior similarity needs a DINOv3
encoder (`dino`); `prior_distance` is a stand-in without weights, under a name of its own.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fresco_dist.method.grid import Window
from fresco_dist.schedule.plan import Plan

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

Encoder = Callable[[np.ndarray], np.ndarray]  # one frame, uint8 (H, W, 3), to its features (D,)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma, float32 (..., H, W) in 0..255, of uint8 (..., H, W, 3)."""
    return frames.astype(np.float32) @ LUMA


def resize_area(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area-averaged frames, uint8 (F, height, width, 3); `size` is (width, height)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def sharpness(frames: np.ndarray) -> float:
    """Tenengrad: mean squared Sobel gradient of the grey frames at full size (C.1.1; Pertuz et al. 2013, GRA6)."""
    return float(np.mean([_tenengrad(frame) for frame in frames]))


def _tenengrad(frame: np.ndarray) -> float:
    padded = np.pad(grey(frame), 1, mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    gradient_x = across[:-2] + 2 * across[1:-1] + across[2:]
    gradient_y = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return float(np.mean(gradient_x**2 + gradient_y**2, dtype=np.float64))


def temporal_difference(frames: np.ndarray, size: tuple[int, int]) -> float:
    """Mean squared difference of consecutive grey frames, area-averaged to `size` (width, height); lower is calmer.

    The paper's temporal inconsistency score (C.1.2). 0 for a single frame.
    """
    small = grey(resize_area(frames, size))
    return float(np.mean(np.diff(small, axis=0) ** 2)) if len(small) > 1 else 0.0


def prior_similarity(frames: np.ndarray, prior_frames: np.ndarray, encode: Encoder) -> float:
    """Mean cosine similarity of the features of corresponding frames, each at its own size; at most 1 (C.1.3)."""
    cosines = []
    for frame, prior_frame in zip(frames, prior_frames, strict=True):
        ours, theirs = encode(frame), encode(prior_frame)
        cosines.append(np.dot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
    return float(np.mean(cosines))


def prior_distance(frames: np.ndarray, prior_frames: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean squared difference to the decoded prior, after area-averaging to the prior's size; 0 is the prior itself.

    `region`, bool (H, W) at the prior's size, restricts it. A stand-in for the prior similarity, not the paper's.
    """
    height, width = prior_frames.shape[1:3]
    small = resize_area(frames, (width, height)).astype(np.float32)
    error_FHW = np.mean((small - prior_frames) ** 2, axis=-1)
    return float(np.mean(error_FHW if region is None else error_FHW[:, region]))


def motion_similarity(frames: np.ndarray, prior_frames: np.ndarray) -> float:
    """Cosine similarity of the two clips' motion: each frame's difference to the first, grey, at the prior's size.

    1: all moves as in the prior; 0: nothing in common, or nothing moves. Unlike the distance, it does not count what
    the first frames differ in. Ours, not the paper's.
    """
    height, width = prior_frames.shape[1:3]
    ours, theirs = (grey(clip)[1:] - grey(clip[:1]) for clip in (resize_area(frames, (width, height)), prior_frames))
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(np.vdot(ours, theirs)) / norm if norm else 0.0


def seam_energy(frames: np.ndarray, windows_px: Sequence[Window]) -> float:
    """How much more the motion changes across window edges than elsewhere; 1 means that no edge can be told.

    The motion is each frame's difference to the first, so that the picture's own edges do not count. The ratio of mean
    squared differences between neighbouring pixels that an inner window edge separates, to all other neighbours.
    """
    height, width = frames.shape[1:3]
    energies = [np.zeros(height - 1), np.zeros(width - 1)]  # between cells k and k + 1, down and across
    first = grey(frames[0])
    for frame in frames[1:]:
        motion = grey(frame) - first
        for axis in (0, 1):
            energies[axis] += np.mean(np.diff(motion, axis=axis) ** 2, axis=1 - axis, dtype=np.float64)
    edges = [
        {edge for w in windows_px for edge in (w.top, w.top + w.height)},
        {edge for w in windows_px for edge in (w.left, w.left + w.width)},
    ]
    ratios = []
    for energy, at in zip(energies, edges):
        at_edge = np.isin(np.arange(1, len(energy) + 1), sorted(at))
        if at_edge.any() and not at_edge.all() and energy[~at_edge].mean() > 0:
            ratios.append(energy[at_edge].mean() / energy[~at_edge].mean())
    return float(np.mean(ratios)) if ratios else 1.0


def measure(
    frames: np.ndarray, prior_frames: np.ndarray, plan: Plan, activity_HW: np.ndarray | None, encode: Encoder | None
) -> dict[str, float]:
    """Every metric of a clip, as run.json records them.

    `frames` are the canvas and `prior_frames` the decoded prior; `activity_HW` (bool, latent cells) splits the prior
    distance into regions, and `encode` adds the prior similarity.
    """
    figures = {
        "sharpness": sharpness(frames),
        "temporal_difference": temporal_difference(frames, plan.size_px(0)),
        "seam_energy": seam_energy(frames, [window.scaled(plan.spec.spatial_factor) for window in plan.seams]),
        "prior_distance": prior_distance(frames, prior_frames),
        "motion_similarity": motion_similarity(frames, prior_frames),
    }
    if encode is not None:
        figures["prior_similarity"] = prior_similarity(frames, prior_frames, encode)
    if activity_HW is not None:
        active = np.asarray(Image.fromarray(activity_HW).resize(plan.size_px(0), Image.Resampling.NEAREST))
        for name, region in (("active", active), ("background", ~active)):
            if region.any():
                figures[f"prior_distance_{name}"] = prior_distance(frames, prior_frames, region)
    return figures
