"""The points of a sweep, from the run.json of each run folder below it. Standard library only."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco_dist.config import FORMATS, Encoding, InputError, VideoFormat

NO_SETTING = ("cluster", "store", "plan_only", "metrics", "preview", "dino_path")  # what decides no pixel
OF_PICTURE = ("image_last", "prompt", "regions", "fusion.activity_map")  # no setting of its own if each image has one


@dataclass(frozen=True)
class Point:
    """One run of the sweep. `settings` are the keys, dotted, that differ between the points.

    What goes with the image, its prompt for one, is not told beside it.
    """

    folder: Path
    status: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    timings_s: dict[str, float]
    run: dict

    @property
    def name(self) -> str:
        """The folder's name, which is the job's number in a Hydra sweep."""
        return self.folder.name

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
    paths = sorted(sweep_folder.glob(f"{where}/run.json"), key=lambda path: (_natural(path.parent.name), str(path)))
    for path in paths:
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
    return [
        Point(
            folder=folder,
            status=run["status"],
            settings={key: flat[folder].get(key) for key in varying},
            metrics={name: value for name, value in (run.get("metrics") or {}).items() if _is_finite(value)},
            timings_s=run.get("timings_s", {}),
            run=run,
        )
        for folder, run in runs.items()
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 62, name)


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


def _text(key: str, value: Any) -> str:
    if key == "image" and value:
        return Path(value).stem
    return f"{value:g}" if isinstance(value, float) else str(value)
