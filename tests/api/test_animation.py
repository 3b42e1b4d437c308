"""What has come of a call: shown in a notebook, and saved."""

from pathlib import Path

import numpy as np
import pytest

import fresco_dist
from fresco_dist.media.video import read_video


def test_clip_is_shown(animate, picture_path):
    html = animate(picture_path)._repr_html_()
    assert html.startswith("<video controls") and "data:video/mp4;base64," in html


@pytest.mark.parametrize(
    "format, name", [("h264", "file:a.mp4"), ("h265", "a.MP4"), ("prores", "a.mov"), ("png", "a:frames")]
)
def test_clip_is_saved_in_the_format_of_the_run(animate, picture_path, tmp_path, monkeypatch, format, name):
    clip = animate(picture_path, video={"format": format})
    monkeypatch.chdir(tmp_path)
    assert clip.frames.dtype == (np.uint8 if format == "h264" else np.uint16)
    (tmp_path / "out").mkdir()
    path = clip.save(Path("out") / name)
    assert [file.name for file in path.parent.iterdir()] == [name]
    read = read_video(path)
    assert read.shape == clip.frames.shape and read.dtype == clip.frames.dtype
    assert format != "png" or (read == clip.frames).all()


def test_clip_is_saved_as_h264_whatever_its_format(animate, picture_path, tmp_path):
    clip = animate(picture_path, video={"format": "prores"})
    assert read_video(clip.save(tmp_path / "a.mp4")).dtype == np.uint8
    with pytest.raises(fresco_dist.InputError, match=r"must end in .mov \(video.format=prores\) or .mp4; got a.mkv"):
        clip.save(tmp_path / "a.mkv")
    with pytest.raises(fresco_dist.WriteError, match="a.mov could not be written to .*nowhere: No such file"):
        clip.save(tmp_path / "nowhere" / "a.mov")


def test_clip_is_saved_where_a_killed_process_was_at_it(animate, picture_path, tmp_path):
    (tmp_path / ".partial-frames").mkdir()
    (tmp_path / ".partial-frames" / "00000.png").touch()
    clip = animate(picture_path, video={"format": "png"})
    assert (read_video(clip.save(tmp_path / "frames")) == clip.frames).all()
    with pytest.raises(fresco_dist.WriteError, match="frames could not be written"):  # the one that is there is whole
        clip.save(tmp_path / "frames")
