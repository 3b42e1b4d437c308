"""Tables as CSV (full precision) and as Markdown: all points of a sweep, and the means over pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fresco_dist.report.means import Mean
from fresco_dist.report.points import Point

Row = dict[str, Any]
TIMES = ("total", "load", "prior", "steps", "decode", "write")


def rows(points: Sequence[Point]) -> list[Row]:
    """A row per point with its settings, metrics and times, all with the same keys; what a point lacks is None."""
    metrics = list(dict.fromkeys(name for point in points for name in point.metrics))
    has_work = len({point.run.get("work") for point in points}) > 1  # in forwards of one full window
    times = [name for name in TIMES if any(name in point.timings_s for point in points)]
    has_names = any(point.number != point.name for point in points)
    return [
        ({"number": point.number} if has_names else {})
        | {"run": point.name, "status": point.status}
        | point.settings
        | {name: point.metrics.get(name) for name in metrics}
        | ({"work": point.run.get("work")} if has_work else {})
        | {f"{name}_s": point.timings_s.get(name) for name in times}
        | {"latents_sha256": point.run.get("latents_sha256")}
        for point in points
    ]


def mean_rows(means: Sequence[Mean]) -> list[Row]:
    """A row per setting: the number of its runs, mean and standard deviation of each metric."""
    names = list(dict.fromkeys(name for mean in means for name in mean.metrics))
    return [
        mean.settings
        | {"runs": mean.num_runs}
        | {key: found.get(name) for name in names for key, found in ((name, mean.metrics), (f"{name}_sd", mean.spread))}
        for mean in means
    ]


def write_csv(path: Path, table: Sequence[Row]) -> None:
    """All rows, numbers as run.json has them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_markdown(path: Path, table: Sequence[Row]) -> None:
    """All rows as `markdown` shows them."""
    path.write_text(markdown(table))


def markdown(table: Sequence[Row]) -> str:
    """All rows, numbers to four digits, digests to eight characters."""
    lines = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    lines += ["| " + " | ".join(cell(key, value) for key, value in row.items()) + " |" for row in table]
    return "\n".join(lines) + "\n"


def cell(key: str, value: Any) -> str:
    """One value for people."""
    if value is None:
        return ""
    if key == "latents_sha256":
        return value[:8]
    if key == "image":
        value = Path(value).name
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
