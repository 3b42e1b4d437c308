"""Where a video plays: what browsers and hardware decoders take, and what to choose where they do not.

H.264's levels are those of ITU-T H.264 table A-1, in macroblocks; H.265's and AV1's of H.265 table A.8 and the AV1
specification's annex A.3, in luma samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fresco_dist.config import VideoConfig, VideoFormat

MACROBLOCK_PX = 16
LESS = "give a smaller video.max_size, such as [3840,2160]"


@dataclass(frozen=True)
class Level:
    """The most that is widely decoded: pixels along a side, in a frame, and in a second."""

    name: str
    side: int
    frame: int
    second: int


H264 = Level("5.2", 4096, 36_864 * MACROBLOCK_PX**2, 2_073_600 * MACROBLOCK_PX**2)
LATER = Level("6.2", 8192, 35_651_584, 4_278_190_080)
LEVELS = {VideoFormat.h264: H264, VideoFormat.h265: LATER, VideoFormat.av1: LATER}
ONLY = {
    VideoFormat.h265: "Safari plays it, other browsers where the hardware decodes it; h264 and av1 need none",
    VideoFormat.av1: "Chrome, Edge and Firefox play it, Safari where the hardware decodes it; h264 plays in all",
}


def playing_notes(video: VideoConfig, size: tuple[int, int]) -> Iterator[str]:
    """What keeps a video of `size` (width, height) from playing in some browsers or in hardware decoders."""
    name = f"video.format={video.format.value}"
    if not video.encoding.is_played:
        yield f"no browser plays {name}, and reports leave its video out; h264 and av1 are played"
        return
    if video.format in ONLY:
        yield f"{name}: {ONLY[video.format]}"
    level = LEVELS[video.format]
    if _is_within(level, size, video):
        return
    told = f"{size[0]} x {size[1]} px at {float(video.rate):g} per second"
    others = "video.format=av1 or h265 may play, or " if level is H264 and _is_within(LATER, size, video) else ""
    yield (
        f"{name} of {told} is beyond level {level.name} or {level.side} px a side, and will not play in most browsers"
        f" and hardware decoders: {others}{LESS}"
    )


def _is_within(level: Level, size: tuple[int, int], video: VideoConfig) -> bool:
    width, height = (-(-side // MACROBLOCK_PX) * MACROBLOCK_PX for side in size)  # whole blocks are coded
    pixels = width * height
    return max(size) <= level.side and pixels <= level.frame and pixels * video.rate <= level.second
