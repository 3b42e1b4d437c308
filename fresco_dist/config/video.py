"""The clip: its length, rate and size, and what it is written as."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fresco_dist.config.checks import InputError, require
from fresco_dist.config.choices import VideoFormat
from fresco_dist.config.formats import FORMATS, Encoding

MAX_SIDE_PX = 16384  # of a video
NTSC = (24, 30, 48, 60, 120, 240)  # rates of which a 1000/1001 is in use, and called by two or three decimals
MAX_DENOMINATOR = 1001


def read_rate(fps: Any) -> Fraction:
    """Frames per second, exactly: 24, 12.5, "24000/1001"; 23.976, 29.97 and the like are the NTSC fractions.

    Raises InputError.
    """
    text = str(fps)
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):  # of "inf" and "nan", too
        allowed = "a number or a fraction such as 24000/1001"
        raise InputError(f"video.fps must be {allowed}; got {text or repr(text)}. Try 16.") from None
    require(1 <= rate <= 240, "video.fps", fps, "in [1, 240]", "Try 16.")
    if "/" in text:
        allowed = f"a fraction whose denominator is at most {MAX_DENOMINATOR}"
        require(rate.denominator <= MAX_DENOMINATOR, "video.fps", fps, allowed, "Try 24000/1001.")
        return rate
    for exact in (Fraction(1000 * number, 1001) for number in NTSC):
        if float(rate) in (round(float(exact), 2), round(float(exact), 3)):
            return exact
    return rate.limit_denominator(MAX_DENOMINATOR)


@dataclass
class VideoConfig:
    """The clip: frames, frames per second, and the cap [width, height] in pixels (turned for portrait images).

    `fps` is a number or a fraction, see `read_rate`; `format` is what it is written as. `quality`, 0 to 10, is for
    formats that lose something; null: what the format has by itself.
    """

    num_frames: int
    fps: Any  # OmegaConf cannot merge a union
    max_size: list[int]
    format: VideoFormat
    quality: float | None

    def __post_init__(self) -> None:
        require(self.num_frames >= 1, "video.num_frames", self.num_frames, "at least 1", "Try 81.")
        read_rate(self.fps)
        require(
            len(self.max_size) == 2 and min(self.max_size) >= 16 and max(self.max_size) <= MAX_SIDE_PX,
            "video.max_size",
            self.max_size,
            f"[width, height] in pixels, each in [16, {MAX_SIDE_PX}], the most that H.264 takes",
            "Try [3840,2160].",
        )
        quality = self.quality
        in_range = quality is None or math.isfinite(quality) and 0 <= quality <= 10
        require(in_range, "video.quality", quality, "in [0, 10], or null", "10 is the best.")
        with_quality = [name.value for name, encoding in FORMATS.items() if encoding.crf]
        allowed = f"null with video.format={self.format.value}; {', '.join(with_quality)} have one"
        require(quality is None or self.encoding.crf is not None, "video.quality", quality, allowed, "Leave it out.")

    @property
    def encoding(self) -> Encoding:
        """How it is written."""
        return FORMATS[self.format]

    @property
    def rate(self) -> Fraction:
        """Frames per second."""
        return read_rate(self.fps)
