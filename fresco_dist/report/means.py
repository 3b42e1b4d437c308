"""Runs of equal settings on several pictures or seeds, taken together. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from fresco_dist.report.points import Point

REPEATS = (  # a picture, no setting
    "image", "image_last", "prompt", "negative_prompt", "regions", "seed", "fusion.activity_map"
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """The runs of one setting: mean and standard deviation of the metrics that all of them have."""

    name: str  # the first run's
    settings: dict[str, Any]
    metrics: dict[str, float]
    spread: dict[str, float]
    num_runs: int
    numbers: tuple[str, ...]  # of its runs, see `Point`


def complete(points: Sequence[Point]) -> list[Point]:
    """The points of the pictures and seeds that have every setting; of others, means could not be compared."""
    settings: dict[str, set[str]] = {}
    for picture, point in map(_split, points):
        settings.setdefault(picture, set()).add(repr(point.settings))
    every = set().union(*settings.values())
    return [point for point in points if settings[_split(point)[0]] == every]


def average(points: Sequence[Point]) -> list[Mean]:
    """One Mean for all points of equal settings, in the order of the first of them. The spread of one run is 0."""
    groups: dict[str, list[Point]] = {}
    for _, point in map(_split, points):
        groups.setdefault(repr(point.settings), []).append(point)
    means = []
    for group in groups.values():
        common = [name for name in group[0].metrics if all(name in point.metrics for point in group)]
        values = {name: [point.metrics[name] for point in group] for name in common}
        means.append(
            Mean(
                name=group[0].name,
                settings=group[0].settings,
                metrics={name: fmean(each) for name, each in values.items()},
                spread={name: stdev(each) if len(each) > 1 else 0.0 for name, each in values.items()},
                num_runs=len(group),
                numbers=tuple(point.number for point in group),
            )
        )
    return means


def by_picture(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each picture and seed, moved from its own mean to that of all points, metric by metric.

    Pictures differ far more than settings do; what is left is what the settings change in each of them.
    """
    groups: dict[str, list[Point]] = {}
    for picture, point in map(_split, points):
        groups.setdefault(picture, []).append(point)
    overall = _levels(points)
    moved = []
    for group in groups.values():
        own = _levels(group)
        moved.append([replace(p, metrics={k: v - own[k] + overall[k] for k, v in p.metrics.items()}) for p in group])
    return moved


def _split(point: Point) -> tuple[str, Point]:
    """Which picture it is, and the point without that."""
    settings = {key: value for key, value in point.settings.items() if key not in REPEATS}
    picture = {key: point.settings.get(key) for key in REPEATS}
    return repr(picture), replace(point, settings=settings)


def _levels(points: Sequence[Point]) -> dict[str, float]:
    names = dict.fromkeys(name for point in points for name in point.metrics)
    return {name: fmean(point.metrics[name] for point in points if name in point.metrics) for name in names}
