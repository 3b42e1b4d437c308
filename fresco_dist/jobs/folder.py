"""The run folder: every file is written aside, flushed and renamed, so that none looks complete and is not.

`run.json` comes last and says how the run ended. Numbers of a failed run stay out of it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from fresco_dist.config import InputError
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.trace import TaskRecord, chrome_trace

PACKAGES = ("fresco_dist", "torch", "diffusers", "transformers", "ray", "hydra-core", "numpy")
PREVIEWS = ("preview.mp4", "preview_contact_sheet.png", "trace.json", "timeline.png", "run.json")
PRODUCTS = ("video.mp4", "contact_sheet.png", "latents.safetensors", "trace.json", "timeline.png", "run.json")


class RunFolder:
    """Writes the products of one run; outputs never leave `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.latents_sha256: str | None = None  # of what this run has written

    def is_done(self, config: dict) -> bool:
        """Whether a run with this configuration has ended here, with all its products."""
        try:
            run = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return False
        there = all((self.path / name).is_file() for name in PRODUCTS)
        return there and run["status"] == "done" and run["config"] == json.loads(json.dumps(config))

    def prepare(self) -> None:
        """Make sure that files can be written, and remove the products of an earlier run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("write_test", lambda partial: partial.write_text(""))
            (self.path / "write_test").unlink()
            for name in reversed(PRODUCTS):  # run.json first: it vouches for the others
                (self.path / name).unlink(missing_ok=True)
            for leftover in self.path.glob(".partial-*"):  # of a run that was killed
                leftover.unlink()
        except OSError as error:
            raise InputError(
                f"hydra.run.dir must be a folder that can be written; got {self.path} ({error.strerror})."
            ) from None

    def write_latents(self, latents_CTHW: np.ndarray) -> str:
        """`latents.safetensors`, float32 (1, C, T, H, W); returns the SHA-256 of their bytes."""
        latents = np.ascontiguousarray(latents_CTHW[None], dtype=np.float32)
        self.write("latents.safetensors", lambda partial: partial.write_bytes(save({"latents": latents})))
        self.latents_sha256 = hashlib.sha256(latents).hexdigest()
        return self.latents_sha256

    def write_trace(self, records: Sequence[TaskRecord]) -> None:
        """`trace.json`, for Perfetto or chrome://tracing, and `timeline.png`."""
        self._write_json("trace.json", chrome_trace(records))
        if records:
            from fresco_dist.media.timeline import draw_timeline  # see `job.import_media`

            self.write("timeline.png", draw_timeline(records).savefig)

    def write_run(self, status: str, config: dict, plan: Plan, **facts: Any) -> None:
        """`run.json`: status, configuration, plan, versions, and what was measured."""
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
            "num_workers": plan.num_workers,
        }
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        self._write_json("run.json", run | facts | {"versions": versions})

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of an earlier run, where there are any."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _write_json(self, name: str, value: Any) -> None:
        self.write(name, lambda partial: partial.write_text(json.dumps(value, indent=1) + "\n"))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """A product that `write` puts at the path it is given: aside, flushed, renamed.

        The suffix stays last, since writers choose the format by it.
        """
        final = self.path / name
        partial = final.with_name(f".partial-{name}")
        try:
            write(partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
