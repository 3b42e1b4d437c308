"""Which sizes, rates and formats are told not to play, by the levels that the encoders themselves write."""

import re

import pytest
from make_jobs import make_config

from fresco_dist.media.playing import playing_notes


def notes(size: tuple[int, int], *overrides: str) -> list[str]:
    return list(playing_notes(make_config(*overrides).video, size))


@pytest.mark.parametrize(
    "size, fps, plays",
    [  # H.264 table A-1; x264 writes level 5.2 for the first and 6 for the second
        ((3840, 2160), 60, True),
        ((3840, 2160), 65, False),
        ((4096, 2304), 30, True),
        ((4096, 2320), 16, False),
        ((4098, 2048), 16, False),
        ((2160, 3840), 16, True),
        ((2048, 4098), 16, False),
    ],
)
def test_h264_beyond_level_5_2_or_4096_px_is_told(size, fps, plays):
    told = notes(size, f"video.fps={fps}")
    assert told == [] if plays else len(told) == 1
    if not plays:
        assert "video.format=h264" in told[0] and "level 5.2" in told[0] and "av1 or h265 may play" in told[0]


def test_no_other_format_is_proposed_where_none_plays():
    for format in ("h264", "h265", "av1"):
        *_, told = notes((12000, 4000), f"video.format={format}")
        assert "will not play" in told and "may play" not in told and "video.max_size" in told


def test_h265_and_av1_say_who_plays_them():
    (h265,), (av1,) = (notes((7680, 4320), f"video.format={name}") for name in ("h265", "av1"))
    assert "Safari plays it" in h265 and "Chrome, Edge and Firefox play it" in av1


@pytest.mark.parametrize("format", ["prores", "prores_4444", "ffv1", "png", "frames"])
def test_formats_that_no_browser_plays_say_so(format):
    (told,) = notes((64, 64), f"video.format={format}")
    assert re.match(f"no browser plays video.format={format}, .* h264 and av1 are played", told)
