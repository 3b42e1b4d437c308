"""What a video can be written as: of each format its file, its encoder, its limits. Nothing is encoded here.

Of crf, the encoders' own scale of constant quality, 0 is lossless in H.264 and AV1, in profiles that few decoders have:
the best that `video.quality` gives is 1.
"""

from dataclasses import dataclass, field

from fresco_dist.config.choices import VideoFormat

MAX_FRAME = 2**28  # of (width + 128) * (height + 128), in FFmpeg
FASTSTART = {"movflags": "+faststart"}  # the index at the front


@dataclass(frozen=True)
class Crf:
    """The encoder's own default, as we set it, and its values at quality 0 and 10."""

    default: float
    worst: float
    best: float = 1.0

    def at(self, quality: float | None) -> float:
        """Linear in the quality; None: the default."""
        return self.default if quality is None else self.worst + (self.best - self.worst) * quality / 10.0


@dataclass(frozen=True)
class Encoding:
    """How a format is written. `bits` is the depth of the frames that it takes; it may keep fewer.

    `is_rgb`: samples are those of the frames, of every pixel, without a conversion to luma and chroma.
    """

    file_name: str  # in the run folder
    codec: str = ""  # FFmpeg's name; none: no video file
    pixels: str = ""  # FFmpeg's name of the pixel format
    container: str = ""
    container_options: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)  # of the encoder
    crf: Crf | None = None
    tag: str = ""  # by which the container names the codec, where it has a choice
    bits: int = 16
    is_rgb: bool = False
    is_played: bool = False  # by browsers, at least by some
    max_px: int = MAX_FRAME  # width times height
    max_height: int = 16384

    @property
    def even_sides(self) -> bool:
        """Whether it has chroma for two by two pixels, or two."""
        return bool(self.codec) and not self.is_rgb

    def limit(self, size: tuple[int, int]) -> str:
        """What it takes at most, if (width, height) is more; else ""."""
        width, height = size
        if width * height > self.max_px or height > self.max_height:
            most = f"at most {self.max_px} pixels in all"
            return f"{most} and {self.max_height} px high" if self.max_height < 16384 else most
        too_large = (width + 128) * (height + 128) >= MAX_FRAME and self.codec
        return f"at most 16384 x {MAX_FRAME // (16384 + 128) - 129} px" if too_large else ""


FORMATS = {
    VideoFormat.h264: Encoding(
        "video.mp4", "libx264", "yuv420p", "mp4", FASTSTART, {"preset": "medium"}, Crf(14, 51), bits=8, is_played=True
    ),
    VideoFormat.h265: Encoding(
        "video.mp4",
        "libx265",
        "yuv420p10le",
        "mp4",
        FASTSTART,
        {"preset": "medium", "profile": "main10", "x265-params": "log-level=error"},
        Crf(16, 51),
        tag="hvc1",  # Apple's players know no other
        is_played=True,
        max_px=2**26,
    ),
    VideoFormat.av1: Encoding(
        "video.mp4", "libsvtav1", "yuv420p10le", "mp4", FASTSTART, {"preset": "8"}, Crf(20, 63), is_played=True,
        max_px=2**26, max_height=8704,
    ),
    VideoFormat.prores: Encoding(
        "video.mov", "prores_ks", "yuv422p10le", "mov", FASTSTART, {"profile": "hq", "vendor": "apl0"}
    ),
    VideoFormat.prores_4444: Encoding(
        "video.mov", "prores_ks", "yuv444p10le", "mov", FASTSTART, {"profile": "4444", "vendor": "apl0"}
    ),
    VideoFormat.ffv1: Encoding(
        "video.mkv", "ffv1", "gbrp16le", "matroska", {}, {"level": "3", "slicecrc": "1", "slices": "16"}, is_rgb=True
    ),
    VideoFormat.png: Encoding("video", "png", "rgb48be", "image2", {"start_number": "0"}, is_rgb=True),
    VideoFormat.frames: Encoding("video.safetensors", is_rgb=True),
}  # fmt: skip
