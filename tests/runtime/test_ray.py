"""Real Ray actors, real gloo collectives: same bits, and no process left behind."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
from conftest import make_picture
from make_jobs import make_config
from PIL import Image

from fresco_dist.runtime import ray_cluster

DEADLINE_S = 120.0


def descendants(pid: int) -> set[int]:
    """Process ids below `pid`."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(status.parent.name)] = int(fields[1])
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def actors(pid: int) -> list[int]:
    """Worker actors below `pid`."""
    found = []
    for child in descendants(pid):
        try:
            if b"ray::WorkerActor" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, what: str):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail(f"no {what} within {DEADLINE_S} s")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, unipc_model_path):
    """What all runs share, and the digests of the in-process run.

    Two windows and two branches are fewer forwards per step than the most workers below; four VAE tiles are blended
    across workers; the noise scheduler is a multistep one.
    """
    from conftest import TINY_RUN, make_picture

    folder = tmp_path_factory.mktemp("same_bits")
    make_picture(300, 264).save(folder / "picture.png")
    make_picture(75, 66, seed=1).save(folder / "activity.png")
    overrides = [*TINY_RUN, f"image={folder / 'picture.png'}", f"model.path={unipc_model_path}"]
    overrides += ["tiles.window=[264,200]", "sampler.guidance_scale=3"]
    overrides += ["fusion=regional", f"fusion.activity_map={folder / 'activity.png'}"]
    return overrides, run_digests(folder, overrides, "inprocess", 1)


def run_digests(folder: Path, overrides: list[str], executor: str, num_workers: int) -> tuple[str, str]:
    """Of the latents, and of the first, middle and last frame."""
    out = folder / f"{executor}{num_workers}"
    subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch", *overrides, f"hydra.run.dir={out}"]
        + [f"cluster.executor={executor}", f"cluster.num_workers={num_workers}", "cluster.cpus_per_worker=0.2"],
        check=True,
        timeout=DEADLINE_S,
        cwd=folder,
    )
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "done" and run["num_workers"] == num_workers and run["grid"]["num_windows"] == 2
    rows = {event["tid"] // 2 for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert rows == set(range(num_workers))
    return run["latents_sha256"], hashlib.sha256((out / "contact_sheet.png").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("mode", "num_workers"),
    [("allreduce", 2), ("allreduce", 5), ("wavefront", 1), ("wavefront", 3)],
)
def test_result_is_the_same_bits_for_any_number_of_workers(tmp_path, reference, mode, num_workers):
    overrides, digests = reference
    assert run_digests(tmp_path, [*overrides, f"dispatch.mode={mode}"], "ray", num_workers) == digests


def test_bundled_demonstration_runs_as_in_the_readme(tmp_path):
    """No override at all: bundled picture, embedded model, Ray actors, a new folder below outputs/."""
    done = subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch"], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["canvas"]["width"] == 512
    with av.open(str(folder / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in video.decode(video=0)]
    given = np.asarray(Image.open(files("fresco_dist") / "assets" / "fresco.png").convert("RGB"))
    assert np.abs(frames[0] - given).mean() < 10  # an animation of this picture, not noise
    assert 0.1 < np.abs(frames[-1] - given).mean() < 25


LONG = ("model=synthetic", "tiles.window=[32,32]", "video.num_frames=5", "sampler.num_steps=10", "fusion.cutoff=0.2")


@pytest.fixture(scope="module")
def long_digest(tmp_path_factory) -> str:
    """Of the latents of `start_run`, by one process."""
    folder = tmp_path_factory.mktemp("long")
    make_picture(96, 48).save(folder / "picture.png")
    arguments = [*LONG, "model.forward_s=0", "cluster.executor=inprocess", "image=picture.png", "hydra.run.dir=out"]
    subprocess.run([sys.executable, "-m", "fresco_dist.launch", *arguments], check=True, cwd=folder, timeout=DEADLINE_S)
    return json.loads((folder / "out" / "run.json").read_text())["latents_sha256"]


@pytest.fixture
def start_run(tmp_path, picture_path):
    """Starts a run of four workers that takes a while, and returns it past its first predictions."""
    running = []

    def start(*overrides: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "fresco_dist.launch", *LONG, f"image={picture_path}", "model.forward_s=0.4"]
            + ["cluster.num_workers=4", "cluster.cpus_per_worker=0.2", f"hydra.run.dir={tmp_path / 'out'}"]
            + ["cluster.timeout_s=15", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,  # signals go to the whole group, as a terminal sends them
        )
        running.append(process)
        wait_until(lambda: len(actors(process.pid)) == 4, "four actors")
        assert any("denoise" in line for line in process.stdout)  # reads until then
        return process

    yield start
    for process in running:
        processes = {process.pid} | descendants(process.pid)
        process.kill()
        process.wait()
        for pid in filter(is_alive, processes):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("mode", "signal_number", "reason"),
    [
        ("allreduce", signal.SIGKILL, r"rank \d died"),
        ("wavefront", signal.SIGKILL, r"rank \d died"),
        ("allreduce", signal.SIGSTOP, r"rank \d did not answer within cluster.timeout_s=15 s \(it was at "),
    ],
)
def test_run_goes_on_without_a_lost_worker(tmp_path, start_run, long_digest, mode, signal_number, reason):
    process = start_run(f"dispatch.mode={mode}")
    os.kill(actors(process.pid)[0], signal_number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "done"
    assert len(run["survived"]) == 1, run["survived"]
    (survived,) = run["survived"]
    assert re.match(reason, survived) and f"warning   {survived}" in stdout
    names = [event["name"] for event in json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]]
    predictions = [name for name in names if name.startswith("predict")]
    num_windows = run["grid"]["num_windows"]
    assert len(set(predictions)) == 10 * num_windows
    lost = 0 if mode == "wavefront" else num_windows  # finished predictions that went with the worker: of one step
    assert len(predictions) - len(set(predictions)) <= lost
    assert run["latents_sha256"] == long_digest


@pytest.mark.parametrize(
    ("interrupt", "code", "message"),
    [
        pytest.param(
            lambda run: [os.kill(pid, signal.SIGKILL) for pid in actors(run.pid)],
            1,
            r"rank \d died",
            id="killed workers",
        ),
        pytest.param(lambda run: os.killpg(run.pid, signal.SIGINT), 130, "interrupted", id="SIGINT"),
        pytest.param(lambda run: run.send_signal(signal.SIGTERM), 143, "terminated", id="SIGTERM"),
    ],
)
def test_run_ends_at_once_and_leaves_nothing(tmp_path, start_run, interrupt, code, message):
    process = start_run("sampler.num_steps=500", "fusion=multidiffusion")
    processes = descendants(process.pid)
    interrupt(process)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert re.search(message, stderr.strip().split("\n")[-1])
    if code == 1:
        assert "step " in stderr.strip().split("\n")[-1]
    wait_until(lambda: not any(map(is_alive, processes)), "end of all processes")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == ("failed" if code == 1 else "interrupted") and run["error"]
    assert not (tmp_path / "out" / "video.mp4").exists()


def test_ray_of_a_run_refuses_who_has_not_its_token(start_run):
    run = start_run("sampler.num_steps=500", "fusion=multidiffusion")
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(run.pid)]
    address = next(found[1] for command in commands if (found := re.search(r"--gcs-address=([\d.:]+)", command)))
    done = subprocess.run(
        [sys.executable, "-c", "import ray, sys; ray.init(address=sys.argv[1]); print(ray.nodes())", address],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode != 0 and "Auth" in done.stderr


def test_cluster_address_where_nothing_listens_is_bad_input(launch, picture_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where no token lies
    done = launch(f"image={picture_path}", "cluster.address=127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cluster.address: cannot join Ray at 127.0.0.1:9")


def test_disk_full_where_ray_starts_is_not_blamed_on_the_address(monkeypatch):
    monkeypatch.setattr(ray_cluster.ray, "init", mock.Mock(side_effect=OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        ray_cluster.start_ray(make_config().cluster)


def test_run_survives_a_loss_during_the_recovery_from_another():
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("unlucky_run.py")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    first, second = (line for line in done.stdout.splitlines() if line.startswith("lost"))
    assert first.startswith("lost 1: rank 1 died")
    assert second == "lost 2: rank 2 was lost while a new process group was formed"
