"""A level's video while its decoded tiles come in: an array, or a file of the store that outlives the run.

The file is as large as the clip from the start, and mapped, so that the clip is in memory once and only as far as there
is room. Beside it stands which tiles are in, each with its digest: one that was torn is decoded again.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from fresco_dist.method.grid import flat
from fresco_dist.runtime.store import partial_of
from fresco_dist.schedule.plan import Plan

NOTE_INTERVAL_S = 1.0  # between two notes of which tiles are in


class Clip:
    """The frames of a level (F, H, W, 3), uint8, or with 16 `bits` uint16."""

    def __init__(self, plan: Plan, level: int, bits: int = 8) -> None:
        tiles = enumerate(flat(plan.levels[level].decode_tiles))
        self._tiles = {i: tile.scaled(plan.spec.spatial_factor) for i, tile in tiles}
        self._shape = (plan.num_frames, *plan.size_px(level)[::-1], 3)
        self._dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
        self._path: Path | None = None
        self._forget()

    def _forget(self) -> None:
        self._frames: np.ndarray | None = None  # from the first tile on
        self._digests: dict[int, list] = {}  # of the tiles that are in: size of the block, SHA-256
        self._noted_s = 0.0

    @property
    def frames(self) -> np.ndarray:
        """All of them, where tiles are missing black; once one is in."""
        assert self._frames is not None
        return self._frames

    @property
    def is_complete(self) -> bool:
        """Whether every tile is in."""
        return len(self._digests) == len(self._tiles)

    @property
    def decoded(self) -> frozenset[int]:
        """The tiles that are in."""
        return frozenset(self._digests)

    def keep_at(self, path: Path | None) -> None:
        """Keep it in this file (PATH.npy, and PATH.json beside it), with the tiles that are there; None: in memory."""
        if path == self._path:
            return
        self._forget()
        self._path = path
        if path is None or not path.with_suffix(".json").is_file():
            return
        try:
            noted = json.loads(path.with_suffix(".json").read_text())
            self._frames = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="r+")
            if self.frames.shape != self._shape or self.frames.dtype != self._dtype:
                raise ValueError("another clip")
            there = {int(i): entry for i, entry in noted.items()}
            self._digests = {i: entry for i, entry in there.items() if self._digest(i, *entry[0]) == entry[1]}
        except Exception:  # damaged, in whatever way: decoded again
            self._forget()

    def take(self, index: int, block: np.ndarray) -> None:
        """Put a decoded tile (F, h, w, 3) in its place; one that comes again changes nothing."""
        if index in self._digests:
            return
        self._frames = self._make() if self._frames is None else self._frames
        tile = self._tiles[index]
        size = block.shape[1:3]
        self.frames[:, tile.top : tile.top + size[0], tile.left : tile.left + size[1]] = block
        kept = self._path is not None
        self._digests[index] = [size, hashlib.sha256(np.ascontiguousarray(block).data).hexdigest() if kept else ""]
        if self.is_complete or time.monotonic() > self._noted_s + NOTE_INTERVAL_S:
            self._note()

    @staticmethod
    def remove(path: Path) -> None:
        """Remove what is kept at a path; who has the frames may go on to read them."""
        for suffix in (".json", ".npy"):
            path.with_suffix(suffix).unlink(missing_ok=True)

    def _make(self) -> np.ndarray:
        """Room for the frames; on the disk all of it at once: a mapped file that finds none later ends the process."""
        if self._path is None:
            return np.zeros(self._shape, dtype=self._dtype)
        final = self._path.with_suffix(".npy")
        partial = partial_of(final)  # another run may have such a file in use
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                descr = np.lib.format.dtype_to_descr(self._dtype)
                header = {"descr": descr, "fortran_order": False, "shape": self._shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                os.posix_fallocate(file.fileno(), file.tell(), self._dtype.itemsize * int(np.prod(self._shape)))
            frames = np.lib.format.open_memmap(partial, mode="r+")
            partial.replace(final)
            return frames
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._path = None
            return np.zeros(self._shape, dtype=self._dtype)

    def _digest(self, index: int, height: int, width: int) -> str:
        tile = self._tiles[index]
        block = self.frames[:, tile.top : tile.top + height, tile.left : tile.left + width]
        return hashlib.sha256(np.ascontiguousarray(block).data).hexdigest()

    def _note(self) -> None:
        """Which tiles are in, written aside and renamed."""
        if self._path is None:
            return
        self._noted_s = time.monotonic()
        note = self._path.with_suffix(".json")
        partial = partial_of(note)
        try:
            partial.write_text(json.dumps(self._digests))
            partial.replace(note)
        except OSError:  # then these tiles are decoded again
            with suppress(OSError):
                partial.unlink(missing_ok=True)
