"""A data set: pictures, and what a run of each is given.

Owns what the columns of a row mean (where rows come from: layouts.py), the checks of each row, and the names of
pictures. A bad row is left out and told; the others are used. Never resizes a picture, and keeps none.
"""

import itertools
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, expanded, require
from fresco_dist.evaluate.layouts import Row, read_rows
from fresco_dist.media.pictures import read_image
from fresco_dist.report.points import NO_SETTING
from fresco_dist.settings.keys import keys, kinds, types_of_keys

MEANINGS = {"file_name": "image", "text": "prompt"}  # columns that datasets names for us
FILE_NAME = "_file_name"  # and what it has columns end in that name files
FILES = ("image", "image_last", "fusion.activity_map", "fusion.detail_map")
ALLOWED = {int: "a whole number", float: "a number", bool: "true or false", list: "a list, [A,B]", str: "a text"}
MODELS = ("model", "sam3")  # the same for all rows
KEYS = {  # that a row may set, with their types: all but the models, and those that decide no pixel
    key: types_of_keys()[key]
    for key in keys()
    if types_of_keys()[key] and key.partition(".")[0] not in (*NO_SETTING, *MODELS)
}
MAX_EXACT = 2**53  # of whole numbers that are written with a point; above, digits are lost
MAX_NAME, MAX_NAME_BYTES = 80, 240  # a file's name has 255 bytes, and runs put something before theirs


@dataclass(frozen=True)
class Picture:
    """`name` is fit for a folder; `settings` are keys of the configuration: image, prompt and what the row sets."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """`left_out` says of each row that cannot be used, why, in one line; `notes` are for the user to know."""

    pictures: tuple[Picture, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]


def read_dataset(folder: Path) -> Dataset:
    """The pictures of the data set in `folder`, in the order of its metadata or else of their names.

    A row's columns: `file_name` (or one that ends in `_file_name`) is the picture, `text` the prompt, and a column of
    the name of a key sets that key, relative to the metadata where it is a file; empty is not given. Every picture is
    decoded once. Raises InputError if the layout is unknown (see layouts.py) or no row can be used.
    """
    folder = expanded(folder).absolute()
    require(folder.is_dir(), "dataset", folder, "a folder", "Check the path.")
    try:
        rows, notes = read_rows(folder)
    except OSError as error:
        raise InputError(f"dataset: {error.filename} cannot be read: {error.strerror}. Check the path.") from None
    pictures, left_out = _read_pictures(rows)
    if not pictures:
        row, reason = next(iter(left_out.items()), ("its metadata", "there is no row"))
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"dataset: {folder} has no picture that can be used: {row}: {reason}{more}. Mend its rows.")
    idle = dict.fromkeys(column for row in rows for column in _values_of(row.columns)[1])
    num_silent = sum(not picture.settings["prompt"] for picture in pictures)
    if idle:
        notes.append(f"columns that set nothing are left aside: {', '.join(idle)}")
    if num_silent:
        notes.append(f"{num_silent} of {len(pictures)} pictures have no text: their prompts are empty")
    return Dataset(tuple(pictures), left_out, tuple(notes))


def _read_pictures(rows: list[Row]) -> tuple[list[Picture], dict[str, str]]:
    """What can be used, and what not and why. Bad rows hold a name as well, so that one mended renames no other."""
    pictures, left_out = [], {}
    labels: dict[str, str] = {}
    decoded: set[Path] = set()
    names = name_pictures(_relative_image(row) for row in rows)
    for row, name in zip(rows, names):
        try:
            settings = _settings_of(row, decoded)
            same_as = labels.setdefault(json.dumps(settings, sort_keys=True), row.label)
            if same_as is not row.label:
                raise InputError(f"the same as {same_as}")
            pictures.append(Picture(name, settings))
        except InputError as error:
            left_out[row.label] = " ".join(str(error).split())
    return pictures, left_out


def name_pictures(paths: Iterable[str]) -> Iterator[str]:
    """A folder's name for each of these relative paths, in order; those that come later never change one before.

    Letters and digits of all scripts stay, and . _ -; the rest becomes _. No two are the same whatever their case.
    """
    taken: set[str] = set()
    for path in paths:
        stem = unicodedata.normalize("NFC", os.path.splitext(path)[0])
        kept = "".join(c if c in "._-" or c.isalnum() or unicodedata.category(c)[0] == "M" else "_" for c in stem)
        for number in itertools.count(1):
            suffix = f"_{number}" if number > 1 else ""
            short = (kept.lstrip(".") or "picture")[: MAX_NAME - len(suffix)]
            name = short.encode()[: MAX_NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
            if name.casefold() not in taken:
                break
        taken.add(name.casefold())
        yield name


def _relative_image(row: Row) -> str:
    image = _values_of(row.columns)[0].get("image")
    return os.path.relpath(row.base / image, row.root) if isinstance(image, str) else ""


def _values_of(columns: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What is given, by key, and the columns that give nothing. `file_name` and `text` go before other columns."""
    values, idle = {}, []
    for column in sorted(columns, key=lambda column: column not in MEANINGS):
        key = MEANINGS.get(column, column.removesuffix(FILE_NAME))
        if key not in KEYS or key in values:
            idle.append(column)
        elif columns[column] not in (None, ""):
            values[key] = columns[column]
    files = [column for column in idle if column.endswith(FILE_NAME)]
    if "image" not in values and len(files) == 1 and columns[files[0]]:
        values["image"] = columns[files[0]]
        idle.remove(files[0])
    return values, idle


def _settings_of(row: Row, decoded: set[Path]) -> dict[str, Any]:
    """What the row sets, its files as absolute paths, each of them decoded once; raises InputError."""
    if row.problem:
        raise InputError(row.problem)
    values, _ = _values_of(row.columns)
    there = ", ".join(row.columns)
    if "image" not in values:
        raise InputError(f"file_name must be given; its columns are {there}")
    if not {"text", "prompt"} & row.columns.keys():
        raise InputError(f"text must be given, if only an empty one; its columns are {there}")
    settings = {"image": None, "prompt": ""} | {key: _typed(key, value) for key, value in values.items()}
    for key in (key for key in FILES if key in settings):
        settings[key] = _picture_file(row, key, settings[key], decoded)
    if "regions" in settings:
        settings["regions"] = _regions(row, settings["regions"], decoded)
    return settings


def _file(row: Row, key: str, given: str) -> Path:
    path = Path(os.path.normpath(row.base / given))  # links are not followed: a hub's cache is made of them
    require(path.is_relative_to(row.root), key, given, "inside the data set's folder", "Move the file there.")
    return path


def _picture_file(row: Row, key: str, given: str, decoded: set[Path]) -> str:
    path = _file(row, key, given)
    if path not in decoded:
        read_image(path, key=key)
        decoded.add(path)
    return str(path)


def _regions(row: Row, given: Any, decoded: set[Path]) -> Any:
    """Masks lie relative to the metadata in a list, and relative to a list's own file."""
    if isinstance(given, str):
        path = _file(row, "regions", given)
        require(path.is_file(), "regions", given, "a list, or a YAML file with one", "Check the path.")
        return str(path)
    masks = [isinstance(region, dict) and isinstance(region.get("mask"), str) for region in given]
    return [
        region | {"mask": _picture_file(row, f"regions[{i}].mask", region["mask"], decoded)} if has_mask else region
        for i, (region, has_mask) in enumerate(zip(given, masks))
    ]


def _typed(key: str, given: Any) -> Any:
    """A value in one of the key's types; what is text, as all of a CSV is, is read as JSON if the key takes no text."""
    value, types = given, KEYS[key]
    takes_text = kinds()[key] or any(issubclass(kind, Enum) for kind in types)
    if isinstance(given, str) and (not takes_text or key == "regions" and given.lstrip().startswith("[")):
        with suppress(ValueError):  # then it is not of the type
            value = json.loads(given.lower() if given in ("True", "False") else given)
    if int in types and isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        value = int(value)  # pandas writes whole numbers so where one is missing
    allowed = [_allowed(kind) for kind in types if kind is not type(None)]
    remedy = "Empty leaves it as it is for all."
    require(any(_is(value, kind) for kind in types), key, json.dumps(given), " or ".join(allowed), remedy)
    return value


def _is(value: Any, kind: type) -> bool:
    if issubclass(kind, Enum):
        return value in [member.value for member in kind]
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _allowed(kind: type) -> str:
    return f"one of {', '.join(member.value for member in kind)}" if issubclass(kind, Enum) else ALLOWED[kind]
