"""The page of a user study, as that of FrescoDiffusion (arXiv 2603.17555, table 1), and the key to it.

A study is one HTML page that shows pairs of videos of two methods from the same picture, without names, and asks which
is better; beside it stands `study_key.json`, which says what was what. Beyond the limit of `page.py` the videos are
copied beside the page, into `study_files`. The page, its videos' names and the votes hold random ids alone; the key is
for whoever counts. Template: `study.html`.
"""

import base64
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path

import av
from PIL import Image

from fresco_dist.config import FORMATS, InputError, require
from fresco_dist.jobs.inputs import picture_path
from fresco_dist.media.pictures import read_image
from fresco_dist.report import page
from fresco_dist.report.aside import write_aside
from fresco_dist.report.comparison import read_comparison
from fresco_dist.report.points import Point
from fresco_dist.report.study.votes import KEY_NAME, read_key, study_id

QUESTIONS = {  # in the paper's words and order
    "animation fidelity": "Which video most closely resembles a fresco artwork that has been smoothly and naturally"
    " animated?",
    "motion plausibility": "Which video provides the most convincing animation of the input image, with appropriate"
    " and perceptible motion?",
}
FILES = "study_files"
PICTURE_PX = 1280  # the input picture's longer side on the page

Match = tuple[str, str]
Run = tuple[str, str]  # method, picture


def write_study(
    folder: Path,
    *,
    methods: Sequence[str] = (),
    against: Sequence[str] = (),
    out: Path | None = None,
    num_pairs: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write a study of the evaluation or sweep in `folder`; returns what raters get, page first, and the key last.

    `methods` (all, if none is named) are compared with each other and with each of `against`, on the pictures that all
    of them have done. Raises InputError.
    """
    out = out or folder / "study" / "study.html"
    require(not out.is_dir(), "--out", out, "a file, not a folder", f"Try {out / 'study.html'}.")
    comparison = read_comparison(folder, [*methods, *against] if methods else ())
    for method in against:
        require(method in comparison.runs, "--against", method, f"one of {', '.join(comparison.runs)}", "Choose one.")
    matches = _matches([*(methods or (m for m in comparison.runs if m not in against))], against)
    require(
        matches != [],
        "--methods",
        ",".join(methods) or "all",
        "two or more",
        f"There are {', '.join(comparison.runs)}.",
    )
    pictures = comparison.complete
    require(pictures != [], "pictures", "none", "done by all methods", "Leave a method out, or run what is missing.")
    num_all = len(matches) * len(pictures)
    num_pairs = num_all if num_pairs is None else num_pairs
    require(0 < num_pairs <= num_all, "--pairs", num_pairs, f"in 1..{num_all}", "There are no more.")

    rng = random.Random(seed)
    pairs = draw_pairs(matches, pictures, num_pairs, rng)
    points = {(m, p): comparison.runs[m][p] for m, p in sorted({run for pair in pairs for run in pair})}
    ids = {run: rng.randbytes(6).hex() for run in points}
    _check_played(points)
    _check_alike(pairs, points)
    key = {
        "seed": seed,
        "questions": QUESTIONS,
        "matches": [list(match) for match in matches],
        "clips": {ids[m, p]: {"method": m, "picture": p, "sha256": _digest(points[m, p])} for m, p in ids},
        "pairs": [{"id": rng.randbytes(6).hex(), "left": ids[left], "right": ids[right]} for left, right in pairs],
    }
    key = {"study": study_id(key)} | key
    images = {picture: _image(point) for picture, point in {p: point for (_, p), point in points.items()}.items()}
    _write_key(out, key)
    embedded = sum(point.video.stat().st_size for point in points.values()) <= page.EMBED_LIMIT_BYTES
    folders = [] if embedded else [out.parent / FILES]
    page.fill_template(out, "study/study.html", _page_data(key, embedded, points, images, out.parent / FILES))
    return [out, *folders, out.parent / KEY_NAME]


def draw_pairs(
    matches: Sequence[Match], pictures: Sequence[str], num_pairs: int, rng: random.Random
) -> list[tuple[Run, Run]]:
    """Pairs (left, right) in random order: as many of each match, and each method as often on each side, as can be."""
    orders = [rng.sample(pictures, len(pictures)) for _ in matches]
    rounds = [(m, order[m]) for order in zip(*orders) for m in rng.sample(range(len(matches)), len(matches))]
    pairs = []
    for m, (first, second) in enumerate(matches):
        swapped = rng.random() < 0.5
        for picture in [picture for index, picture in rounds[:num_pairs] if index == m]:
            pair = (first, picture), (second, picture)
            pairs.append(pair[::-1] if swapped else pair)
            swapped = not swapped  # the pictures are in random order: sides may take turns
    rng.shuffle(pairs)
    return pairs


def _matches(methods: Sequence[str], against: Sequence[str]) -> list[Match]:
    methods = list(dict.fromkeys(methods))
    others = [method for method in dict.fromkeys(against) if method not in methods]
    return [*combinations(methods, 2), *product(methods, others)]


def _check_played(points: dict[Run, Point]) -> None:
    played = ", ".join(name.value for name, encoding in FORMATS.items() if encoding.is_played)
    for (method, picture), point in points.items():
        allowed = f"one that browsers play ({played})"
        remedy = "Start the run again with video.format=h264."
        key = f"video.format of {method} on {picture}"
        require(point.encoding.is_played, key, point.format.value, allowed, remedy)


def _check_alike(pairs: Sequence[tuple[Run, Run]], points: dict[Run, Point]) -> None:
    told = {run: "{} x {} px, {:g} per second, {} frames".format(*_shape(point)) for run, point in points.items()}
    for left, right in pairs:
        found = f"{told[left]} ({left[0]}) and {told[right]} ({right[0]})"
        alike = told[left] == told[right]
        require(alike, f"the videos of {left[1]}", found, "alike in size, rate and length", "Render them alike.")


def _shape(point: Point) -> tuple[int, int, float, int]:
    """Width, height, frames per second, number of frames."""
    try:
        with av.open(os.path.abspath(point.video)) as container:
            stream = container.streams.video[0]
            return stream.width, stream.height, float(stream.average_rate or 0), stream.frames
    except (OSError, ValueError, LookupError, av.FFmpegError) as error:
        raise InputError(f"{point.video} cannot be read as a video ({error}). Start the run again.") from None


def _digest(point: Point) -> str:
    return hashlib.sha256(point.video.read_bytes()).hexdigest()


def _write_key(out: Path, key: dict) -> None:
    path = out.parent / KEY_NAME
    if path.exists():  # votes are worth nothing without their key
        same = read_key(path)["study"] == key["study"]
        require(same, "--out", out, "in a folder without another study", f"Give another one, or remove {path}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda partial: partial.write_text(json.dumps(key, indent=1)))


def _page_data(key: dict, embedded: bool, points: dict[Run, Point], images: dict[str, str], copies: Path) -> dict:
    """What the page knows: of the key, ids alone."""
    runs = {id: (clip["method"], clip["picture"]) for id, clip in sorted(key["clips"].items())}
    names = {picture: f"picture{i}" for i, picture in enumerate(images)}
    pairs = []
    for pair in key["pairs"]:
        run = runs[pair["left"]]
        width, height, fps, _ = _shape(points[run])
        pairs.append(pair | {"picture": names[run[1]], "width": width, "height": height, "fps": fps})
    return {
        "study": key["study"],
        "questions": key["questions"],
        "pairs": pairs,
        "pictures": {names[picture]: image for picture, image in images.items()},
        "embedded": embedded,
        "clips": {
            id: base64.b64encode(points[run].video.read_bytes()).decode()
            if embedded
            else _copy(points[run], copies, id)
            for id, run in runs.items()
        },
    }


def _copy(point: Point, folder: Path, id: str) -> str:
    """A copy under a name that tells nothing; returns its address from the page."""
    folder.mkdir(exist_ok=True)
    write_aside(folder / f"{id}.mp4", partial(shutil.copyfile, point.video))
    return f"{folder.name}/{id}.mp4"


def _image(point: Point) -> str:
    """The input picture of a run, small, as JPEG in base64."""
    picture = read_image(picture_path(point.run["config"].get("image")), key=f"image of {point.folder}")
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()
