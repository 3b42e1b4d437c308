"""Runs of several methods on the same pictures: what tables, pages, exports and studies compare.

Read from the folder of an evaluation (`python -m fresco_dist.evaluate`), which names methods and pictures in its
`evaluation.json`, or from a sweep, whose runs are told apart by their settings. Standard library only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, require
from fresco_dist.report.means import REPEATS
from fresco_dist.report.points import Point, flatten, read_points

MANIFEST = "evaluation.json"
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]  # figures[method][picture][metric]


@dataclass(frozen=True)
class Comparison:
    """The runs that are done: `runs[method][picture]`.

    `reference` is the method that others are compared with. `pictures` are all that were asked for, in their order;
    `left_out` says of rows that could not be read, and of runs (METHOD/PICTURE) that failed, why.
    """

    folder: Path
    reference: str
    runs: dict[str, dict[str, Point]]
    pictures: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def complete(self) -> list[str]:
        """The pictures that every method has done."""
        return [picture for picture in self.pictures if all(picture in done for done in self.runs.values())]

    def with_metrics(self, extra: Figures) -> "Comparison":
        """The same with more metrics of its runs, measured elsewhere."""
        runs = {
            method: {
                picture: replace(point, metrics=point.metrics | dict(extra.get(method, {}).get(picture, {})))
                for picture, point in done.items()
            }
            for method, done in self.runs.items()
        }
        return replace(self, runs=runs)


def read_comparison(folder: Path, methods: Sequence[str] = ()) -> Comparison:
    """The comparison in an evaluation's or a sweep's folder; of these methods alone, in this order, if some are named.

    The first of them is the reference then, unless the evaluation's own is among them. Raises InputError.
    """
    found = _read_evaluation(folder) if (folder / MANIFEST).is_file() else _read_sweep(folder)
    for method in methods:
        known = method in found.runs
        require(known, "method", method, f"one of {', '.join(found.runs)}", "Choose among those.")
    chosen = list(dict.fromkeys(methods)) or list(found.runs)
    reference = found.reference if found.reference in chosen else chosen[0]
    runs = {method: found.runs[method] for method in chosen}
    others = tuple(f"{method}/" for method in found.runs if method not in runs)
    left_out = {row: reason for row, reason in found.left_out.items() if not row.startswith(others)}
    return replace(found, reference=reference, runs=runs, left_out=left_out)


def _read_evaluation(folder: Path) -> Comparison:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        methods, pictures, reference = list(manifest["methods"]), list(manifest["pictures"]), manifest["reference"]
        left_out, settings, configs = dict(manifest["left_out"]), manifest["pictures"], manifest["configs"]
        expected = {method: flatten(configs[method]) for method in methods}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}). Start the evaluation again.") from None
    runs: dict[str, dict[str, Point]] = {method: {} for method in methods}
    for point in read_points(folder, "*/*"):
        method, picture = point.folder.parent.name, point.folder.name
        if method not in runs or picture not in pictures or f"{method}/{picture}" in left_out:
            continue  # of a data set or a comparison that has changed since, or refused as it is now
        if not _is_as_asked(flatten(point.run["config"]), expected[method], settings[picture]):
            continue  # of an earlier start with other settings
        if point.status == "done":
            runs[method][picture] = point
        else:
            left_out[f"{method}/{picture}"] = point.run.get("error", point.status)
    return Comparison(folder, reference, runs, tuple(pictures), left_out)


def _is_as_asked(own: dict[str, Any], method: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a run has its method's configuration, with what its picture sets."""
    changed = {*settings, "fusion.activity_map", "sam3.path"}  # by the picture, or in place of a map that is made
    same = all(own.get(key) == value for key, value in method.items() if key not in changed)
    taken = own.keys() - {"regions", "fusion.activity_map"}  # a file's list, and what only some methods take
    return same and all(own[key] == value for key, value in settings.items() if key in taken)


def _read_sweep(folder: Path) -> Comparison:
    points = read_points(folder)
    varying = [key for key in points[0].settings if key not in REPEATS]
    repeated = [key for key in points[0].settings if key in REPEATS]
    runs: dict[str, dict[str, Point]] = {}
    pictures: list[str] = []
    left_out: dict[str, str] = {}
    for point in points:
        picture = "_".join(_short(key, point.settings[key]) for key in repeated) or "picture"
        method = _method(point, varying)
        pictures += [picture] * (picture not in pictures)
        if point.status != "done":
            left_out[f"{method}/{picture}"] = point.run.get("error", point.status)
        elif picture in runs.setdefault(method, {}):
            raise InputError(f"{folder}: {point.folder} is one more run of {method} on {picture}. Remove one of them.")
        else:
            runs[method][picture] = point
    if not runs:
        raise InputError(f"{folder} must have runs that are done; it has none. Start them again.")
    return Comparison(folder, next(iter(runs)), runs, tuple(pictures), left_out)


def _method(point: Point, varying: Sequence[str]) -> str:
    """What a sweep's run is called: its method, or what else sets it apart."""
    if len(varying) <= 1:
        return _short(varying[0], point.settings[varying[0]]) if varying else point.run["config"]["fusion"]["method"]
    own = point.run["config"]["fusion"]  # a recipe has not the keys of another
    shown = [key for key in varying if not key.startswith("fusion.") or key.removeprefix("fusion.") in own]
    return " ".join(_short(key, point.settings[key]) for key in shown)


def _short(key: str, value: Any) -> str:
    if key == "image":
        return Path(value).stem if value else "fresco"
    if key == "fusion.method":
        return str(value)
    return f"{key.rpartition('.')[2]}={value}"
