"""The run folder: every file is written aside, flushed and renamed, so that none looks complete and is not.

`run.json` comes last, says how the run ended, and vouches by their digests for the files that this run has written.
A product may be a folder of files, and is then replaced as a whole. What an earlier run has left stays until a new file
takes its place; but a video that its `run.json` vouched for goes when a run is done that has one in another format.
Numbers of a failed run stay out of `run.json`.
"""

import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fresco_dist.config import FORMATS, InputError
from fresco_dist.jobs.claim import LOCK, Claim
from fresco_dist.runtime.store import NUMERICS, flush
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.trace import TaskRecord, chrome_trace

PACKAGES = ("fresco_dist", "torch", "diffusers", "transformers", "ray", "hydra-core", "numpy")
PREVIEWS = ("preview.mp4", "preview_contact_sheet.png", "trace.json", "timeline.png", "run.json")
LATENTS = "latents.safetensors"
PRODUCTS = ("video.mp4", "contact_sheet.png", LATENTS, "trace.json", "timeline.png", "run.json")
NUMBERED = re.compile(r"\d{5,}\.png")  # the files of a product that is a folder
ACTIVITY = ("activity_map.png", "activity_overlay.png")  # of a map that was made
STARTS = "starts.json"
PREVIEW = "preview.png"  # of the clip, while it is made
PASSING = (*PREVIEWS[:2], PREVIEW, STARTS)  # there until a run is done
UNREADABLE = (  # a file of a run that is none, or of another version
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
)
FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(RuntimeError):
    """A file of a run could not be written: no fault of the command's, but of what is below the folder.

    >>> import fresco_dist
    >>> issubclass(fresco_dist.WriteError, RuntimeError)
    True
    """

    def __init__(self, name: str, folder: Path, error: OSError) -> None:
        remedy = "Make room there" if error.errno in FULL else "See to that"
        remedy += ", or give another folder."
        super().__init__(f"{name} could not be written to {folder}: {error.strerror or str(error)}. {remedy}")


class RunFolder:
    """Writes the products of one run, or only its run.json; outputs never leave `path`."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self.latents_sha256: str | None = None  # of what this run has written
        self._sha256: dict[str, str] = {}  # of the files that this run has written
        self._starts: list[dict] = []
        self._before: set[str] = set()  # what an earlier run has vouched for

    def is_done(self, config: dict, digest_files: Callable[[], str]) -> bool:
        """Whether a run with this configuration has ended here, and its products are still what it wrote.

        And the files that it read, if `digest_files` gives the same for them. What it showed on the way is no matter.
        """
        try:
            run = json.loads((self.path / "run.json").read_text())
            if run["status"] not in ("done", "paused") or _decisive(run["config"]) != _decisive(config):
                return False
            if run["files_sha256"] != digest_files():
                return False
            return all(_sha256_of(self.path / name) == digest for name, digest in run["products"].items())
        except UNREADABLE:
            return False

    def differing(self, config: dict) -> list[str]:
        """The keys, dotted, whose values the run that is done here had otherwise; none if there is no such run."""
        try:
            run = json.loads((self.path / "run.json").read_text())
            return _differing(_decisive(run["config"]), _decisive(config)) if run["status"] == "done" else []
        except UNREADABLE:
            return []

    def read_latents(self, key: str) -> tuple[np.ndarray, str, dict[str, Any]] | None:
        """The final latents of this key, float32 (C, T, H, W), and the numerics that have made them, with their facts.

        None unless a run has left them here, as its run.json vouches.
        """
        try:
            run = json.loads((self.path / "run.json").read_text())
            path, numerics, facts = self.path / LATENTS, run["numerics"]["numerics"], run["numerics"]["facts"]
            is_meant = run["latents_key"] == key and NUMERICS.fullmatch(numerics)
            if not is_meant or _sha256_of(path) != run["products"][LATENTS]:
                return None
            return load_file(path)["latents"][0], numerics, dict(facts)
        except UNREADABLE:
            return None

    def prepare(self, claims: ExitStack, video: str = PRODUCTS[0]) -> Claim:
        """Claim the folder until `claims` are closed, and remove what a killed run has left half-written.

        Raises InputError if another run has it, it cannot be written, or where `video` is to be there is a folder with
        files that no run has written; WriteError if the disk is full.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            claim = claims.enter_context(Claim(self.path))
            for leftover in self.path.glob(".partial-*"):
                _remove(leftover)
            others = sorted(path.name for path in _files_in(self.path / video) if not NUMBERED.fullmatch(path.name))
            if others:
                raise InputError(
                    f"hydra.run.dir must be a folder whose {video} can be replaced; got {self.path}, where that is a"
                    f" folder with {others[0]}. Move it, or give another folder."
                )
            return claim
        except OSError as error:
            if error.errno in FULL:
                raise WriteError(Path(error.filename or LOCK).name, self.path, error) from None
            raise InputError(
                f"hydra.run.dir must be a folder that can be written; got {self.path} ({error.strerror})."
            ) from None

    def note_start(self, **facts: Any) -> None:
        """Add to `starts.json`, which is there until the run is done, when, where and with what it was started."""
        self._before = _vouched_for(self.path / "run.json")
        try:
            starts = [dict(start) for start in json.loads((self.path / STARTS).read_text())]
            self._before.update(name for start in starts for name in start.get("replaces", ()))
        except UNREADABLE:
            starts = []
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        start = {"time": now, "host": platform.node(), "process": os.getpid()} | facts
        if self._before:  # run.json goes with the first product
            start["replaces"] = sorted(self._before)
        self._starts = [*starts, start]
        self.write(STARTS, lambda partial: partial.write_text(json.dumps(self._starts, indent=1) + "\n"))

    def write_latents(self, latents_CTHW: np.ndarray) -> str:
        """`latents.safetensors`, float32 (1, C, T, H, W); returns the SHA-256 of their bytes."""
        latents = np.ascontiguousarray(latents_CTHW[None], dtype=np.float32)
        self.write(LATENTS, lambda partial: partial.write_bytes(save({"latents": latents})))
        self.latents_sha256 = hashlib.sha256(latents.data).hexdigest()
        return self.latents_sha256

    def write_trace(self, records: Sequence[TaskRecord]) -> None:
        """`trace.json`, for Perfetto or chrome://tracing, and `timeline.png`."""
        self._write_json("trace.json", chrome_trace(records))
        if records:
            from fresco_dist.media.timeline import draw_timeline  # see `job.import_media`

            self.write("timeline.png", draw_timeline(records).savefig)

    def write_run(self, status: str, config: dict, plan: Plan, **facts: Any) -> dict[str, Any]:
        """`run.json`: status, configuration, plan, versions, and what was measured, or is known better than planned.

        Returns what it says.
        """
        canvas_px, level = plan.size_px(plan.top), plan.canvas
        grids = [[[w.top, w.left, w.height, w.width] for w in step.grid.windows] for step in level.steps]
        grid = {"num_windows": len(grids[0]), "windows": grids[0], "overlap": plan.overlap, "batch": plan.batch}
        if any(windows != grids[0] for windows in grids):
            grid["windows_by_step"] = grids
        run: dict[str, Any] = {
            "status": status,
            "config": config,
            "canvas": {"latent_shape": [1, *level.latent_shape], "width": canvas_px[0], "height": canvas_px[1]},
            "grid": grid,
            "work": round(plan.cost, 3),  # in forwards of one full window
            "num_workers": plan.num_workers,
            "starts": self._starts,
            "products": self._sha256,
        }
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        if status == "done":
            videos = {encoding.file_name for encoding in FORMATS.values()}
            self.remove(self._before & videos - self._sha256.keys())
        run |= facts | {"versions": versions}
        self._write_json("run.json", run)
        return run

    def remove(self, names: Iterable[str]) -> None:
        """Remove products of an earlier run, where there are any."""
        for name in names:
            _remove(self.path / name)

    def show(self, name: str, data: bytes) -> None:
        """Put a file there that is no product: not flushed, and not at all where there is no room for it."""
        if not self._writes:
            return
        partial = self.path / f".partial-{name}"
        with suppress(OSError):
            try:
                partial.write_bytes(data)
                partial.replace(self.path / name)
            finally:
                partial.unlink(missing_ok=True)

    def _write_json(self, name: str, value: Any) -> None:
        self.write(name, lambda partial: partial.write_text(json.dumps(value, indent=1) + "\n"))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """A product that `write` puts at the path it is given: aside, flushed, renamed.

        The suffix stays last, since writers choose the format by it. Raises WriteError.
        """
        if not self._writes and name != "run.json":
            return
        partial = self.path / f".partial-{name}"
        try:
            try:
                self._write(partial, name, write)
            finally:
                _remove(partial)
        except OSError as error:
            raise WriteError(name, self.path, error) from error

    def _write(self, partial: Path, name: str, write: Callable[[Path], Any]) -> None:
        write(partial)
        for path in (*_files_in(partial), partial):
            flush(path)
        if name not in (STARTS, "run.json"):
            digest = _sha256_of(partial)
            if not self._sha256:  # an old run.json vouches for old files alone
                (self.path / "run.json").unlink(missing_ok=True)
            self._sha256[name] = digest
        final = self.path / name
        if partial.is_dir() or final.is_dir():  # which no rename replaces
            _remove(final)
        partial.replace(final)


def _files_in(path: Path) -> list[Path]:
    """Of a product that is a folder, in order; none of another."""
    return sorted(path.iterdir()) if path.is_dir() else []


def _remove(path: Path) -> None:
    """A product, if it is there; of a folder what runs write, and itself if that is all."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for file in _files_in(path):
        if NUMBERED.fullmatch(file.name):
            file.unlink()
    with suppress(OSError):  # something else is in it
        path.rmdir()


def _vouched_for(run_json: Path) -> set[str]:
    """The products that a run.json names; none if it cannot be read."""
    try:
        names = json.loads(run_json.read_text())["products"]
        return {name for name in names if Path(name).name == name}
    except UNREADABLE:
        return set()


def _decisive(config: dict) -> dict:
    """As JSON has it, without what is only for the eye."""
    return {key: value for key, value in json.loads(json.dumps(config)).items() if key != "preview"}


def _differing(before: Any, now: Any, key: str = "") -> list[str]:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [key] * (before != now)
    names = before | now  # in the order of the configuration
    return [found for n in names for found in _differing(before.get(n), now.get(n), f"{key}.{n}".lstrip("."))]


def _sha256_of(path: Path) -> str:
    """Of a file; of a folder, of the names and the digests of all that is in it."""
    if path.is_dir():
        told = [f"{_sha256_of(file)}  {file.name}\n" for file in _files_in(path)]  # as sha256sum does
        return hashlib.sha256("".join(told).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
