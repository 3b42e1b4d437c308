"""The canvas between two steps with the history of its noise scheduler, as what can be stored and cut anew.

A packed cell is its latents and the attributes in which its scheduler differs from a new one, see `Denoiser.pack`, as
numpy arrays, see `cells.send`. Arrays of two or more dimensions end with the cell's own (H, W) and are cut with it;
all else is the same for every cell of a canvas: numbers, None, arrays without that many dimensions. Knows no model and
no scheduler.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fresco_dist.method.grid import Window

History = dict[str, Any]  # of attributes: None, bool, int, float, str, an array, or a list of these


def flatten(history: History) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name ("history.NAME", "history.NAME.PLACE" in lists), and facts that JSON can say, of a history.

    Raises TypeError for a value that `unflatten` could not give back as it was.
    """
    arrays: dict[str, np.ndarray] = {}

    def describe(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            arrays[name] = value
            return {"array": name}
        if type(value) is list:
            return [describe(entry, f"{name}.{i}") for i, entry in enumerate(value)]
        if value is not None and type(value) not in (bool, int, float, str):
            raise TypeError(f"{name} is a {type(value).__name__}, which cannot be stored")
        return value

    facts = {name: describe(value, f"history.{name}") for name, value in history.items()}
    return arrays, facts


def unflatten(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> History:
    """The history that was flattened; `arrays` may hold others as well."""

    def restore(value: Any) -> Any:
        if isinstance(value, list):
            return [restore(entry) for entry in value]
        return arrays[value["array"]] if isinstance(value, dict) else value

    return {name: restore(value) for name, value in facts.items()}


def join_cells(
    canvas: tuple[int, int], cells: Mapping[Window, tuple[np.ndarray, History]]
) -> tuple[np.ndarray, History]:
    """The whole canvas (H, W), packed as one cell, from the packed cells that it was cut into."""
    covered = np.zeros(canvas, dtype=np.int32)
    for window in cells:
        covered[window.slices] += 1
    area = sum(window.height * window.width for window in cells)
    assert (covered == 1).all() and area == covered.size, "cells are no partition of the canvas"
    windows = list(cells)

    def join(pieces: Sequence[np.ndarray]) -> np.ndarray:
        some = pieces[0]
        whole = np.empty((*some.shape[:-2], *canvas), dtype=some.dtype)
        for window, piece in zip(windows, pieces, strict=True):
            assert piece.dtype == some.dtype and piece.shape == (*some.shape[:-2], window.height, window.width)
            whole[(..., *window.slices)] = piece
        return whole

    return _combine(join, list(cells.values()))


def cut_cell(window: Window, x: np.ndarray, history: History) -> tuple[np.ndarray, History]:
    """A cell of a whole canvas that is packed as one cell, packed itself."""
    canvas = x.shape[-2:]

    def cut(pieces: Sequence[np.ndarray]) -> np.ndarray:
        (whole,) = pieces
        assert whole.shape[-2:] == canvas, f"{whole.shape} is not on the canvas {canvas}"
        return np.ascontiguousarray(whole[(..., *window.slices)])

    return _combine(cut, [(x, history)])


def _combine(make: Callable[[Sequence[np.ndarray]], np.ndarray], values: Sequence[Any]) -> Any:
    """One value for those of some cells, alike in all but their pieces, for which `make` gives one array."""
    some = values[0]
    assert all(type(value) is type(some) for value in values), f"cells differ: {values}"
    if isinstance(some, dict):
        assert all(value.keys() == some.keys() for value in values), "cells differ in what they remember"
        return {name: _combine(make, [value[name] for value in values]) for name in some}
    if isinstance(some, (list, tuple)):
        return type(some)(_combine(make, entries) for entries in zip(*values, strict=True))
    if isinstance(some, np.ndarray) and some.ndim >= 2:
        return make(values)
    assert all(_bits(value) == _bits(some) for value in values), f"cells differ: {values}"
    return some


def _bits(value: Any) -> Any:
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
