"""A store of arrays on disk, looked up by names that say what the arrays depend on, before they are computed.

An entry is a safetensors file of arrays and facts. It is there whole or not at all, for other processes as well, and
what `get` returns is what was `put`: a digest of all of it is checked at every read. Whoever shares the store may
remove any entry at any time; then it is a miss. What a name stands for is the caller's.

    PATH/NUMERICS/KEY.safetensors   NUMERICS names what decides bits beside the key: versions, device, ...
    PATH/NAME.json                  notes: `numerics` says which was used last, and the facts that it stands for
"""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from glob import iglob
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
NUMERICS = re.compile("[0-9a-f]{32}")  # see `schedule.keys`
PARTIAL = re.compile(r"\.partial-(?P<node>.+)\.(?P<process>\d+)\.[0-9a-f]+")
ABANDONED_S = 3600.0  # after which no writer is believed to be still at it
DAMAGE = (
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)  # what readers make of damaged bytes


class Store:
    """The store at `path`, of at most `max_gb` if given; `use` comes before anything is put or got.

    `damaged` has a line for each file that could not be used, until the caller takes it out to say so. Opening removes
    what killed writers have left. Raises OSError for a folder that cannot be made.
    """

    def __init__(self, path: Path, max_gb: float | None = None) -> None:
        self.path, self._max_bytes = path, math.inf if max_gb is None else max_gb * 1e9
        self.damaged: list[str] = []
        self._numerics: str | None = None
        path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self._find(".partial-*"), *self._find("*/.partial-*")]:
            if _is_abandoned(leftover):  # another process may be at it, too
                shutil.rmtree(leftover, ignore_errors=True)
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)

    def use(self, numerics: str) -> None:
        """Keep to the entries of these numerics from now on."""
        assert NAME.fullmatch(numerics), numerics
        self._numerics = numerics

    @property
    def folder(self) -> Path:
        """Where the entries of the numerics in use are."""
        assert self._numerics is not None, "no numerics in use"
        return self.path / self._numerics

    def has(self, key: str) -> bool:
        """Whether there is such an entry; it may be gone, or prove damaged, when it is read."""
        return self._file(key).is_file()

    def keys(self) -> list[str]:
        """All entries of the numerics in use."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def remove(self, key: str) -> None:
        """Have no such entry."""
        self._file(key).unlink(missing_ok=True)

    def get(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and facts of an entry; None if there is none that is what was put, see `damaged`.

        A damaged entry is removed, one that this process may not read stays.
        """
        path = self._file(key)
        try:
            path.open("rb").close()  # of a file that may not be read, safe_open says that it is not there
            # Not mapped: a file that is cut, or whose server is gone, must not end the process
            with safe_open(path, framework="np", backend="pread") as file:
                arrays, metadata = file.get_tensors(), file.metadata()
            if metadata["sha256"] != _digest(key, arrays, metadata["facts"]):
                raise ValueError("its digest is another one")
        except FileNotFoundError:
            return None
        except OSError as error:
            self.damaged.append(f"{path} cannot be read: {error}")
            return None
        except DAMAGE as error:
            self._discard(path, error)
            return None
        with suppress(OSError):  # a store of which this process only reads, or an entry removed just now: as good
            os.utime(path)  # the entry that was not used for longest goes first
        return arrays, json.loads(metadata["facts"])

    def put(self, key: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bool:
        """Write an entry, unless it is there; whether it is now. `facts` are what JSON can say.

        If the store would become larger than it may be, what was not used for longest goes first, whatever numerics
        it is of; False for an entry that would never fit. Processes that write at the same time do not know of each
        other's entry. Raises OSError if it cannot be written; nothing is left of it then.
        """
        if self.has(key):
            return True
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        assert all(array.dtype.kind in "biuf" and array.dtype.isnative for array in whole.values())
        text = json.dumps(facts)
        metadata = {"facts": text, "sha256": _digest(key, whole, text)}
        if not self._make_room(_size_bound(whole, metadata)):
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self._file(key), lambda aside: save_file(whole, aside, metadata))
        return True

    def clear(self) -> None:
        """Remove all that stores make, and the folder if nothing else is in it. Raises OSError."""
        for folder in filter(Path.is_dir, self._find("*")):
            if NUMERICS.fullmatch(folder.name):
                shutil.rmtree(folder)
        for note in [*self._find("numerics.json"), *self._find("choice-*.json")]:
            note.unlink(missing_ok=True)
        with suppress(OSError):  # what is left is not ours
            self.path.rmdir()

    def read_note(self, name: str) -> dict[str, Any]:
        """What was noted under a name; empty if nothing was that can be read, see `damaged`."""
        path = self.path / f"{name}.json"
        try:
            note = json.loads(path.read_text())
            if not isinstance(note, dict):
                raise TypeError("it is no note")
            return note
        except FileNotFoundError:
            return {}
        except (OSError, *DAMAGE) as error:
            self.damaged.append(f"{path} cannot be read: {error}")
            return {}

    def write_note(self, name: str, note: Mapping[str, Any]) -> None:
        """Note what JSON can say, in place of what was noted before. Raises OSError."""
        text = json.dumps(note, indent=1) + "\n"
        _write(self.path / f"{name}.json", lambda aside: aside.write_text(text))

    def remove_note(self, name: str) -> None:
        """Have no such note."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def last_numerics(self) -> tuple[str, dict[str, Any]] | None:
        """The numerics recorded last and their facts; None if there are none that can be read, see `damaged`."""
        note = self.read_note("numerics")
        name, facts = note.get("numerics"), note.get("facts")
        if isinstance(name, str) and NAME.fullmatch(name) and isinstance(facts, dict):
            return name, facts
        if note:
            self.damaged.append(f"{self.path / 'numerics.json'} cannot be read: it lacks numerics or facts")
        return None

    def record_numerics(self, facts: Mapping[str, Any]) -> None:
        """Remember the numerics in use as those of the last run, and what they stand for. Raises OSError."""
        self.write_note("numerics", {"numerics": self.folder.name, "facts": facts})

    def _file(self, key: str) -> Path:
        assert NAME.fullmatch(key), key
        return self.folder / f"{key}.safetensors"

    def _find(self, pattern: str) -> list[Path]:
        """Files and folders of the whole store. Unlike `Path.glob` it looks into no hidden folder, which may vanish."""
        return [self.path / name for name in iglob(pattern, root_dir=self.path)]

    def _discard(self, path: Path, reason: Exception) -> None:
        try:
            path.unlink(missing_ok=True)
            self.damaged.append(f"{path} was damaged and is removed: {reason}")
        except OSError as error:
            self.damaged.append(f"{path} is damaged ({reason}) and cannot be removed: {error}")

    def _make_room(self, num_bytes: int) -> bool:
        """Remove what was not used for longest until so much more fits; whether it does."""
        if num_bytes > self._max_bytes:
            return False
        entries = []
        for path in [*self._find("*/*.safetensors"), *self._find("*/*.npy")]:
            with suppress(FileNotFoundError):  # removed by another process
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = num_bytes + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return True


def _digest(key: str, arrays: Mapping[str, np.ndarray], facts: str) -> str:
    """SHA-256 over all that an entry says, and over its name."""
    ordered = sorted(arrays.items())
    kinds = [[name, array.dtype.str, array.shape] for name, array in ordered]
    digest = hashlib.sha256(json.dumps([key, facts, kinds]).encode())
    for _, array in ordered:
        digest.update(array.data)
    return digest.hexdigest()


def _size_bound(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> int:
    """Bytes of a safetensors file, and a little more: its header has a dtype, a shape and two offsets per array."""
    header = sum(len(json.dumps(name)) + 22 * array.ndim + 128 for name, array in arrays.items())
    return sum(array.nbytes for array in arrays.values()) + header + len(json.dumps(metadata)) + 64


def _write(final: Path, write: Callable[[Path], Any]) -> None:
    """A file that `write` puts at the path it is given: aside, flushed, renamed.

    Aside is a folder, since safetensors, too, writes to a file with a name of its own first.
    """
    partial = partial_of(final)
    aside = partial / final.name
    partial.mkdir(parents=True)
    try:
        write(aside)
        aside.chmod(partial.stat().st_mode & 0o666)  # safetensors lets the owner alone read
        flush(aside)
        aside.replace(final)
        flush(final.parent)
    except SafetensorError as error:
        raise OSError(f"{final} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # empty, unless an error is on its way that tells more


def partial_of(final: Path) -> Path:
    """Where to write a file of the store aside: a name of this process's own, that says so."""
    return final.with_name(f".partial-{platform.node()}.{os.getpid()}.{uuid4().hex}")


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(partial: Path) -> bool:
    """Whether whoever writes there is dead, as far as this machine can tell, or was never heard of again."""
    try:
        age_s = time.time() - partial.stat().st_mtime
    except FileNotFoundError:  # its writer is done
        return False
    name = PARTIAL.fullmatch(partial.name)
    is_dead = name is not None and name["node"] == platform.node() and not _runs(int(name["process"]))
    return age_s > ABANDONED_S or is_dead


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
