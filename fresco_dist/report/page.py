"""The page: one HTML file that plays the videos of all points synchronously, with a shared zoom and pan.

Self-contained: videos, plane and code are in the file, which works from a file:// path and can be moved. Browsers do
not hold gigabytes in a page, so beyond EMBED_LIMIT_BYTES of video the page refers to the run folders instead, relative
to itself, and says so. The template is `page.html`; nothing in it is fetched from anywhere.
"""

import base64
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fresco_dist.report.points import Point
from fresco_dist.report.table import cell, rows

EMBED_LIMIT_BYTES = 256 * 2**20


def write_page(path: Path, points: Sequence[Point], plane: Path | None) -> None:
    """Write the page; `plane` is the picture of the plane, if there is one."""
    videos = {point.folder: point.folder / "video.mp4" for point in points if point.status == "done"}
    videos = {folder: video for folder, video in videos.items() if video.is_file()}
    embed = sum(video.stat().st_size for video in videos.values()) <= EMBED_LIMIT_BYTES
    data = {
        "embedded": embed,
        "table": [{key: cell(key, value) for key, value in row.items()} for row in rows(points)],
        "plane": base64.b64encode(plane.read_bytes()).decode() if plane else None,
        "clips": [
            {
                "name": point.name,
                "label": point.label,
                "fps": point.run["config"]["video"]["fps"],
                "video": base64.b64encode(videos[point.folder].read_bytes()).decode()
                if embed
                else Path(os.path.relpath(videos[point.folder], path.parent)).as_posix(),
            }
            for point in points
            if point.folder in videos
        ],
    }
    fill_template(path, "page.html", data)


def fill_template(path: Path, template: str, data: dict) -> None:
    """Write the report's HTML file `template` with `data` in it to `path`."""
    template = (files("fresco_dist.report") / template).read_text()
    text = json.dumps(data).replace("<", "\\u003c")  # no value can end the script element
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(template.replace("{{DATA}}", text))
    partial.replace(path)
