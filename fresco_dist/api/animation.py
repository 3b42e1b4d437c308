"""What has come of a picture: frames, latents and figures, in memory; saved, and shown in a notebook."""

import base64
import json
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fresco_dist.config import FORMATS, InputError, VideoFormat, expanded
from fresco_dist.jobs.folder import WriteError
from fresco_dist.report.aside import write_aside

SHOWN_PX = 960  # longer side of the clip that a notebook shows


@dataclass(frozen=True)
class Animation:
    """A clip that was made of a picture.

    frames: uint8 (F, H, W, 3), sRGB; of a `video.format` with more bits uint16, full range.
    latents: float32 (1, C, T, H, W), final; None of a run that `sampler.stop_after` has stopped.
    figures: what run.json says: status, times, metrics, `latents_sha256`, settings, versions.
    fps: frames per second. path: the run folder, if one was asked for.
    """

    frames: np.ndarray = field(repr=False)
    latents: np.ndarray | None = field(repr=False)
    figures: dict[str, Any] = field(repr=False)
    fps: Fraction
    path: Path | None

    def save(self, path: str | Path) -> Path:
        """Write the clip in the run's `video.format`, or to a .mp4 file as H.264; returns the path.

        A file that is there is replaced; a folder of frames that is there must be empty. Raises InputError for another
        suffix, WriteError for what cannot be written.

        >>> import fresco_dist
        >>> with fresco_dist.Animator("synthetic", cluster={"executor": "inprocess"}, progress=False) as animate:
        ...     clip = animate(picture, **{"model.forward_s": 0})
        >>> clip.save(folder / "clip.mp4").name
        'clip.mp4'
        """
        from fresco_dist.media.video import write_video

        path = expanded(path)
        video = self.figures["config"]["video"]
        format, quality, suffix = VideoFormat[video["format"]], video["quality"], path.suffix.lower()
        own = Path(FORMATS[format].file_name).suffix
        if suffix == ".mp4" != own:
            format, quality = VideoFormat.h264, None
        elif suffix != own:
            raise InputError(
                f"save: the file must end in {own or 'nothing'} (video.format={format.value}) or .mp4; got {path.name}."
                " Give the call another video.format."
            )
        height, width = (side // 2 * 2 if FORMATS[format].even_sides else side for side in self.frames.shape[1:3])
        write = partial(write_video, frames=self.frames, size=(width, height), fps=self.fps)
        try:
            write_aside(path, partial(write, format=format, quality=quality))
        except OSError as error:
            raise WriteError(path.name, path.parent, error) from error
        return path

    def _repr_html_(self) -> str:
        """The clip, small, as a notebook plays it."""
        from fresco_dist.media.video import write_video

        height, width = self.frames.shape[1:3]
        scale = min(1.0, SHOWN_PX / max(height, width))
        size = tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            write_video(path, self.frames, size, self.fps)
            data = base64.b64encode(path.read_bytes()).decode()
        return f'<video controls loop muted autoplay width="{size[0]}" src="data:video/mp4;base64,{data}"></video>'


def read_done(folder: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Frames, latents and figures of a run that was done before, from its folder; its frames are those of its video."""
    from safetensors.numpy import load_file

    from fresco_dist.media.video import read_video

    figures = json.loads((folder / "run.json").read_text())
    videos = {"preview.mp4", *(encoding.file_name for encoding in FORMATS.values())}
    name = next(name for name in figures["products"] if name in videos)
    is_done = "latents.safetensors" in figures["products"]
    latents = load_file(folder / "latents.safetensors")["latents"] if is_done else None
    return read_video(folder / name), latents, figures
