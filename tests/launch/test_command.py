"""The whole command: what a run leaves behind, what it says, how it ends, and bad input of every kind.

Most commands run inside this process, where they cost little; those that a shell must see are real processes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import av
import numpy as np
import pytest
import torch
from conftest import TINY_RUN, make_picture, merged, products_of, run_here
from PIL import Image
from safetensors.numpy import load_file

import fresco_dist.jobs.planning
from fresco_dist.jobs.folder import PRODUCTS, RunFolder, WriteError
from fresco_dist.runtime.worker import Worker


def _run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def _video_facts(folder: Path) -> tuple[int, int, int]:
    """Width, height and number of frames that a decoder finds."""
    with av.open(str(folder / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    return frames[0].width, frames[0].height, len(frames)


# A run that succeeds


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_path) -> Iterator[SimpleNamespace]:
    """One finished command in a process of its own, its output piped: a picture of 97 x 51 px."""
    path = tmp_path_factory.mktemp("finished")
    make_picture(97, 51).save(path / "picture.png")
    defaults = ["cluster.executor=inprocess", f"model.path={model_path}", *TINY_RUN]
    prompt = 'prompt="water flows, figures walk"'
    overrides = ("image=picture.png", "hydra.run.dir=out", "video.fps=12", "seed=7", prompt)
    arguments = merged(overrides, defaults)
    done = subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch", *arguments], cwd=path, capture_output=True, text=True, timeout=240
    )
    yield SimpleNamespace(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr, folder=path / "out")


def test_command_success_exits_0_and_leaves_exactly_the_products(finished):
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert {path.name for path in finished.folder.iterdir()} == set(PRODUCTS)
    assert len({(finished.folder / name).stat().st_mode for name in PRODUCTS}) == 1  # as the user's umask has it


def test_command_run_json_tells_the_run(finished):
    run = _run_json(finished.folder)
    assert run["status"] == "done" and "error" not in run
    assert run["config"]["seed"] == 7 and run["config"]["prompt"] == "water flows, figures walk"
    assert run["config"]["fusion"]["method"] == "fresco" and run["config"]["cluster"]["executor"] == "inprocess"
    assert (run["canvas"]["width"], run["canvas"]["height"]) == (96, 48)
    assert run["canvas"]["latent_shape"] == [1, 4, 2, 12, 24]
    windows = np.array(run["grid"]["windows"])
    assert run["grid"]["num_windows"] == len(windows) == 6
    assert (windows[:, :2] + windows[:, 2:]).max(axis=0).tolist() == [12, 24]
    assert run["num_workers"] == 1
    timings = run["timings_s"]
    assert {"total", "load", "prior", "steps", "decode", "write"} <= timings.keys()
    assert all(0 < timings[name] <= timings["total"] for name in ("load", "prior", "steps", "decode", "write"))
    schedule = run["schedule"]
    assert 0 < schedule["busy_fraction"] <= 1 and 0 < schedule["lower_bound_s"] <= schedule["makespan_s"]
    assert schedule["lower_bound_s"] == pytest.approx(schedule["busy_fraction"] * schedule["makespan_s"])
    assert run["peak_memory_gb"] > 0 and run["attention_backend"] == "native"
    assert run["versions"]["torch"] == torch.__version__ and "fresco_dist" in run["versions"]


def test_command_latents_have_the_recorded_shape_and_digest(finished):
    run = _run_json(finished.folder)
    latents = load_file(finished.folder / "latents.safetensors")["latents"]
    assert latents.dtype == np.float32 and list(latents.shape) == run["canvas"]["latent_shape"]
    assert np.isfinite(latents).all() and latents.std() > 0.1
    assert sha256(latents.tobytes()).hexdigest() == run["latents_sha256"]


def test_command_trace_is_a_chrome_trace_with_every_task_on_its_workers_row(finished):
    events = json.loads((finished.folder / "trace.json").read_text())["traceEvents"]
    rows = [event for event in events if event["ph"] == "M"]
    tasks = [event for event in events if event["ph"] == "X"]
    assert [row["args"]["name"] for row in rows] == ["worker 0", "worker 0, beside"]
    assert len(rows) + len(tasks) == len(events)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 and event["name"] for event in tasks)
    assert {event["cat"] for event in tasks if event["tid"] == 1} == {"fuse", "collect", "blend"}
    kinds = [(event["cat"], event["name"].split(", ")[1]) for event in tasks if event["cat"] in ("predict", "fuse")]
    assert Counter(kinds) == {("predict", "level 0"): 3, ("fuse", "level 0"): 3,
                              ("predict", "level 1"): 18, ("fuse", "level 1"): 18}  # fmt: skip
    assert min(event["ts"] for event in tasks) == 0
    in_order = sorted(tasks, key=lambda event: event["ts"])  # one worker does one thing at a time
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in zip(in_order, in_order[1:]))


def test_command_video_has_even_sides_near_the_pictures(finished):
    assert _video_facts(finished.folder) == (96, 50, 5)
    with av.open(str(finished.folder / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12


def test_command_contact_sheet_opens_and_shows_the_picture(finished):
    with Image.open(finished.folder / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet)
    picture = np.asarray(make_picture(97, 51).resize((96, 48), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels[14:62, :96], picture)


def test_command_output_in_a_pipe_is_plain_lines_with_plan_progress_and_products(finished):
    assert "\x1b" not in finished.stdout and "\r" not in finished.stdout
    lines = finished.stdout.splitlines()
    assert "windows   6 of 48 x 32 px, overlap 24 x 16 px" in lines
    assert any(line.startswith("forwards  21:") for line in lines)
    assert any(line.startswith("note      the canvas is snapped") for line in lines)
    assert any(line.startswith("denoise step 3/3: tiles 18/18, ") and line.endswith(" s left") for line in lines)
    assert "decode: tiles 1/1" in lines
    assert [line.strip() for line in lines[-len(PRODUCTS) :]] == [str(finished.folder / name) for name in PRODUCTS]


# The picture and the canvas


def _exif_rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURES = {  # file, how it is saved, further overrides, size of canvas and video
    "odd_with_alpha": ("p.png", lambda path: make_picture(97, 51).convert("RGBA").save(path), [], (96, 48), (96, 50)),
    "photo_turned": (
        "p.jpg", lambda path: make_picture(96, 48).save(path, exif=_exif_rotated()), [], (48, 96), (48, 96)
    ),
    "cmyk_smaller_than_a_window": (
        "p.jpg", lambda path: make_picture(21, 13).convert("CMYK").save(path), [], (16, 8), (20, 12)
    ),
    "grey_16_bit_tiff": (
        "p.tif", lambda path: Image.new("I;16", (40, 32), 40000).save(path), [], (40, 32), (40, 32)
    ),
    "very_wide": ("p.png", lambda path: make_picture(331, 9).save(path), [], (328, 8), (330, 8)),
    "over_the_cap": (
        "p.png", lambda path: make_picture(201, 100).save(path), ["video.max_size=[96,64]"], (96, 48), (96, 48)
    ),
    "portrait_over_the_turned_cap": (
        "p.png", lambda path: make_picture(100, 201).save(path), ["video.max_size=[96,64]"], (48, 96), (48, 96)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PICTURES)
def test_command_takes_pictures_of_any_kind_and_size(command, folder, tmp_path, kind):
    name, save, overrides, canvas, video = PICTURES[kind]
    save(tmp_path / name)
    done = command(f"image={tmp_path / name}", *overrides)
    assert done.returncode == 0, done.stderr
    run = _run_json(folder)
    assert (run["canvas"]["width"], run["canvas"]["height"]) == canvas
    assert _video_facts(folder) == (*video, 5)
    assert ("exceeds video.max_size" in done.stdout) == (kind in ("over_the_cap", "portrait_over_the_turned_cap"))


# Plans, sweeps, reruns


def test_command_plan_only_prints_the_plan_and_loads_no_weights(command, folder, model_path, tmp_path):
    shutil.copytree(model_path, tmp_path / "model")
    for path in (tmp_path / "model").rglob("*.safetensors"):  # the headers are right, the weights are garbage
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:header] + b"\xff" * (len(data) - header))
    with mock.patch.object(Worker, "__init__", side_effect=AssertionError("a worker was made")):
        done = command("plan_only=true", f"model.path={tmp_path / 'model'}")
        assert not folder.exists()
    assert (done.returncode, done.stderr) == (0, "")
    assert "windows   6 of 48 x 32 px" in done.stdout and "forwards  21:" in done.stdout
    assert products_of(folder) == set()


def test_command_plan_only_for_a_cluster_that_is_not_here(command, folder, monkeypatch):
    monkeypatch.setattr("fresco_dist.runtime.ray_cluster.resources", lambda _: [{"CPU": 2.0, "GPU": 0.0}])
    done = command("plan_only=true", "cluster.executor=ray", "+cluster=8xh100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "workers   8\n" in done.stdout
    assert products_of(folder) == set()


def test_command_plan_only_refuses_bad_input_like_a_run(command):
    assert command("plan_only=true", "video.num_frames=6").returncode == 2


def test_command_runs_that_start_in_the_same_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "rmdir", lambda self: None)  # a plan leaves none
    times = [datetime(2026, 1, 2, 3, 4, 5, microsecond) for microsecond in (6, 7)]
    for flags, kind in (((), "outputs"), (("-m",), "multirun")):
        for time in times:
            with mock.patch("hydra.core.utils.datetime", now=lambda time=time: time):
                assert run_here([*flags, "plan_only=true", "model=synthetic", "cluster.executor=inprocess"]) == 0
        folders = (tmp_path / kind / "2026-01-02").iterdir()
        assert {folder.name for folder in folders} == {"03-04-05-000006", "03-04-05-000007"}


def _digest(folder: Path) -> str:
    run = _run_json(folder)
    assert run["status"] == "done"
    return run["latents_sha256"]


def test_command_regional_fusion_takes_an_activity_map_of_any_size(command, folder, tmp_path):
    half = np.zeros((48, 96), dtype=np.uint8)
    half[:, :48] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.fromarray(half).resize((192, 96), Image.Resampling.NEAREST).save(tmp_path / "double.png")
    Image.fromarray(255 - half).save(tmp_path / "other_half.png")
    regional = ["fusion=regional", "fusion.cutoff_active=0.0", "fusion.cutoff_background=1.0"]
    digests = {}
    for name in ("half", "double", "other_half"):
        done = command(*regional, f"fusion.activity_map={tmp_path / name}.png")
        assert done.returncode == 0, done.stderr
        digests[name] = _digest(folder)
    assert command().returncode == 0
    digests["fresco"] = _digest(folder)
    assert digests["half"] == digests["double"]
    assert len(set(digests.values())) == 3


def test_command_sweep_makes_one_run_folder_per_value(command, tmp_path):
    sweep = tmp_path / "sweep"
    done = command("fusion.prior_strength=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert (done.returncode, done.stderr) == (0, "")
    digests = set()
    for index, strength in enumerate((0, 1)):
        assert products_of(sweep / str(index)) == set(PRODUCTS)
        assert _run_json(sweep / str(index))["config"]["fusion"]["prior_strength"] == strength
        digests.add(_digest(sweep / str(index)))
    assert len(digests) == 2


def test_command_sweep_goes_on_after_a_job_that_fails_and_exits_with_its_code(command, tmp_path):
    sweep = tmp_path / "sweep"
    done = command("video.num_frames=6,5", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "video.num_frames must be" in done.stderr
    assert products_of(sweep / "0") == set()
    assert _run_json(sweep / "1")["status"] == "done"


def test_command_rerun_replaces_every_product(command, folder):
    assert command("seed=1").returncode == 0
    first = {name: (folder / name).read_bytes() for name in PRODUCTS}
    (folder / "notes.txt").write_text("the user's own")
    assert command("seed=2").returncode == 0
    assert all((folder / name).read_bytes() != data for name, data in first.items())
    assert products_of(folder) == set(PRODUCTS)
    assert (folder / "notes.txt").exists()


def test_command_typed_again_does_nothing(command, folder):
    assert command().returncode == 0
    before = {name: (folder / name).stat().st_mtime_ns for name in PRODUCTS}
    with mock.patch.object(Worker, "__init__", side_effect=AssertionError("a worker was made")):
        done = command()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"done      {folder}: already\n", "")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "contact_sheet.png").write_bytes(b"not what the run wrote")
    assert command().returncode == 0
    assert (folder / "contact_sheet.png").stat().st_size > 1000


def test_command_rerun_that_fails_vouches_for_nothing_old(command, folder):
    """What it has not come to write stays as it was; its run.json names its own files alone."""
    assert command().returncode == 0
    kept = {name: (folder / name).read_bytes() for name in ("video.mp4", "contact_sheet.png", "latents.safetensors")}
    (folder / ".partial-video.mp4").write_bytes(b"left by a run that was killed")
    with mock.patch.object(Worker, "_predict", side_effect=RuntimeError("out of luck")):
        done = command("seed=1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rank 0 failed at predict, level 0, step 0") and line.endswith("out of luck")
    assert products_of(folder) == set(PRODUCTS)
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    run = _run_json(folder)
    assert run["status"] == "failed" and "out of luck" in run["error"]
    assert run["config"]["seed"] == 1 and "latents_sha256" not in run
    assert run["products"] == {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in ("trace.json", "timeline.png")
    }


def test_run_folder_file_appears_only_when_it_is_whole(tmp_path):
    folder, inodes = RunFolder(tmp_path), []

    def write(partial: Path, fail: bool) -> None:
        partial.write_text("half of it")
        inodes.append(partial.stat().st_ino)
        assert not (tmp_path / "video.mp4").exists()
        if fail:
            raise OSError("disk full")

    with pytest.raises(WriteError, match=f"video.mp4 could not be written to {tmp_path}: disk full"):
        folder.write("video.mp4", lambda partial: write(partial, fail=True))
    assert list(tmp_path.iterdir()) == []
    folder.write("video.mp4", lambda partial: write(partial, fail=False))
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").stat().st_ino == inodes[-1]  # renamed, not copied


def test_command_defect_shows_its_traceback_and_exits_1(command, folder):
    with mock.patch.object(fresco_dist.jobs.planning, "choose_grid", side_effect=KeyError("a defect")):
        done = command()
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1] == "error: 'a defect'"
    assert products_of(folder) == set()


# Signals


def test_command_signal_ends_the_run_with_its_code_and_an_interrupted_run_json(picture_path, tmp_path):
    """SIGINT and SIGTERM in the middle of a run: one line, no video, no process left."""
    cases = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}
    processes = {}
    for number in cases:
        arguments = ["model=synthetic", "model.forward_s=1", "cluster.executor=inprocess", f"image={picture_path}"]
        arguments += ["fusion=multidiffusion", "sampler.num_steps=50", f"hydra.run.dir={tmp_path / number.name}"]
        processes[number] = subprocess.Popen(
            [sys.executable, "-m", "fresco_dist.launch", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    for number, process in processes.items():
        assert process.stdout is not None
        assert any("denoise" in line for line in process.stdout)  # reads until then
        process.send_signal(number)
    for number, process in processes.items():
        _, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == cases[number]
        folder = tmp_path / number.name
        assert products_of(folder) == {"run.json", "trace.json", "timeline.png"}
        run = _run_json(folder)
        assert run["status"] == "interrupted" and run["error"]
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def test_command_latents_are_kept_when_decoding_fails(command, folder, monkeypatch):
    """Hours of denoising must not be lost to an out-of-memory error in the decoder."""
    monkeypatch.setattr(
        "fresco_dist.models.wan.vae.TiledVae.decode_tile", mock.Mock(side_effect=RuntimeError("out of memory"))
    )
    done = command()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: rank 0 failed at decode, level 1, tile 0: out of memory"
    assert load_file(folder / "latents.safetensors")["latents"].shape == (1, 4, 2, 12, 24)
    assert products_of(folder) == {"latents.safetensors", "trace.json", "timeline.png", "run.json"}
