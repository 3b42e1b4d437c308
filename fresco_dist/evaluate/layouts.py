"""Where the rows of a data set come from: the layouts of folders that are known, in the order they are looked for.

1. An imagefolder of Hugging Face's datasets: `metadata.csv` or `metadata.jsonl`, in the folder or one level down
   (train/, test/); all of them are read (huggingface.co/docs/datasets, "Create an image dataset").
2. VBench-I2V's image suite: `vbench2_beta_i2v/data/crop/{1-1,8-5,7-4,16-9}`, or one of these folders alone; prompts in
   `vbench2_i2v_full_info.json`, or else the files' names (github.com/Vchitect/VBench, vbench2_beta_i2v/README.md).
3. Pictures, `NAME.txt` beside `NAME.png` being its prompt. `NAME_activity.png` is the activity map of `NAME.png`, as
   `training.pictures` writes it, unless it has a text of its own.

Whatever the layout, a row has the columns of an imagefolder. What they mean is dataset.py's, and no picture is opened.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, require

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
ACTIVITY = "_activity"
SUITE_FOLDERS = ("vbench2_beta_i2v/data/crop", "data/crop", "crop", ".")
SUITE_SHAPE = "16-9"
SUITE_INFO = "vbench2_i2v_full_info.json"
KNOWN = (
    "a folder with metadata.csv or metadata.jsonl (columns file_name and text), with pictures"
    f" ({' '.join(PICTURES)}) and a .txt for each, or VBench-I2V's with crop/{SUITE_SHAPE}"
)
NO_PARQUET = "Parquet is not read: write its pictures as files, with a metadata.jsonl beside them."


@dataclass(frozen=True)
class Row:
    """A row as it was found, by a label that the user knows it by, or the problem with it.

    Paths among `columns` are relative to `base`. Names are told from `root`, and no path goes up out of it.
    """

    label: str
    root: Path
    base: Path
    columns: dict[str, Any]
    problem: str = ""


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of the data set in `folder`, an absolute path, and notes; raises InputError if there is no layout."""
    for layout in (_imagefolder, _image_suite, _texts_beside):
        found = layout(folder)
        if found is not None:
            return found
    remedy = "Check the path."
    if any(map(_pictures, _folders(folder))):
        remedy = "Give the folder of its pictures, which lie further down."
    elif any(path.suffix == ".parquet" for place in (folder, *_folders(folder)) for path in _visible(place)):
        remedy = NO_PARQUET
    raise InputError(f"dataset must be {KNOWN}; got {folder}, which is none of them. {remedy}")


def natural(name: str) -> tuple:
    """By what names are sorted as people count: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return (*((part.casefold(), int(number)) for part, number in zip(parts[::2], [*parts[1::2], 0])), name)


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: natural(path.name))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in PICTURES and path.is_file()]


def _imagefolder(folder: Path) -> tuple[list[Row], list[str]] | None:
    files = [place / name for place in (folder, *_folders(folder)) for name in METADATA if (place / name).is_file()]
    for before, path in zip([None, *files], files):
        require(path.suffix != ".parquet", "dataset", path, "described in CSV or JSON lines", NO_PARQUET)
        alone = before is None or before.parent != path.parent
        require(alone, "dataset", path.parent, "described in one file, metadata.csv or metadata.jsonl", "Keep one.")
    return ([row for path in files for row in _read_metadata(folder, path)], []) if files else None


def _read_metadata(folder: Path, path: Path) -> Iterator[Row]:
    read = _read_csv if path.suffix == ".csv" else _read_json_lines
    try:
        lines = list(read(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"dataset: {path} cannot be read: {error}. Mend its quotes, and save it as UTF-8.") from None
    for line, columns, problem in lines:
        file_name = f" ({columns['file_name']})" if columns.get("file_name") else ""
        yield Row(f"{path.relative_to(folder)} line {line}{file_name}", folder, path.parent, columns, problem)


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The line on which each row begins, its columns by the header's names, and what is wrong with it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        line = reader.line_num + 1
        for fields in reader:
            columns = {**dict.fromkeys(header), **dict(zip(header, fields))}
            columns.pop("", None)  # of an index, or of a comma at the end of the line
            many = len(fields) > len(header) and "more fields than the header names; quote a text that has commas"
            if fields:
                yield line, columns, many or ""
            line = reader.line_num + 1


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            try:
                columns = json.loads(text) if text.strip() else {}
                json.dumps(columns, ensure_ascii=False).encode()  # \ud800 alone is no character
            except (ValueError, RecursionError) as error:
                yield line, {}, f"not JSON: {error}"
                continue
            if not isinstance(columns, dict):
                yield line, {}, "not an object in braces"
            elif text.strip():
                yield line, columns, ""


def _image_suite(folder: Path) -> tuple[list[Row], list[str]] | None:
    is_shape = re.fullmatch(r"\d+-\d+", folder.name) and not any(p.suffix.lower() == ".txt" for p in _visible(folder))
    places = [folder] if is_shape else [folder / place / SUITE_SHAPE for place in SUITE_FOLDERS]
    place = next((place for place in places if place.is_dir() and _pictures(place)), None)
    if place is None:
        return None
    prompts, paths = _read_suite_prompts(place), _pictures(place)
    rows = [
        Row(path.name, place, place, {"file_name": path.name, "text": prompts.get(path.name, path.stem)})
        for path in paths
    ]
    notes = []
    if place != folder:
        notes.append(f"the pictures are those of {place.relative_to(folder)}; for another shape give its folder")
    num_missing = len(prompts.keys() - {path.name for path in paths})
    if num_missing:
        notes.append(f"{num_missing} of the {len(prompts)} pictures in {SUITE_INFO} are not there")
    return rows, notes


def _read_suite_prompts(place: Path) -> dict[str, str]:
    """The prompt of each file's name, but for those that move the camera; empty if the list is not there."""
    path = next((parent / SUITE_INFO for parent in place.parents[:4] if (parent / SUITE_INFO).is_file()), None)
    if path is None:
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        named = [entry for entry in entries if "camera_motion" not in entry["dimension"]]
        return {str(entry["image_name"]): str(entry["prompt_en"]) for entry in named}
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"dataset: {path} is not VBench-I2V's list: {error!r}. Fetch it again.") from None


def _texts_beside(folder: Path) -> tuple[list[Row], list[str]] | None:
    paths = _pictures(folder)
    texts = {path.stem: path for path in _visible(folder) if path.suffix.lower() == ".txt" and path.is_file()}
    stems = {path.stem for path in paths}
    maps = {
        path.stem.removesuffix(ACTIVITY): path.name
        for path in paths
        if path.stem.endswith(ACTIVITY) and path.stem not in texts and path.stem.removesuffix(ACTIVITY) in stems
    }
    rows = []
    for path in (path for path in paths if path.name not in maps.values()):
        text, problem = "", ""
        try:
            text = texts[path.stem].read_text(encoding="utf-8-sig").strip() if path.stem in texts else ""
        except UnicodeDecodeError as error:
            problem = f"{texts[path.stem].name} is not UTF-8: {error}"
        columns = {"file_name": path.name, "text": text, "fusion.activity_map": maps.get(path.stem)}
        rows.append(Row(path.name, folder, folder, columns, problem))
    return (rows, []) if rows else None
