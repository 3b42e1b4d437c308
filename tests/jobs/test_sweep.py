"""Sweeps as typed: points run together, share what is equal, and are worth their single runs."""

import csv
import json
import shutil
import time
from pathlib import Path
from unittest import mock

import pytest
from conftest import make_picture
from PIL import Image
from safetensors.numpy import load_file, save_file

from fresco_dist.jobs import planning, pool_run
from fresco_dist.jobs.folder import PRODUCTS
from fresco_dist.jobs.job import Clip, JobRun
from fresco_dist.media import video
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.worker import Worker
from fresco_dist.training import pictures

POINTS = ("fusion.prior_strength=0,1,4", "fusion.cutoff=0,0.5")


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def sweep(tmp_path) -> Path:
    return tmp_path / "sweep"


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
def test_sweep_points_have_the_bits_of_single_runs(command, folder, sweep, mode):
    """Strength 0 is one video for both cutoffs; the prior and the predictions of the first step are made once."""
    done = command(f"dispatch.mode={mode}", *POINTS, f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    # 6 windows, 3 steps, a prior of 3. Canvases differ in 1, then 3 (strengths), then 5 (cutoffs) ways.
    forwards = 3 + (1 + 3 + 5) * 6
    assert f"sweep     6 points, 5 of them different: {forwards} forwards instead of 120" in done.stdout
    points = sorted(path for path in sweep.iterdir() if path.name.isdigit())
    assert all({path.name for path in point.iterdir()} >= set(PRODUCTS) for point in points)
    traces = [json.loads((point / "trace.json").read_text())["traceEvents"] for point in points]
    predictions = [event for trace in traces for event in trace if event.get("cat") == "predict"]
    tasks = {(event["name"], event["args"]["key"]) for event in predictions}
    assert len(tasks) == forwards
    for number in (1, 4):
        run = run_json(sweep / str(number))
        fusion = run["config"]["fusion"]
        overrides = [f"fusion.{key}={fusion[key]}" for key in ("prior_strength", "cutoff")]
        assert command(f"dispatch.mode={mode}", *overrides).returncode == 0
        assert run_json(folder)["latents_sha256"] == run["latents_sha256"]
    assert (sweep / "report" / "table.md").exists()


def test_sweep_point_that_fails_does_not_stop_the_others_and_a_rerun_does_what_is_missing(command, sweep):
    arguments = ("fusion.cutoff=0,7", "seed=0,1", f"hydra.sweep.dir={sweep}")
    done = command(*arguments, flags=("-m",))
    assert done.returncode == 2 and done.stderr.count("error: fusion.cutoff must be in [0, 1]") == 2
    assert [run_json(sweep / point)["status"] for point in ("0", "1")] == ["done", "done"]
    assert not (sweep / "2" / "run.json").exists()
    (sweep / "1" / "video.mp4").unlink()
    before = (sweep / "0" / "run.json").stat().st_mtime_ns
    done = command(*arguments, flags=("-m",))
    assert f"done      {sweep / '0'}: already" in done.stdout and "sweep  " not in done.stdout
    assert (sweep / "0" / "run.json").stat().st_mtime_ns == before and (sweep / "1" / "video.mp4").exists()


def test_sweep_over_pictures_of_any_size_has_the_bits_of_single_runs(command, folder, sweep, tmp_path):
    sizes = {"wide": (96, 48), "high": (48, 64)}
    for name, size in sizes.items():
        make_picture(*size, seed=len(name)).save(tmp_path / f"{name}.png")
    images = [f"image={tmp_path / name}.png" for name in sizes]
    both = f"image={','.join(image.removeprefix('image=') for image in images)}"
    done = command(both, "fusion.prior_strength=0,4", "metrics=true", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert "sweep     4 points, 4 of them different" in done.stdout
    for number, image in ((1, images[0]), (3, images[1])):
        run = run_json(sweep / str(number))
        assert command(image, "fusion.prior_strength=4").returncode == 0
        assert run_json(folder)["latents_sha256"] == run["latents_sha256"]
        assert [run["canvas"]["width"], run["canvas"]["height"]] == list(sizes[Path(run["config"]["image"]).stem])
    with (sweep / "report" / "means.csv").open() as file:
        means = list(csv.DictReader(file))
    assert [(row["fusion.prior_strength"], row["runs"]) for row in means] == [("0.0", "2"), ("4.0", "2")]


def test_sweep_chooses_picture_prompt_and_activity_map_together(launch, sweep, tmp_path):
    pictures.main(["--out", str(tmp_path / "pictures"), "--num-pictures", "2", "--size", "96", "64"])
    arguments = ("+picture=glob(*)", "fusion=fresco,regional", "metrics=true", "cluster.executor=inprocess")
    done = launch(*arguments, f"hydra.sweep.dir={sweep}", "-m", "--config-dir", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    runs = [run_json(sweep / str(number)) for number in range(4)]
    for run, name, method in zip(runs, ("00", "00", "01", "01"), ("fresco", "regional") * 2, strict=True):
        config, path = run["config"], tmp_path / "pictures" / name
        assert (config["image"], config["fusion"]["activity_map"]) == (f"{path}.png", f"{path}_activity.png")
        assert config["prompt"] == path.with_suffix(".txt").read_text().strip()
        assert config["fusion"]["method"] == method
        assert run["metrics"].keys() >= {"prior_distance_active", "prior_distance_background"}
    assert len({run["config"]["prompt"] for run in runs}) == 2
    with Image.open(tmp_path / "pictures" / "00_activity.png") as activity:
        assert activity.size == (96, 64) and activity.getextrema() == (0, 255)


def test_sweep_points_hold_a_picture_once_and_few_clips_at_a_time(command, sweep, monkeypatch):
    jobs, clips, held = [], set(), []
    give, take, write = InProcessExecutor.give, Clip.take, JobRun.write

    def note_jobs(executor, given, stored):
        jobs.extend(given)
        return give(executor, given, stored)

    def note_clips(clip, index, block):
        take(clip, index, block)
        clips.add(clip)
        held.append(len(clips))

    def write_slowly(run, *arguments):
        time.sleep(0.5)
        clips.discard(run.clips[run.job.plan.top])
        write(run, *arguments)

    monkeypatch.setattr(video, "write_video", lambda path, frames, *_: path.write_bytes(frames.tobytes()))
    monkeypatch.setattr(InProcessExecutor, "give", note_jobs)
    monkeypatch.setattr(pool_run, "MAX_UNWRITTEN", 1)
    monkeypatch.setattr(Clip, "take", note_clips)
    monkeypatch.setattr(JobRun, "write", write_slowly)
    same = "fusion.cutoff=0,0.1"  # of three steps: the first alone, so that two points share a clip
    done = command("fusion.prior_strength=0,1,4", same, "seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert [len({id(picture) for picture in level}) for level in zip(*(job.pictures for job in jobs))] == [1, 1]
    assert max(held) <= 3  # the one that is decoded, and the one that two points wait to write
    assert [run_json(sweep / str(number))["config"]["seed"] for number in range(4)] == [0, 1, 0, 1]
    assert run_json(sweep / "11")["latents_sha256"] == run_json(sweep / "9")["latents_sha256"]
    assert (sweep / "11" / "video.mp4").read_bytes() == (sweep / "9" / "video.mp4").read_bytes()


def test_sweep_plan_tells_what_is_shared_and_runs_nothing(command, sweep):
    done = command(*POINTS, "plan_only=true", f"hydra.sweep.dir={sweep}", "dispatch.mode=wavefront", flags=("-m",))
    assert done.returncode == 0 and "sweep     6 points, 5 of them different" in done.stdout
    assert done.stdout.count("canvas    ") == 2  # without a prior and with one; what reads the same is told once
    assert not list(sweep.glob("*/run.json")) and not (sweep / "report").exists()


def test_sweep_point_that_the_workers_refuse_does_not_stop_the_others(command, sweep):
    """They are of other models, so run one after the other, and only a worker sees that a kernel cannot run."""
    done = command("model.attention=flash,native", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [done.stderr.splitlines()[-1]]
    assert "model.attention=flash cannot run here" in done.stderr
    assert [run_json(sweep / point)["status"] for point in ("0", "1")] == ["failed", "done"]
    assert (sweep / "report" / "table.md").exists()


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def remove_tensor(model: Path) -> None:
    """Only loading tells."""
    tensors = load_file(model / WEIGHTS)
    del tensors[min(tensors)]
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def misname_dtype(model: Path) -> None:
    """The lengths are right, and no library knows how to read it."""
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data.replace(b'"F32"', b'"F99"'))


def cut_weights(model: Path) -> None:
    """Planning tells."""
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])


def spoil_tokenizer(model: Path) -> None:
    """JSON, as planning wants it; the library that reads it raises KeyError."""
    (model / "tokenizer" / "tokenizer.json").write_text('{"model": 3}')


def assert_good_point_is_done(done, sweep: Path, good: str) -> None:
    """The bad one is told in one line; the other one and the report are there."""
    bad = "1" if good == "0" else "0"
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: model.path: {sweep.parent / 'bad'}")
    assert run_json(sweep / good)["status"] == "done"
    assert not (sweep / bad / "run.json").exists() or run_json(sweep / bad)["status"] == "failed"
    assert (sweep / "report" / "table.md").exists()


@pytest.mark.parametrize("good", ["0", "1"])
@pytest.mark.parametrize("spoil", [remove_tensor, misname_dtype, cut_weights, spoil_tokenizer])
def test_sweep_point_whose_model_does_not_load_costs_itself_alone(command, sweep, tmp_path, model_path, spoil, good):
    bad = shutil.copytree(model_path, tmp_path / "bad")
    spoil(bad)
    models = [model_path, bad] if good == "0" else [bad, model_path]
    done = command(f"model.path={models[0]},{models[1]}", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert_good_point_is_done(done, sweep, good)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("good", ["0", "1"])
def test_sweep_point_whose_model_does_not_load_on_ray(ray_command, sweep, tmp_path, model_path, good):
    bad = shutil.copytree(model_path, tmp_path / "bad")
    spoil_tokenizer(bad)
    models = [model_path, bad] if good == "0" else [bad, model_path]
    overrides = (f"model.path={models[0]},{models[1]}", f"hydra.sweep.dir={sweep}", "cluster.num_workers=2")
    assert_good_point_is_done(ray_command(*overrides, flags=("-m",)), sweep, good)


@pytest.mark.parametrize("names", ["good,bad", "bad,good"])
def test_sweep_point_whose_picture_cannot_be_read_costs_itself_alone(command, sweep, tmp_path, names):
    make_picture(96, 48).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("not a picture")
    images = ",".join(f"{tmp_path / name}.png" for name in names.split(","))
    done = command(f"image={images}", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 2 and f"image: {tmp_path / 'bad.png'} is not an image" in done.stderr
    assert [path.parent.name for path in sweep.glob("*/video.mp4")] == [str(names.split(",").index("good"))]
    assert (sweep / "report" / "table.md").exists()


def test_sweep_point_that_meets_a_defect_costs_itself_alone(command, sweep):
    """Of four points with two models, the plan of one stumbles, and the worker of two."""
    choose, load = planning.choose_grid, Worker._load

    def choose_badly(config, *arguments, **options):
        if config.seed == 1 and config.model.attention.value == "auto":
            raise KeyError("a defect of planning")
        return choose(config, *arguments, **options)

    def load_badly(worker, task):
        if worker._jobs[""].config.model.attention.value == "native":
            raise KeyError("a defect of loading")
        return load(worker, task)

    points = ("model.attention=native,auto", "seed=0,1")
    with mock.patch.object(planning, "choose_grid", choose_badly), mock.patch.object(Worker, "_load", load_badly):
        done = command(*points, f"hydra.sweep.dir={sweep}", flags=("-m",))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, errors) == (1, ["error: 'a defect of loading'"] * 2 + ["error: 'a defect of planning'"])
    assert [run_json(sweep / point)["status"] for point in "012"] == ["failed", "failed", "done"]
    assert (sweep / "report" / "table.md").exists()


def test_sweep_points_that_are_done_stay_done_when_the_workers_meet_a_defect(command, sweep):
    decode = Worker._decode

    def decode_badly(worker, task, **inputs):
        if worker._jobs[task.of].config.seed == 1:
            raise KeyError("a defect")
        return decode(worker, task, **inputs)

    with mock.patch.object(Worker, "_decode", decode_badly):
        done = command("seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 1 and done.stderr.count("error: 'a defect'") == 1
    assert [run_json(sweep / point)["status"] for point in "01"] == ["done", "failed"]
    assert (sweep / "report" / "table.md").exists()


def test_sweep_points_with_another_model_run_after_a_defect_at_the_start(command, sweep):
    with mock.patch("fresco_dist.jobs.run.gpu_memory_gb", side_effect=[KeyError("a defect"), None]):
        done = command("model.attention=native,auto", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 1 and done.stderr.count("error: 'a defect'") == 1
    assert not (sweep / "0" / "run.json").exists() and run_json(sweep / "1")["status"] == "done"
