"""The videos of a comparison as VBench-I2V reads them, for `launch/vbench/run.sh`.

    OUT/videos/METHOD/NAME-0.mp4   one video per picture: a hard link to the run's, or a copy on another file system
    OUT/images/NAME.png            what the videos began with, shared by the methods, as RGB
    OUT/videos.json                what is what, by METHOD/NAME-0.mp4

NAME and METHOD are plain ASCII here; the names that they stand for are in `videos.json`. OUT is complete without the
run folders and may be moved. It appears whole or not at all.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, VideoFormat, require
from fresco_dist.jobs.inputs import picture_path
from fresco_dist.media.pictures import read_image
from fresco_dist.report.comparison import Comparison

VIDEOS = "videos.json"
MAX_NAME = 100  # characters; file systems take 255 bytes


@dataclass(frozen=True)
class Export:
    """What was exported: all methods' videos of `pictures`; `left_out` says of others why not."""

    pictures: list[str]
    num_videos: int
    linked: bool  # else copied
    left_out: list[str]


def export(comparison: Comparison, out: Path) -> Export:
    """Write the videos of the pictures that every method has done to the new folder `out`.

    An `out` with the same videos is left as it is. Raises InputError.
    """
    out, pictures = out.absolute(), comparison.complete
    require(bool(pictures), "FOLDER", comparison.folder, "a comparison with a picture that every method has done",
            "Let its runs end, or name the methods that have.")  # fmt: skip
    names, videos = _file_names(pictures), _videos(comparison)
    if (out / VIDEOS).is_file() and read_videos(out) == videos:
        linked = (out / "videos" / next(iter(videos))).stat().st_nlink > 1
    else:
        is_new = not out.exists() or out.is_dir() and not any(out.iterdir())
        require(is_new, "OUT", out, "a new folder, or one with these very videos", "Name another, or remove it.")
        partial = out.with_name(f".partial-{out.name}")
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was interrupted
        try:
            linked = all([_put(_video(entry), partial / "videos" / name) for name, entry in videos.items()])
            (partial / "images").mkdir()
            for picture in pictures:
                image = read_image(_image_of(comparison, picture), key=f"the image of {picture}")
                image.save(partial / "images" / f"{names[picture]}.png", compress_level=1)
            (partial / VIDEOS).write_text(json.dumps(videos, indent=1) + "\n")
            partial.replace(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return Export(pictures, len(videos), linked, _left_out(comparison))


def read_videos(out: Path) -> dict[str, dict[str, Any]]:
    """The list of an export: for each METHOD/NAME-0.mp4 its method, picture, image, run and sha256.

    Raises InputError.
    """
    try:
        videos = json.loads((out / VIDEOS).read_text())
        for name, entry in videos.items():
            name.split("/")[1], entry["method"], entry["picture"], entry["image"], entry["run"], entry["sha256"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"OUT must be a folder that `python -m fresco_dist.report.vbench export` wrote; {out / VIDEOS} cannot be"
            f" read ({error}). Export to a new folder."
        ) from None
    return videos


def _videos(comparison: Comparison) -> dict[str, dict[str, Any]]:
    names, folders = _file_names(comparison.complete), _file_names(comparison.runs)
    for method, runs in comparison.runs.items():
        for picture in comparison.complete:
            format, key = runs[picture].format, f"video.format of {method} on {picture}"
            remedy = "Start the run again with it."
            require(format is VideoFormat.h264, key, format.value, "h264, which VBench's reader decodes", remedy)
    return {
        f"{folders[method]}/{names[picture]}-0.mp4": {
            "method": method,
            "picture": picture,
            "image": f"{names[picture]}.png",
            "run": str(runs[picture].folder.resolve()),
            "sha256": runs[picture].run.get("products", {}).get("video.mp4"),
        }
        for method, runs in comparison.runs.items()
        for picture in comparison.complete
    }


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name for each, without extension: readable, ASCII, unlike the others in more than upper and lower case."""
    taken: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9.=-]+", "_", name)[:MAX_NAME].lstrip(".-") or "_"
        while plain.casefold() in taken:
            plain += "_"
        taken[plain.casefold()] = plain
    return dict(zip(names, taken.values()))


def _video(entry: dict[str, Any]) -> Path:
    return Path(entry["run"]) / "video.mp4"


def _put(source: Path, target: Path) -> bool:
    """Whether `target` is a hard link to `source`, which later runs replace and never change; else it is a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        raise InputError(f"{source} is missing though its run is done. Start the run again.")
    try:
        os.link(source, target)
        return True
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        return False


def _image_of(comparison: Comparison, picture: str) -> Path:
    """The picture as it was given: VBench brings it and the frames to one size itself."""
    images = {runs[picture].run["config"].get("image") for runs in comparison.runs.values()}
    if len(images) > 1:
        given = ", ".join(sorted(map(str, images)))
        raise InputError(f"The runs of {picture} must be of one image; got {given}. Compare runs of the same image.")
    return picture_path(images.pop())


def _left_out(comparison: Comparison) -> list[str]:
    lines = [f"{what}: {why}" for what, why in comparison.left_out.items()]
    for picture in comparison.pictures:
        lacking = [method for method, runs in comparison.runs.items() if picture not in runs]
        if lacking:
            lines.append(f"{picture}: not done by {', '.join(lacking)}")
    return lines
