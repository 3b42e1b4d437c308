"""Runs whose videos are written in other formats than H.264: what is in the run folder, and what is done again."""

import json

import av
import numpy as np
import pytest
import torch
from conftest import forwards_of, run_json
from make_jobs import make_job
from pymediainfo import MediaInfo
from safetensors.numpy import load_file

from fresco_dist.config import FORMATS, VideoFormat
from fresco_dist.jobs.clip import Clip
from fresco_dist.jobs.folder import PRODUCTS
from fresco_dist.media.pictures import to_depth
from fresco_dist.method.grid import flat, tile_cores
from fresco_dist.models.backbone import floats_to_pixels
from fresco_dist.runtime import inprocess_executor
from fresco_dist.runtime.numerics import numerics

FRAMES, SIZE = 5, (96, 48)


@pytest.fixture
def sweep(command, tmp_path):
    """A run in each format, together, measured."""
    names = ",".join(format.value for format in VideoFormat)
    overrides = (f"hydra.sweep.dir={tmp_path / 'sweep'}", f"video.format={names}", "video.fps=29.97", "metrics=true")
    done = command(*overrides, flags=("-m",))
    assert done.returncode == 0, done.stderr
    return done, {format: tmp_path / "sweep" / str(i) for i, format in enumerate(VideoFormat)}


def test_all_formats_hold_one_animation(sweep, tmp_path):
    done, folders = sweep
    expected = load_file(folders[VideoFormat.frames] / "video.safetensors")["frames"]
    assert expected.shape == (FRAMES, *SIZE[::-1], 3) and expected.dtype == np.uint16
    assert (expected % 257 != 0).mean() > 0.9, "values that 8 bits do not have"
    digests = set()
    for format, folder in folders.items():
        run, name = run_json(folder), FORMATS[format].file_name
        assert {path.name for path in folder.iterdir()} == {name, *PRODUCTS[1:]}
        assert name in run["products"] and run["status"] == "done"
        digests.add(run["latents_sha256"])
        if format is not VideoFormat.frames:
            _check_video(folder / name, format, expected)
    assert len(digests) == 1
    metrics = [run_json(folder)["metrics"] for folder in folders.values()]
    for figures in metrics[1:]:  # of frames that are rounded twice
        assert figures == pytest.approx(metrics[0], rel=1e-2, abs=1e-2)
    _check_report(tmp_path / "sweep" / "report", done)


def _check_video(path, format, expected) -> None:
    frames = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        tracks = MediaInfo.parse(file).tracks
        (found,) = (track for track in tracks if track.track_type in ("Video", "Image"))
        assert (found.width, found.height) == SIZE
        with av.open(str(file)) as container:
            if not path.is_dir():
                assert container.streams.video[0].average_rate * 1001 == 30000
            frames += [frame.to_ndarray(format="rgb48le") for frame in container.decode(video=0)]
    if FORMATS[format].is_rgb:
        np.testing.assert_array_equal(frames, expected)
    else:
        assert len(frames) == FRAMES and np.abs(np.array(frames) / 65535 - expected / 65535).mean() < 0.05


def _check_report(report, done) -> None:
    assert (report / "table.md").read_text().count("| done |") == len(VideoFormat)
    page = (report / "index.html").read_text()
    unplayed = [format for format in VideoFormat if not FORMATS[format].is_played]
    for format in unplayed:
        assert f"1 video is left out: no browser plays video.format={format.value}" in page
        assert f"note      no browser plays video.format={format.value}" in done.stdout
    assert page.count('"video": null') == len(unplayed) and page.count('"fps": 29.97002997') == len(VideoFormat)
    assert "vae_dtype" not in done.stdout


def test_another_format_in_the_same_folder_takes_the_place_of_the_first(command, folder):
    assert command().returncode == 0
    latents = (folder / "latents.safetensors").read_bytes()
    (folder / "video.mov").write_text("the user's own")
    for name, left, gone in (
        ("png", "video", "video.mp4"),
        ("ffv1", "video.mkv", "video"),
        ("png", "video", "video.mkv"),
    ):
        done = command(f"video.format={name}")
        assert done.returncode == 0 and forwards_of(folder) == 0, "the canvas is there"
        assert "stored    step 3 of 3: 0 of 21 forwards left" in done.stdout
        assert f"note      {folder} has a run with other video.format: this one takes its place" in done.stdout
        assert (folder / left).exists() and not (folder / gone).exists()
        assert (folder / "latents.safetensors").read_bytes() == latents
        assert "done      " in command(f"video.format={name}").stdout.splitlines()[0], "already"
    for other in ("video.fps=9", "video.quality=3"):
        assert command(other).returncode == 0 and forwards_of(folder) == 0
    assert command("video.format=png").returncode == 0
    assert (folder / "video.mov").exists()
    (folder / "video" / "00002.png").write_bytes(b"torn")
    again = command("video.format=png")
    assert "already" not in again.stdout and (folder / "video" / "00002.png").stat().st_size > 4
    assert not list(folder.glob(".partial*")) and not (folder / "store").exists()


def _edit_run(folder, **facts) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (("seed=1",), lambda folder: None),
        ((), lambda folder: (folder / "latents.safetensors").write_bytes(b"torn")),
        ((), lambda folder: (folder / "run.json").write_text("torn")),
        ((), lambda folder: _edit_run(folder, numerics={"numerics": "../..", "facts": {}})),
        (("store.enabled=false",), lambda folder: None),
    ],
    ids=["another seed", "torn latents", "torn run.json", "a path", "no store"],
)
def test_latents_of_another_run_are_not_shown_in_another_format(command, folder, tmp_path, overrides, change):
    """Those that a run has left in its folder are taken if they are what the next one would make, to the bit."""
    assert command().returncode == 0
    whole = command("video.format=ffv1", *overrides, f"hydra.run.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0
    change(folder)
    done = command("video.format=ffv1", *overrides)
    assert done.returncode == 0 and forwards_of(folder) == 21
    digest = run_json(tmp_path / "whole")["latents_sha256"]
    assert run_json(folder)["latents_sha256"] == digest
    assert "stored " not in done.stdout


def test_latents_of_other_numerics_are_told_and_not_shown_in_another_format(command, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(inprocess_executor, "numerics", lambda *given: numerics(*given) | {"torch": "2.12.0"})
        assert command().returncode == 0
    done = command("video.format=ffv1")
    assert done.returncode == 0 and "what is stored was made with torch 2.12.0, now" in done.stdout
    assert forwards_of(folder) == 21


def test_video_of_another_run_goes_though_a_look_came_between(command, folder):
    assert command().returncode == 0 and (folder / "video.mp4").exists()
    assert command("seed=1", "sampler.stop_after=2").returncode == 0
    assert command("seed=1", "video.format=ffv1").returncode == 0
    assert not (folder / "video.mp4").exists() and not (folder / "starts.json").exists()
    (folder / "run.json").write_text("[" * 200_000)  # damaged: it vouches for nothing
    assert command("seed=1").returncode == 0 and (folder / "video.mkv").exists()


def test_folder_of_others_is_not_replaced(command, folder):
    (folder / "video").mkdir(parents=True)
    (folder / "video" / "holiday.mp4").write_text("precious")
    done = command("video.format=png")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: hydra.run.dir must be a folder whose video can be replaced") and "holiday" in line
    assert (folder / "video" / "holiday.mp4").read_text() == "precious" and not (folder / "run.json").exists()


def test_preview_is_h264_whatever_the_format(command, folder):
    done = command("video.format=ffv1", "sampler.stop_after=1")
    assert done.returncode == 0 and "no browser" not in done.stdout
    (found,) = (track for track in MediaInfo.parse(folder / "preview.mp4").tracks if track.track_type == "Video")
    assert (found.format, found.bit_depth) == ("AVC", 8)
    assert command("video.format=ffv1").returncode == 0
    assert (folder / "video.mkv").exists() and not (folder / "preview.mp4").exists()


@pytest.mark.parametrize("format", ["h265", "av1"])
def test_video_too_large_for_its_encoder_is_refused_before_anything_runs(command, folder, format):
    overrides = ("model=synthetic", "video.max_size=[16384,16384]", f"video.format={format}", "plan_only=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fresco_dist.jobs.inputs.Inputs.image_px", lambda *_: (16384, 4608))
        done = command(*overrides)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: video.max_size must be such that video.format={format} takes the video, at most"
    )
    assert len(done.stderr.splitlines()) == 1


def test_clip_of_16_bits_goes_on_from_its_tiles_and_from_none_of_8(tmp_path):
    plan = make_job(None, "model=synthetic", "model.vae_tile=32").plan
    cores = [core.scaled(plan.spec.spatial_factor) for core in tile_cores(plan.levels[1].decode_tiles)]
    assert len(cores) == len(list(flat(plan.levels[1].decode_tiles))) > 1
    rng, first = np.random.default_rng(0), Clip(plan, 1, 16)
    first.keep_at(tmp_path / "clip")
    for i, core in enumerate(cores):
        first.take(i, rng.integers(0, 65536, (plan.num_frames, core.height, core.width, 3), dtype=np.uint16))
    other, again = Clip(plan, 1), Clip(plan, 1, 16)
    again.keep_at(tmp_path / "clip")
    assert again.is_complete and again.frames.dtype == np.uint16 and (again.frames == first.frames).all()
    other.keep_at(tmp_path / "clip")
    assert other.decoded == frozenset()
    first.frames[0, 0, 0, 0] ^= 1
    torn = Clip(plan, 1, 16)
    torn.keep_at(tmp_path / "clip")
    assert torn.decoded == frozenset(range(1, len(cores)))


def test_clips_of_both_depths_are_of_one_canvas_and_previews_have_no_depth():
    jobs = [make_job(None, "model=synthetic", f"video.format={name}") for name in ("h264", "prores", "png")]
    clips = [job.keys.levels[-1].clip for job in jobs]
    assert clips[1] == clips[2] != clips[0]
    assert all(job.keys.levels[0] == jobs[0].keys.levels[0] for job in jobs)
    assert all(job.keys.levels[-1].canvas == jobs[0].keys.levels[-1].canvas for job in jobs)
    early = [make_job(None, "model=synthetic", "sampler.stop_after=2", f"video.format={n}") for n in ("h264", "png")]
    assert early[0].keys.levels[-1].clip == early[1].keys.levels[-1].clip
    assert early[1].bits(1) == 8 and jobs[1].bits(1) == 16 and jobs[1].bits(0) == 8


def test_pixels_of_16_bits_are_those_of_8_more_finely():
    raw = torch.linspace(-1.2, 1.2, 3 * 4 * 50 * 60).reshape(3, 4, 50, 60)
    deep, plain = floats_to_pixels(raw, 16).numpy(), floats_to_pixels(raw).numpy()
    assert deep.dtype == np.uint16 and plain.dtype == np.uint8 and (deep.min(), deep.max()) == (0, 65535)
    assert np.abs(to_depth(deep, 8).astype(int) - plain).max() <= 1 and (to_depth(deep, 8) != plain).mean() < 0.01
    exact = np.moveaxis((raw.double().clamp(-1, 1).numpy() + 1) / 2 * 65535, 0, -1)
    assert np.abs(deep - exact).max() < 0.51
