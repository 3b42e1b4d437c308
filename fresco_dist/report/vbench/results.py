"""VBench's own result files of an export as tables: read, checked against the list of its videos, averaged.

    OUT/results/METHOD/DIMENSION_eval_results.json   {DIMENSION: [mean, [{"video_path", "video_results"}, ...]]}
    OUT/results/METHOD/DIMENSION_full_info.json      the videos that VBench was given

VBench's means are taken as they are, without any normalisation, as in tables 2 and 5 of FrescoDiffusion (arXiv
2603.17555); `Avg` is the plain mean of the six.
"""

import json
import math
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

from fresco_dist.config import InputError
from fresco_dist.report.comparison import Comparison
from fresco_dist.report.table import Row, write_csv, write_markdown
from fresco_dist.report.vbench.exporting import VIDEOS, read_videos

COLUMNS = {  # of the paper's table 5, in its order
    "SC": "subject_consistency",
    "MS": "motion_smoothness",
    "A": "aesthetic_quality",
    "I": "imaging_quality",
    "ISC": "i2v_subject",
    "IBC": "i2v_background",
}
PER_CENT = ("imaging_quality",)  # VBench divides their mean by 100, and leaves the videos' values

Values = dict[str, dict[str, dict[str, float]]]  # [method][picture][dimension]
Videos = dict[str, dict[str, Any]]


def read_results(out: Path) -> Values:
    """`values[method][picture][dimension]`, scaled as VBench's means; a dimension (VBench's name) may have none yet.

    Raises InputError if a file cannot be read or is not of these videos, all of them and no other.
    """
    return _read(out)[1]


def read_figures(out: Path, comparison: Comparison) -> Values:
    """The same by column, `values[method][picture][column]`, with the mean of the six where all are there.

    Raises InputError also if a video of the export is not the one that the comparison's run has now.
    """
    for name, entry in read_videos(out).items():
        run = comparison.runs.get(entry["method"], {}).get(entry["picture"])
        if run is None or run.run.get("products", {}).get("video.mp4") != entry["sha256"]:
            raise InputError(
                f"{out} must be an export of {comparison.folder} as it is now; {name} is another video than that of"
                f" {entry['method']} on {entry['picture']}. Export to a new folder."
            )
    return {
        method: {
            picture: {column: value for column, value in _row(found).items() if value is not None}
            for picture, found in pictures.items()
        }
        for method, pictures in read_results(out).items()
    }


def write_tables(out: Path) -> list[str]:
    """Write `vbench.md`, `vbench.csv` (a row per method) and `vbench_videos.csv` (a row per video) to `out`.

    Returns what is missing, as METHOD: DIMENSIONS; such a row has no average. Raises InputError.
    """
    means, values = _read(out)
    if not any(means.values()):
        raise InputError(f"{out} must hold results of VBench; it has none. Run launch/vbench/run.sh {out} first.")
    methods = [{"method": method, "videos": len(values[method])} | _row(means[method]) for method in means]
    videos = [
        {"method": method, "picture": picture} | _row(found)
        for method, pictures in values.items()
        for picture, found in pictures.items()
    ]
    write_markdown(out / "vbench.md", methods)
    write_csv(out / "vbench.csv", methods)
    write_csv(out / "vbench_videos.csv", videos)
    missing = {method: [name for name in COLUMNS.values() if name not in found] for method, found in means.items()}
    return [f"{method}: {', '.join(names)}" for method, names in missing.items() if names]


def _row(found: dict[str, float]) -> Row:
    """Six columns and their mean, if all are there."""
    row: Row = {column: found.get(dimension) for column, dimension in COLUMNS.items()}
    return row | {"Avg": fmean(row.values()) if None not in row.values() else None}


def _read(out: Path) -> tuple[dict[str, dict[str, float]], Values]:
    """VBench's means by method and dimension, and the values of the videos."""
    folders: dict[str, Videos] = {}
    for name, entry in read_videos(out).items():
        folders.setdefault(name.split("/")[0], {})[name] = entry
    means: dict[str, dict[str, float]] = {}
    values: Values = {}
    for folder, videos in folders.items():
        method = next(iter(videos.values()))["method"]
        means[method] = {}
        values[method] = {entry["picture"]: {} for entry in videos.values()}
        for dimension in COLUMNS.values():
            path = out / "results" / folder / f"{dimension}_eval_results.json"
            if path.is_file():
                means[method][dimension], found = _read_file(path, dimension, videos)
                for picture, value in found.items():
                    values[method][picture][dimension] = value
    return means, values


def _read_file(path: Path, dimension: str, videos: Videos) -> tuple[float, dict[str, float]]:
    """The mean, and the value of each picture."""
    try:
        mean, results = json.loads(path.read_text())[dimension]
        found = [(_name(result["video_path"]), float(result["video_results"])) for result in results]
        mean = float(mean)
        given = json.loads(path.with_name(f"{dimension}_full_info.json").read_text())
        digests = {_name(video): entry["sha256"] for entry in given for video in entry["video_list"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _refusal(path, f"cannot be read ({type(error).__name__}: {error})") from None
    names = [name for name, _ in found]
    for name in names:
        if name not in videos or names.count(name) > 1:
            raise _refusal(path, f"has {name} twice" if name in videos else f"has {name}, which is no video of this")
    for name, entry in videos.items():
        if name not in names:
            raise _refusal(path, f"lacks {name}")
        if digests.get(name) != entry["sha256"]:
            raise _refusal(path, f"is of another {name}: its SHA-256 is not that in {VIDEOS}")
    scale = 100.0 if dimension in PER_CENT else 1.0
    values = {videos[name]["picture"]: value / scale for name, value in found}
    if not all(map(math.isfinite, [mean, *values.values()])):
        raise _refusal(path, "has values that are no finite numbers")
    if not min(values.values()) - 1e-6 <= mean <= max(values.values()) + 1e-6:
        raise _refusal(path, f"has a mean of {mean:.6g}, outside its values")
    return mean, values


def _name(video_path: str) -> str:
    """METHOD/NAME-0.mp4, wherever the export was when VBench saw it."""
    return "/".join(PurePosixPath(video_path).parts[-2:])


def _refusal(path: Path, what: str) -> InputError:
    return InputError(f"{path} must be VBench's results of these videos; it {what}. Remove it and run VBench again.")
