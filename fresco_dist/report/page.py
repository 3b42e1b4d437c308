"""The page: one HTML file that plays videos side by side in step, with a shared zoom and pan.

A sweep's has all its clips; a comparison's has pairs, of the reference and a method that is chosen on the page, and
loads those that are in view. Self-contained: videos, plane and code are in the file, which works from a file:// path
and can be moved. Browsers do not hold gigabytes in a page, so beyond EMBED_LIMIT_BYTES of video the page refers to the
run folders instead, relative to itself, and says so. The template is `page.html`; nothing in it is fetched.
"""

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fresco_dist.config import read_rate
from fresco_dist.report.aside import write_aside
from fresco_dist.report.comparison import Comparison
from fresco_dist.report.points import Point
from fresco_dist.report.table import Row, cell, rows

EMBED_LIMIT_BYTES = 256 * 2**20


def write_page(path: Path, points: Sequence[Point], plane: Path | None) -> None:
    """Write a sweep's page; `plane` is the picture of the plane, if there is one."""
    clips = [(f"{point.number}: {point.label}", point) for point in points if point.status == "done"]
    _write(path, "Sweep", clips, {"Runs": rows(points)}, plane)


def write_comparison_page(
    path: Path, comparison: Comparison, tables: Mapping[str, Sequence[Row]], notes: Sequence[str], plane: Path | None
) -> None:
    """Write a comparison's page, with tables by their titles, and notes below them."""
    clips: list[tuple[str, Point]] = []
    pictures = []
    for picture in comparison.pictures:
        runs = {}
        for method, done in comparison.runs.items():
            if picture in done:
                metrics = {name: value for name, value in done[picture].metrics.items() if math.isfinite(value)}
                runs[method] = {"clip": len(clips), "metrics": metrics}
                clips.append((method, done[picture]))
        pictures.append({"name": picture, "runs": runs})
    facts = {"reference": comparison.reference, "methods": list(comparison.runs), "pictures": pictures}
    _write(path, "Comparison", clips, tables, plane, notes=list(notes), comparison=facts)


def _write(
    path: Path,
    title: str,
    clips: Sequence[tuple[str, Point]],
    tables: Mapping[str, Sequence[Row]],
    plane: Path | None,
    **more: Any,
) -> None:
    played = [point.video for _, point in clips if point.encoding.is_played]
    embed = sum(video.stat().st_size for video in played if video.is_file()) <= EMBED_LIMIT_BYTES

    def source(point: Point) -> str | None:
        video = point.video
        if not point.encoding.is_played or not video.is_file():
            return None
        if embed:
            return base64.b64encode(video.read_bytes()).decode()
        return quote(Path(os.path.relpath(video, path.parent)).as_posix())

    data = {
        "title": title,
        "embedded": embed,
        "tables": {
            name: [{key: cell(key, value) for key, value in row.items()} for row in table]
            for name, table in tables.items()
            if table
        },
        "plane": base64.b64encode(plane.read_bytes()).decode() if plane else None,
        "clips": [
            {
                "caption": caption,
                "fps": float(read_rate(point.run["config"]["video"]["fps"])),
                "size": [point.run["canvas"][side] for side in ("width", "height")]
                if "canvas" in point.run
                else [16, 9],
                "video": source(point),
            }
            for caption, point in clips
        ],
    }
    more["notes"] = [*more.get("notes", ()), *_left_out([point for _, point in clips])]
    fill_template(path, "page.html", data | more)


def _left_out(points: Sequence[Point]) -> list[str]:
    """Which videos the page lacks, and why: a line for each format."""
    counts = Counter(point.format.value for point in points if not point.encoding.is_played)
    return [
        f"{count} {'videos are' if count > 1 else 'video is'} left out: no browser plays video.format={name}."
        f" The contact sheet{'s show' if count > 1 else ' shows'} what {'they are' if count > 1 else 'it is'}."
        for name, count in counts.items()
    ]


def fill_template(path: Path, name: str, data: dict) -> None:
    """Write the report's HTML file `name` with `data` in it to `path`."""
    template, zoom = ((files("fresco_dist.report") / file).read_text() for file in (name, "zoom.js"))
    text = json.dumps(data).replace("<", "\\u003c")  # no value can end the script element
    page = template.replace("{{ZOOM}}", zoom).replace("{{DATA}}", text)
    write_aside(path, lambda partial: partial.write_text(page))
