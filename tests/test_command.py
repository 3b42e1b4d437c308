"""The whole command: what a run leaves behind, what it says, how it ends, and bad input of every kind.

Most commands run inside this process, where they cost little; those that a shell must see are real processes.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from zlib import crc32

import av
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY_RUN, make_picture
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

import fresco_dist.run
from fresco_dist import launch as launch_module
from fresco_dist import progress
from fresco_dist.dispatch import Task
from fresco_dist.run_folder import PRODUCTS, RunFolder
from fresco_dist.trace import TaskRecord
from fresco_dist.worker import Worker


def _merged(overrides: tuple, defaults: list[str]) -> list[str]:
    """`overrides` after those `defaults` whose keys they do not set."""
    given = [str(override) for override in overrides]
    keys = {override.split("=")[0] for override in given}
    return [default for default in defaults if default.split("=")[0] not in keys] + given


@pytest.fixture
def folder(tmp_path) -> Path:
    """The run folder of `command`."""
    return tmp_path / "out"


@pytest.fixture
def command(folder, model_path, picture_path, monkeypatch, capfd):
    """Run the command line inside this process with the in-process executor; exit code, stdout and stderr."""
    transformers.utils.logging.disable_progress_bar()  # as the environment of a process of its own does
    handlers, level, threads = logging.root.handlers[:], logging.root.level, torch.get_num_threads()
    defaults = ["cluster.executor=inprocess", f"hydra.run.dir={folder}", f"image={picture_path}"]
    defaults += [f"model.path={model_path}", *TINY_RUN]

    def run(*overrides: object, flags: tuple[str, ...] = (), tiny: bool = True) -> SimpleNamespace:
        arguments = _merged(overrides, defaults if tiny else defaults[1:3])
        monkeypatch.setattr(sys, "argv", ["launch", *flags, *arguments])
        sigterm = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        try:
            with mock.patch.dict(os.environ):
                returncode = launch_module.main()
        finally:
            signal.signal(signal.SIGTERM, sigterm)
            GlobalHydra.instance().clear()
            torch.set_num_threads(threads)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=out, stderr=err)

    return run


def _run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def _video_facts(folder: Path) -> tuple[int, int, int]:
    """Width, height and number of frames that a decoder finds."""
    with av.open(str(folder / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    return frames[0].width, frames[0].height, len(frames)


def _products(folder: Path) -> set[str]:
    """Products and half-written files in `folder`."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if name in PRODUCTS or "partial" in name}


# A run that succeeds


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_path) -> Iterator[SimpleNamespace]:
    """One finished command in a process of its own, its output piped: a picture of 97 x 51 px."""
    path = tmp_path_factory.mktemp("finished")
    make_picture(97, 51).save(path / "picture.png")
    defaults = ["cluster.executor=inprocess", f"model.path={model_path}", *TINY_RUN]
    prompt = 'prompt="water flows, figures walk"'
    overrides = ("image=picture.png", "hydra.run.dir=out", "video.fps=12", "seed=7", prompt)
    arguments = _merged(overrides, defaults)
    done = subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch", *arguments], cwd=path, capture_output=True, text=True, timeout=240
    )
    yield SimpleNamespace(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr, folder=path / "out")


def test_command_success_exits_0_and_leaves_exactly_the_products(finished):
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert {path.name for path in finished.folder.iterdir()} == {*PRODUCTS, ".hydra"}
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
    assert [row["tid"] for row in rows] == [0] and len(rows) + len(tasks) == len(events)
    assert all(event["tid"] == 0 and event["ts"] >= 0 and event["dur"] >= 0 and event["name"] for event in tasks)
    kinds = [event["cat"] for event in tasks]
    assert kinds.count("predict") == 18 and kinds.count("commit") == 3 and kinds.count("prior") == 1
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
    assert any(line.startswith("decode: tiles 1/1, ") for line in lines)
    assert [line.strip() for line in lines[-5:]] == [str(finished.folder / name) for name in PRODUCTS]


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
    assert (done.returncode, done.stderr) == (0, "")
    assert "windows   6 of 48 x 32 px" in done.stdout and "forwards  21:" in done.stdout
    assert _products(folder) == set()


def test_command_plan_only_for_a_cluster_that_is_not_here(command, folder, monkeypatch):
    monkeypatch.setattr("fresco_dist.ray_executor.resources", lambda _: [{"CPU": 2.0, "GPU": 0.0}])
    done = command("plan_only=true", "cluster.executor=ray", "+cluster=8xh100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "workers   8," in done.stdout
    assert _products(folder) == set()


def test_command_plan_only_refuses_bad_input_like_a_run(command):
    assert command("plan_only=true", "video.num_frames=6").returncode == 2


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
        assert _products(sweep / str(index)) == set(PRODUCTS)
        assert _run_json(sweep / str(index))["config"]["fusion"]["prior_strength"] == strength
        digests.add(_digest(sweep / str(index)))
    assert len(digests) == 2


def test_command_sweep_goes_on_after_a_job_that_fails_and_exits_with_its_code(command, tmp_path):
    sweep = tmp_path / "sweep"
    done = command("video.num_frames=6,5", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "video.num_frames must be" in done.stderr
    assert _products(sweep / "0") == set()
    assert _run_json(sweep / "1")["status"] == "done"


def test_command_rerun_replaces_every_product(command, folder):
    assert command("seed=1").returncode == 0
    first = {name: (folder / name).read_bytes() for name in PRODUCTS}
    (folder / "notes.txt").write_text("the user's own")
    assert command("seed=2").returncode == 0
    assert all((folder / name).read_bytes() != data for name, data in first.items())
    assert _products(folder) == set(PRODUCTS)
    assert (folder / "notes.txt").exists()


def test_command_rerun_that_fails_leaves_no_old_product_beside_it(command, folder):
    assert command().returncode == 0
    (folder / ".partial-video.mp4").write_bytes(b"left by a run that was killed")
    with mock.patch.object(Worker, "_predict", side_effect=RuntimeError("out of luck")):
        done = command()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rank 0 failed at predict, step 0") and line.endswith("out of luck")
    assert _products(folder) == {"run.json", "trace.json"}
    run = _run_json(folder)
    assert run["status"] == "failed" and "out of luck" in run["error"]
    assert run["config"]["seed"] == 0 and "latents_sha256" not in run


def test_run_folder_file_appears_only_when_it_is_whole(tmp_path):
    folder, inodes = RunFolder(tmp_path), []

    def write(partial: Path, fail: bool) -> None:
        partial.write_text("half of it")
        inodes.append(partial.stat().st_ino)
        assert not (tmp_path / "video.mp4").exists()
        if fail:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.write("video.mp4", lambda partial: write(partial, fail=True))
    assert list(tmp_path.iterdir()) == []
    folder.write("video.mp4", lambda partial: write(partial, fail=False))
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").stat().st_ino == inodes[-1]  # renamed, not copied


def test_command_defect_shows_its_traceback_and_exits_1(command, folder):
    with mock.patch.object(fresco_dist.run, "make_plan", side_effect=KeyError("a defect")):
        done = command()
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1] == "error: 'a defect'"
    assert _products(folder) == set()


# Bad input

BAD_INPUT = [  # overrides, what the line must say; {tmp} is a folder with the files of `bad_files`
    (["image={tmp}/missing.png"], ["image", "{tmp}/missing.png", "no such file"]),
    (["image={tmp}"], ["image", "Is a directory"]),
    (["image={tmp}/text.png"], ["image", "{tmp}/text.png", "not an image"]),
    (["image={tmp}/truncated.jpg"], ["image", "{tmp}/truncated.jpg", "truncated"]),
    (["image={tmp}/bomb.png"], ["image", "60000 x 60000", "at most"]),
    (["image={tmp}/dot.png"], ["image", "at least 8 px high and wide", "got 3 x 3 px"]),
    (["image="], ["image", "path or null"]),
    (["sed=3"], ["sed: there is no such key", "Did you mean seed?"]),
    (["tiles.overlp=0.3"], ["tiles.overlp", "Did you mean tiles.overlap?"]),
    (["+tiles.overlp=0.3"], ["tiles.overlp", "Did you mean tiles.overlap?"]),
    (["+overlap=0.3"], ["overlap: there is no such key"]),
    (["model=nope"], ["model must be one of", "fresco_tiny", "wan", "got nope"]),
    (["fusion=nope"], ["fusion must be one of", "fresco", "multidiffusion", "regional", "got nope"]),
    (["+cluster=nope"], ["cluster must be one of", "8xh100", "cpu", "got nope"]),
    (["cluster=8xh100"], ["cluster", "+cluster=8xh100"]),
    (
        ["cluster.executor=ray", "+cluster=8xh100"],
        ["cluster.num_workers", "8 workers need 8 GPUs", "0 are there", "gpus_per_worker=0"],
    ),
    (
        ["cluster.executor=ray", "cluster.num_workers=999"],
        ["cluster.num_workers", "999 workers need", "CPUs", "at most"],
    ),
    (["cluster.num_workers=2"], ["cluster.num_workers must be 1 with cluster.executor=inprocess", "got 2"]),
    (["cluster.executor=slurm"], ["cluster.executor", "slurm", "ray, inprocess"]),
    (["tiles.overlap=1.0"], ["tiles.overlap must be in [0, 1)", "got 1.0"]),
    (["fusion.prior_strength=-1"], ["fusion.prior_strength must be in [0, 1e9]", "got -1"]),
    (["fusion.cutoff_active=0.5", "fusion.cutoff_background=0.2"], ["fusion.cutoff_active", "0.2", "got 0.5"]),
    (["fusion.schedule=linear"], ["fusion.schedule", "linear", "constant, cosine"]),
    (["video.num_frames=6"], ["video.num_frames must be 1 plus a multiple of 4", "got 6", "Try 5"]),
    (["seed=abc"], ["seed=abc", "Integer"]),
    (["seed=null"], ["seed=null", "not Optional"]),
    (["tiles.window=[a,b]"], ["tiles.window=[a,b]", "Integer"]),
    (["prompt=water, banners"], ["prompt=water, banners", "quotes"]),
    (["prompt=water (blue"], ["prompt=water (blue", "quotes"]),
    (["fusion=regional"], ["fusion.activity_map must be", "got null"]),
    (["fusion=regional", "fusion.activity_map={tmp}/dot.png"], ["fusion.activity_map", "96 x 48 px", "got 3 x 3 px"]),
    (["fusion=regional", "fusion.activity_map={tmp}/nope.png"], ["fusion.activity_map", "no such file"]),
    (["fusion.activity_map={tmp}/dot.png"], ["fusion.activity_map", "fusion=regional"]),
    (["model.backbone=nope"], ["model.backbone must be one of", "synthetic", "wan", "got nope"]),
    (["model.path={tmp}/missing"], ["model.path must be a directory", "{tmp}/missing"]),
    (["model.path={tmp}/text.png"], ["model.path must be a directory", "{tmp}/text.png"]),
    (["hydra.run.dir={tmp}/text.png/out"], ["hydra.run.dir", "can be written", "{tmp}/text.png/out"]),
    (["hydra.run.dir=/proc/nope"], ["hydra.run.dir", "can be written", "/proc/nope"]),
    (["hydra.run.dir=/proc"], ["hydra.run.dir", "can be written", "/proc"]),
]


@pytest.fixture
def bad_files(tmp_path) -> Path:
    """A folder with files that are no good as pictures."""
    path = tmp_path / "bad"
    path.mkdir()
    (path / "text.png").write_text("not a picture")
    make_picture(64, 64).save(path / "whole.jpg")
    (path / "truncated.jpg").write_bytes((path / "whole.jpg").read_bytes()[:-400])
    make_picture(3, 3).save(path / "dot.png")
    png = (path / "dot.png").read_bytes()
    side = (60000).to_bytes(4, "big")
    header = png[12:16] + side + side + png[24:29]
    (path / "bomb.png").write_bytes(png[:12] + header + crc32(header).to_bytes(4, "big") + png[33:])
    return path


def _assert_refused(done, folder: Path, words: list[str]) -> None:
    """Exit code 2, one line that says `words`, and nothing in the run folder that looks like a result."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert _products(folder) == set()


@pytest.fixture
def no_workers(monkeypatch):
    """Bad input is refused before a model is loaded or Ray is started: either would be a failure of another kind."""
    for name in ("fresco_dist.run._start_workers", "fresco_dist.ray_executor.start_ray"):
        monkeypatch.setattr(name, mock.Mock(side_effect=AssertionError(f"{name} was called")))
    monkeypatch.setattr("fresco_dist.ray_executor.resources", lambda _: [{"CPU": 2.0, "GPU": 0.0}])


@pytest.mark.parametrize("overrides, words", BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_command_bad_input_is_refused_in_one_line(command, folder, bad_files, no_workers, overrides, words):
    done = command(*(override.format(tmp=bad_files) for override in overrides))
    _assert_refused(done, folder, [word.format(tmp=bad_files) for word in words])


def test_command_model_wan_needs_a_path(command, folder, no_workers):
    _assert_refused(command("model=wan", tiny=False), folder, ["model.path must be given"])


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_text("<html>404</html>" * 10),
    "missing": lambda path: path.unlink(),
}
MODEL_FILES = [
    "model_index.json",
    "transformer/config.json",
    f"transformer/{WEIGHTS}",
    "vae/config.json",
    f"vae/{WEIGHTS}",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_command_damaged_model_file_is_refused_by_name(command, folder, model_path, tmp_path, no_workers, name):
    for damage in DAMAGE if name.startswith("transformer") else ("cut in half", "missing"):
        model = tmp_path / damage.replace(" ", "_")
        shutil.copytree(model_path, model)
        DAMAGE[damage](model / name)
        named = name if damage != "missing" or name.endswith("config.json") else Path(name).parent
        _assert_refused(command(f"model.path={model}"), folder, ["model.path", str(model / named)])


@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"])
def test_command_model_json_of_another_shape_is_refused(command, folder, model_path, tmp_path, no_workers, name):
    shutil.copytree(model_path, tmp_path / "model")
    (tmp_path / "model" / name).write_text("[]")
    done = command(f"model.path={tmp_path / 'model'}")
    _assert_refused(done, folder, ["model.path", name, "lacks a JSON object"])


@pytest.mark.parametrize("component", ["transformer", "vae", "scheduler", "tokenizer", "text_encoder"])
def test_command_model_without_a_folder_is_refused(command, folder, model_path, tmp_path, no_workers, component):
    shutil.copytree(model_path, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / component)
    _assert_refused(command(f"model.path={tmp_path / 'model'}"), folder, ["model.path", component])


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["seed=abc"], ["seed=abc", "Integer"]),
        (["+cluster=8xh100"], ["cluster.num_workers", "8 workers need 8 GPUs", "0 are there", "gpus_per_worker=0"]),
    ],
)
def test_command_bad_input_in_a_process_of_its_own(launch, folder, picture_path, monkeypatch, overrides, words):
    """As above, with everything that only a real process shows: warnings of libraries, the exit code."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _assert_refused(launch(f"image={picture_path}", *overrides), folder, words)


# Signals


def test_command_signal_ends_the_run_with_its_code_and_a_failed_run_json(picture_path, tmp_path):
    """SIGINT and SIGTERM in the middle of a run: one line, no video, no process left."""
    cases = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}
    processes = {}
    for number in cases:
        arguments = ["model=synthetic", "model.forward_s=1", "cluster.executor=inprocess", f"image={picture_path}"]
        arguments += ["tiles.window=[32,48]", "sampler.num_steps=50", f"hydra.run.dir={tmp_path / number.name}"]
        processes[number] = subprocess.Popen(
            [sys.executable, "-m", "fresco_dist.launch", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    for number, process in processes.items():
        assert process.stdout is not None
        while not process.stdout.readline().startswith("workers"):
            assert process.poll() is None
        time.sleep(1.0)  # from the plan to the first forwards, which take minutes
        process.send_signal(number)
    for number, process in processes.items():
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == cases[number]
        folder = tmp_path / number.name
        assert _products(folder) == {"run.json", "trace.json"}
        run = _run_json(folder)
        assert run["status"] == "failed" and run["error"]
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


# Progress


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of the progress line."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    return now


def _predict(line: progress.ProgressLine, clock, step: int, seconds: float) -> None:
    clock.s += seconds
    line(TaskRecord(Task("predict", step), 0, clock.s - seconds, clock.s, 0.0))


def test_progress_in_a_log_is_a_line_every_ten_seconds_and_at_the_end(clock):
    out = StringIO()
    with progress.ProgressLine(Console(file=out, width=40), {"predict": progress.Phase("denoise", 8, 2)}) as line:
        for i in range(8):
            _predict(line, clock, i // 4, 4.0)
            if i % 4 == 3:
                line(TaskRecord(Task("commit", i // 4), 0, clock.s, clock.s, 0.0))
    assert out.getvalue().splitlines() == [
        "denoise step 1/2: tiles 3/8, 0.25 tiles/s, 20 s left",
        "denoise step 2/2: tiles 6/8, 0.25 tiles/s, 8 s left",
        "denoise step 2/2: tiles 8/8, 0.25 tiles/s, 0 s left",
    ]


def test_progress_rate_leaves_out_what_came_before_the_first_tile(clock):
    """Loading and the prior take time of their own: they must not make the forecast longer."""
    out = StringIO()
    with progress.ProgressLine(Console(file=out), {"predict": progress.Phase("denoise", 4000, 2)}) as line:
        clock.s = 600.0
        _predict(line, clock, 0, 2.0)
    assert out.getvalue() == "denoise step 1/2: tiles 1/4000, 0.5 tiles/s, 2 h 13 min left\n"


def test_progress_in_a_terminal_is_one_line_redrawn_and_gone_at_the_end(clock):
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with progress.ProgressLine(console, {"predict": progress.Phase("denoise", 2, 1)}) as line:
        assert "waiting for the first tile" in out.getvalue()
        _predict(line, clock, 0, 12.0)
        line._live.refresh()
        assert "denoise step 1/1" in out.getvalue() and "0.083 tiles/s, 12 s left" in out.getvalue()
        _predict(line, clock, 0, 12.0)
    assert "denoise step 1/1:" not in out.getvalue()  # the form of a log
    assert out.getvalue().endswith("\x1b[2K")  # the line is wiped
