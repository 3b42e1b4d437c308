"""The points of a sweep, from the run.json of each run folder below it. Standard library only."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco_dist.config import FORMATS, Encoding, InputError, VideoFormat

NO_SETTING = ("cluster", "store", "plan_only", "metrics", "preview", "dino_path")  # what decides no pixel
OF_PICTURE = ("image_last", "prompt", "regions", "fusion.activity_map")  # no setting of its own if each image has one
MAX_LETTERS = 80  # of a value in a label; tables have all of it


@dataclass(frozen=True)
class Point:
    """One run of the sweep. `settings` are the keys, dotted, that differ between the points.

    What goes with the image, its prompt for one, is not told beside it. `name` is its folder below the one that all
    points lie in, in a Hydra sweep the job's number; `number` is the same, or its place where names are no numbers.
    """

    name: str
    number: str
    folder: Path
    status: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    timings_s: dict[str, float]
    run: dict

    @property
    def numbers(self) -> tuple[str, ...]:
        """As of several runs taken together, see `means.Mean`."""
        return (self.number,)

    @property
    def format(self) -> VideoFormat:
        """What its video is written as; runs of earlier versions knew H.264 alone."""
        return VideoFormat(self.run["config"].get("video", {}).get("format", "h264"))

    @property
    def encoding(self) -> Encoding:
        """How."""
        return FORMATS[self.format]

    @property
    def video(self) -> Path:
        """Where."""
        return self.folder / self.encoding.file_name

    @property
    def label(self) -> str:
        """What sets this point apart, in one line: last part of each key, and its value."""
        if not self.settings:
            return self.name
        own = flatten(self.run["config"])  # a recipe has not the keys of another
        shown = {key: value for key, value in self.settings.items() if key in own}
        return ", ".join(f"{key.rpartition('.')[2]} {_text(key, value)}" for key, value in shown.items())


def read_points(sweep_folder: Path, where: str = "**") -> list[Point]:
    """Every run below `sweep_folder`, in folders of that pattern, that left a run.json, in the order of their numbers.

    Raises InputError if there is none. A run that failed or is incomplete is a point without metrics.
    """
    runs = {}
    paths = sweep_folder.glob(f"{where}/run.json")
    for path in sorted(paths, key=lambda path: [_natural(part) for part in path.parts]):
        try:
            run = json.loads(path.read_text())
            run["status"], run["config"]["seed"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} must be the run.json of a run; it cannot be read ({error}). Remove it.") from None
        runs[path.parent] = run
    if not runs:
        raise InputError(
            f"SWEEP_FOLDER must be a folder with run folders below it; got {sweep_folder}, which has none."
            " Give a folder below multirun/."
        )
    flat = {folder: flatten(run["config"]) for folder, run in runs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)

    def num_different(*names: str) -> int:
        return len({json.dumps([settings.get(name) for name in names]) for settings in flat.values()})

    varying = [key for key in keys if num_different(key) > 1]
    num_images = num_different("image")
    if num_images > 1:
        varying = [key for key in varying if key not in OF_PICTURE or num_different("image", key) > num_images]
    names = _names(list(runs))
    is_numbered = all(name.isdecimal() for name in names)
    return [
        Point(
            name=name,
            number=name if is_numbered else str(i),
            folder=folder,
            status=run["status"],
            settings={key: flat[folder].get(key) for key in varying},
            metrics={name: value for name, value in (run.get("metrics") or {}).items() if _is_finite(value)},
            timings_s=run.get("timings_s", {}),
            run=run,
        )
        for i, (name, (folder, run)) in enumerate(zip(names, runs.items(), strict=True))
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells them apart, of their paths."""
    common = os.path.commonpath([folder.parent for folder in folders])
    return [folder.relative_to(common).as_posix() for folder in folders]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """What decides pixels of a run's configuration, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in NO_SETTING:
            continue
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """A text that fits, without its middle if it must be: what sets texts apart is often at their ends."""
    if fits(text):
        return text
    lengths = range(len(text), -1, -1)
    shorter = (f"{text[: (n + 1) // 2]}...{text[len(text) - n // 2 :]}" for n in lengths)
    return next(filter(fits, shorter), "")


def _text(key: str, value: Any) -> str:
    if key == "image" and value:
        value = Path(value).stem
    text = " ".join((f"{value:g}" if isinstance(value, float) else str(value)).split())
    return shorten(text, lambda text: len(text) <= MAX_LETTERS)
