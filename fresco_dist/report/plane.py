"""The creativity / prior-similarity plane (the paper's Fig. 7): sharpness against what says how close the prior is.

Sharpness stands for creativity, as in the paper's 5.4.2. Runs of equal settings on several pictures or seeds are one
point, their mean; thin lines behind it are the single pictures, each moved to the mean level of all. Points of equal
settings but for the prior strength are joined in the order of the strength; the Pareto front is ringed. Drawn by
matplotlib.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fresco_dist.report.comparison import Comparison
from fresco_dist.report.lettering import Lettering, ranges
from fresco_dist.report.means import REPEATS, Mean, average, by_picture
from fresco_dist.report.points import Point, shorten

STRENGTH = "fusion.prior_strength"
MAX_LETTERS = 60  # of a legend's entry


@dataclass(frozen=True)
class Axis:
    """A metric that says how close a point is to the prior; `sign` -1: lower values are closer."""

    metric: str
    title: str
    sign: int


AXES = (
    Axis("temporal_difference", "temporal difference (lower: calmer)", -1),
    Axis("prior_similarity", "prior similarity (DINOv3; higher: closer to the prior)", 1),
    Axis("prior_distance", "prior distance, pixels (stand-in without DINOv3; lower: closer to the prior)", -1),
)


def pareto_front(values: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the pairs (both to be maximised) that no other pair beats in one value without losing in the other."""
    return [
        i
        for i, (a, b) in enumerate(values)
        if not any((c >= a and d >= b) and (c > a or d > b) for c, d in values)
    ]  # fmt: skip


def curves(points: Sequence[Point | Mean]) -> dict[str, list]:
    """Points that differ in the prior strength alone, by what they share, in the order of the strength."""
    found: dict[str, list] = {}
    for point in points:
        shared = {key: value for key, value in point.settings.items() if key != STRENGTH}
        name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in shared.items())
        found.setdefault(name, []).append(point)
    for curve in found.values():
        curve.sort(key=lambda point: (point.settings.get(STRENGTH) is not None, point.settings.get(STRENGTH) or 0))
    return found


def comparison_points(comparison: Comparison) -> list[Point]:
    """The runs on the pictures that all methods have, by the method's name, or by its settings.

    These join methods that differ in the prior strength alone.
    """
    firsts = {method: next(iter(done.values())) for method, done in comparison.runs.items() if done}
    own = {method: _without(point.settings, *REPEATS) for method, point in firsts.items()}
    shared = Counter(repr(_without(settings, STRENGTH)) for settings in own.values())
    named = {
        method: settings if shared[repr(_without(settings, STRENGTH))] > 1 else {"method": method}
        for method, settings in own.items()
    }
    return [
        replace(done[picture], number="", settings={"image": picture} | named[method])
        for method, done in comparison.runs.items()
        for picture in comparison.complete
    ]


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def write_plane(path: Path, points: Sequence[Point]) -> Path | None:
    """Draw the planes for which the points have metrics, side by side; None, and no file, if there is none.

    The prior distance is drawn only where no DINOv3 encoder gave the prior similarity.
    """
    means = average(points)
    singles = by_picture(points) if len(means) < len(points) else []
    names = {name for mean in means for name in mean.metrics}
    chosen = [axis for axis in AXES if axis.metric in names]
    if "prior_similarity" in names:
        chosen = [axis for axis in chosen if axis.metric != "prior_distance"]
    path.unlink(missing_ok=True)
    if not chosen or "sharpness" not in names:
        return None
    lettering = Lettering(str(value) for mean in means for value in mean.settings.values())
    with lettering.for_figures():
        figure = Figure(figsize=(7 * len(chosen), 5.5), layout="constrained")
        for k, axis in enumerate(chosen):
            _draw(figure.add_subplot(1, len(chosen), k + 1), axis, means, singles, lettering, legend=k == 0)
        if singles:
            joined = any(len(curve) > 1 for curve in curves(means).values())
            thin = "; thin: each of them, at one level" if joined else ""
            figure.suptitle(f"{len(points)} runs: means over {len(singles)} pictures{thin}")
        figure.savefig(path, dpi=120)
    return path


def _legend_entry(name: str, curve: Sequence[Point | Mean], lettering: Lettering) -> str:
    """The numbers of its runs, and what they share."""
    numbers = shorten(ranges([number for point in curve for number in point.numbers]), _is_short)
    text = shorten(lettering.shown(name), _is_short) or "sweep"
    return f"{numbers}: {text}" if numbers and name else text


def _is_short(text: str) -> bool:
    return len(text) <= MAX_LETTERS


def _draw(
    axes: Axes,
    axis: Axis,
    means: Sequence[Mean],
    singles: Sequence[Sequence[Point]],
    lettering: Lettering,
    *,
    legend: bool,
) -> None:
    def measured(points: Sequence[Any]) -> list[Any]:
        return [point for point in points if {axis.metric, "sharpness"} <= point.metrics.keys()]

    def line(curve: Sequence[Any]) -> Iterator[list[float]]:
        return ([point.metrics[metric] for point in curve] for metric in (axis.metric, "sharpness"))

    means, colors = measured(means), {}
    for name, curve in curves(means).items():
        (drawn,) = axes.plot(
            *line(curve), marker="o", markersize=4, linewidth=1.2, label=_legend_entry(name, curve, lettering)
        )
        colors[name] = drawn.get_color()
        for point in curve:
            strength = point.settings.get(STRENGTH, point.settings.get("method", point.numbers[0]))
            text = f"{strength:g}" if isinstance(strength, float) else lettering.shown(f"{strength}")
            place = (point.metrics[axis.metric], point.metrics["sharpness"])
            label = axes.annotate(text, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
            label.set_in_layout(False)  # a long one must not make the plane small
    for points in singles:
        for name, curve in curves(measured(points)).items():
            if len(curve) > 1:
                axes.plot(*line(curve), color=colors.get(name, "grey"), linewidth=0.5, alpha=0.4, zorder=1)
    front = pareto_front([(axis.sign * p.metrics[axis.metric], p.metrics["sharpness"]) for p in means])
    ringed = sorted((means[i].metrics[axis.metric], means[i].metrics["sharpness"]) for i in front)
    xs, ys = zip(*ringed)
    axes.scatter(xs, ys, s=110, facecolors="none", edgecolors="black", linewidths=1.2, label="Pareto front", zorder=3)
    if axis.sign < 0:
        axes.invert_xaxis()  # closer to the prior is to the right in every plane
    axes.set_xlabel(axis.title)
    axes.margins(x=0.15)  # room for what stands beside the points
    axes.set_ylabel("sharpness (Tenengrad; higher: more detail of its own)")
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8)
