"""What a clip is measured by, in one pass over its frames, so that memory does not grow with their number.

Frames are uint8 (H, W, 3), numpy; a clip is whatever gives one after the other. Sharpness, temporal consistency and
prior similarity are those of the paper's C.1. Prior similarity needs a DINOv3 encoder (`dino`); `prior_distance` is a
stand-in without weights, under a name of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from PIL import Image

from fresco_dist.method.grid import Window

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

Frames = Iterable[np.ndarray]  # uint8 (H, W, 3) each
Encoder = Callable[[np.ndarray], np.ndarray]  # one frame, uint8 (H, W, 3), to its features (D,)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma, float32 (..., H, W) in 0..255, of uint8 (..., H, W, 3)."""
    return frames.astype(np.float32) @ LUMA


@dataclass(eq=False)
class Moment:
    """A frame, the prior's beside it, and what came before; what several metrics need of it is made once."""

    frame: np.ndarray
    prior_frame: np.ndarray | None
    size: tuple[int, int] | None  # (width, height) of the prior
    first: "Moment | None"  # of the clip; of itself it has none
    before: "Moment | None"

    @property
    def prior(self) -> np.ndarray:
        """The prior's frame, of a clip that is measured beside its prior."""
        assert self.prior_frame is not None
        return self.prior_frame

    @cached_property
    def grey_HW(self) -> np.ndarray:
        """Luma at full size."""
        return grey(self.frame)

    @cached_property
    def small_HW3(self) -> np.ndarray:
        """Area-averaged to the prior's size, uint8."""
        assert self.size is not None
        return np.asarray(Image.fromarray(self.frame).resize(self.size, Image.Resampling.BOX))

    @cached_property
    def small_grey_HW(self) -> np.ndarray:
        """Luma at the prior's size."""
        return grey(self.small_HW3)

    @cached_property
    def prior_grey_HW(self) -> np.ndarray:
        """Luma of the prior."""
        return grey(self.prior)

    @cached_property
    def error_HW(self) -> np.ndarray:
        """Mean squared difference to the prior over the colours."""
        return np.mean((self.small_HW3.astype(np.float32) - self.prior) ** 2, axis=-1)


def _moments(
    frames: Frames, prior_frames: Frames | None = None, size: tuple[int, int] | None = None
) -> Iterator[Moment]:
    """One after the other; takes a frame and a prior frame in turn. `size` is the prior's, where there is none."""
    pairs = ((frame, None) for frame in frames) if prior_frames is None else zip(frames, prior_frames, strict=True)
    first = before = None
    for frame, prior_frame in pairs:
        moment = Moment(frame, prior_frame, size if prior_frame is None else prior_frame.shape[1::-1], first, before)
        yield moment
        first, before, moment.before = first or moment, moment, None  # or it would hold all that came before


@dataclass
class Metric:
    """The mean over a clip, in float64, of what each moment has to say: a number, an array, or None for nothing."""

    of: Callable[[Moment], np.ndarray | float | None]
    result: Callable[[np.ndarray], float] = float  # what is made of the mean
    still: float = 0.0  # what a clip has in which no moment has anything to say
    total: Any = 0.0
    num: int = 0

    def add(self, moment: Moment) -> None:
        """Count the next moment."""
        value = self.of(moment)
        if value is not None:
            self.total, self.num = self.total + np.asarray(value, dtype=np.float64), self.num + 1

    @property
    def figure(self) -> float:
        """Of the moments so far."""
        return self.result(self.total / self.num) if self.num else self.still


def _figures(metrics: Mapping[str, Metric], moments: Iterable[Moment]) -> dict[str, float]:
    for moment in moments:
        for metric in metrics.values():
            metric.add(moment)
    return {name: metric.figure for name, metric in metrics.items()}


def _figure(metric: Metric, moments: Iterable[Moment]) -> float:
    return _figures({"": metric}, moments)[""]


def sharpness(frames: Frames) -> float:
    """Tenengrad: mean squared Sobel gradient of the grey frames at full size (C.1.1; Pertuz et al. 2013, GRA6)."""
    return _figure(Metric(_tenengrad), _moments(frames))


def _tenengrad(moment: Moment) -> float:
    padded = np.pad(moment.grey_HW, 1, mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    gradient_x = across[:-2] + 2 * across[1:-1] + across[2:]
    gradient_y = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return float(np.mean(gradient_x**2 + gradient_y**2, dtype=np.float64))


def temporal_difference(frames: Frames, size: tuple[int, int]) -> float:
    """Mean squared difference of consecutive grey frames, area-averaged to `size` (width, height); lower is calmer.

    The paper's temporal inconsistency score (C.1.2). 0 for a single frame.
    """
    return _figure(Metric(_change), _moments(frames, size=size))


def _change(moment: Moment) -> float | None:
    if moment.before is None:
        return None
    return np.mean((moment.small_grey_HW - moment.before.small_grey_HW) ** 2, dtype=np.float64)


def prior_similarity(frames: Frames, prior_frames: Frames, encode: Encoder) -> float:
    """Mean cosine similarity of the features of corresponding frames, each at its own size; at most 1 (C.1.3)."""
    return _figure(Metric(partial(_cosine, encode=encode)), _moments(frames, prior_frames))


def _cosine(moment: Moment, encode: Encoder) -> float:
    ours, theirs = encode(moment.frame), encode(moment.prior)
    return np.dot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))


def prior_distance(frames: Frames, prior_frames: Frames, region: np.ndarray | None = None) -> float:
    """Mean squared difference to the decoded prior, after area-averaging to the prior's size; 0 is the prior itself.

    `region`, bool (H, W) at the prior's size, restricts it. A stand-in for the prior similarity, not the paper's.
    """
    return _figure(Metric(partial(_distance, region=region)), _moments(frames, prior_frames))


def _distance(moment: Moment, region: np.ndarray | None = None) -> float:
    return np.mean(moment.error_HW if region is None else moment.error_HW[region], dtype=np.float64)


def motion_similarity(frames: Frames, prior_frames: Frames) -> float:
    """Cosine similarity of the two clips' motion: each frame's difference to the first, grey, at the prior's size.

    1: all moves as in the prior; 0: nothing in common, or nothing moves. Unlike the distance, it does not count what
    the first frames differ in. Ours, not the paper's.
    """
    return _figure(Metric(_motion_products, _motion_cosine), _moments(frames, prior_frames))


def _motion_products(moment: Moment) -> np.ndarray | None:
    """Of the two motions: one with the other, and each with itself."""
    if moment.first is None:
        return None
    ours = moment.small_grey_HW - moment.first.small_grey_HW
    theirs = moment.prior_grey_HW - moment.first.prior_grey_HW
    return np.array([np.vdot(ours, theirs), np.vdot(ours, ours), np.vdot(theirs, theirs)])


def _motion_cosine(products: np.ndarray) -> float:
    both, ours, theirs = products
    norm = np.sqrt(ours) * np.sqrt(theirs)
    return float(both / norm) if norm else 0.0


def seam_energy(frames: Frames, windows_px: Sequence[Window]) -> float:
    """How much more the motion changes across window edges than elsewhere; 1 means that no edge can be told.

    The motion is each frame's difference to the first, so that the picture's own edges do not count. The ratio of mean
    squared differences between neighbouring pixels that an inner window edge separates, to all other neighbours.
    """
    return _figure(_seam_metric(windows_px), _moments(frames))


def _seam_metric(windows_px: Sequence[Window]) -> Metric:
    rows = sorted({edge for w in windows_px for edge in (w.top, w.top + w.height)})
    columns = sorted({edge for w in windows_px for edge in (w.left, w.left + w.width)})
    return Metric(partial(_motion_steps, edges=(rows, columns)), _seam_ratio, still=1.0)


def _motion_steps(moment: Moment, edges: Sequence[Sequence[int]]) -> np.ndarray | None:
    """Mean squared differences of neighbours at the edges and elsewhere, down and across; 0 where one is missing."""
    if moment.first is None:
        return None
    motion = moment.grey_HW - moment.first.grey_HW
    found = np.zeros((2, 2))
    for axis in (0, 1):
        energy = (np.diff(motion, axis=axis) ** 2).mean(axis=1 - axis, dtype=np.float64)
        at_edge = np.isin(np.arange(1, len(energy) + 1), edges[axis])
        if at_edge.any() and not at_edge.all():
            found[axis] = energy[at_edge].mean(), energy[~at_edge].mean()
    return found


def _seam_ratio(found: np.ndarray) -> float:
    ratios = [at_edge / elsewhere for at_edge, elsewhere in found if elsewhere > 0]
    return float(np.mean(ratios)) if ratios else 1.0


def measure(
    frames: Frames,
    prior_frames: Frames,
    size: tuple[int, int],
    seams_px: Sequence[Window],
    activity_HW: np.ndarray | None = None,
    encode: Encoder | None = None,
) -> dict[str, float]:
    """Every metric of a clip, as run.json records them; a frame and a prior frame are taken in turn.

    `prior_frames` are the decoded prior, of `size` (width, height); `seams_px` are the windows between which seams are
    looked for, `activity_HW` (bool, of any size) splits the prior distance into regions, and `encode` adds the prior
    similarity.
    """
    metrics = {
        "sharpness": Metric(_tenengrad),
        "temporal_difference": Metric(_change),
        "seam_energy": _seam_metric(seams_px),
        "prior_distance": Metric(_distance),
        "motion_similarity": Metric(_motion_products, _motion_cosine),
    }
    if encode is not None:
        metrics["prior_similarity"] = Metric(partial(_cosine, encode=encode))
    if activity_HW is not None:
        active = np.asarray(Image.fromarray(activity_HW).resize(size, Image.Resampling.NEAREST))
        for name, region in (("active", active), ("background", ~active)):
            if region.any():
                metrics[f"prior_distance_{name}"] = Metric(partial(_distance, region=region))
    return _figures(metrics, _moments(frames, prior_frames))
