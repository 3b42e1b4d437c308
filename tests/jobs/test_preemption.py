"""SIGUSR1: the run stops at a task boundary, says so in run.json, keeps what is committed, and exits with 75."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256

import pytest
from conftest import products_of
from safetensors.numpy import load_file

from fresco_dist import launch
from fresco_dist.models.wan.vae import TiledVae
from fresco_dist.runtime.worker import Worker


@pytest.fixture
def signalled():
    """Whatever happens, the next test finds no request."""
    handler = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, handler)
    launch._asked_to_stop.clear()


@pytest.fixture
def ask_when(monkeypatch, signalled):
    """Send SIGUSR1 to this process at the start of a method; the names of the tasks that finish are recorded."""

    def ask(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def asking(self, *arguments, **inputs):
            os.kill(os.getpid(), signal.SIGUSR1)
            return method(self, *arguments, **inputs)

        monkeypatch.setattr(owner, name, asking)

    return ask


def test_sigusr1_lets_the_task_finish_and_starts_no_other(command, folder, ask_when):
    ask_when(Worker, "_begin")
    done = command()
    assert (done.returncode, done.stderr) == (75, "stopped at a task boundary, as asked by SIGUSR1\n")
    assert products_of(folder) == {"run.json", "trace.json", "timeline.png"}
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "interrupted" and "SIGUSR1" in run["error"] and "latents_sha256" not in run
    names = [event["name"] for event in json.loads((folder / "trace.json").read_text())["traceEvents"]]
    assert names[-1] == "begin, level 0"


def test_sigusr1_while_decoding_keeps_the_latents(command, folder, ask_when):
    ask_when(TiledVae, "decode_tile")
    assert command("dispatch.mode=allreduce").returncode == 75  # a wavefront may decode before the last cell is there
    assert products_of(folder) == {"latents.safetensors", "run.json", "trace.json", "timeline.png"}
    run = json.loads((folder / "run.json").read_text())
    latents = load_file(folder / "latents.safetensors")["latents"]
    assert run["status"] == "interrupted" and run["latents_sha256"] == sha256(latents.tobytes()).hexdigest()


def test_sigusr1_stops_all_points_of_a_sweep(command, tmp_path, ask_when):
    ask_when(Worker, "_begin")
    sweep = tmp_path / "sweep"
    done = command("fusion.prior_strength=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 75
    for point in ("0", "1"):  # they run together
        assert products_of(sweep / point) == {"run.json", "trace.json", "timeline.png"}
        assert json.loads((sweep / point / "run.json").read_text())["status"] == "interrupted"


def test_sigusr1_stops_a_run_on_ray_and_leaves_no_process(picture_path, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fresco_dist.launch", f"image={picture_path}", "model=synthetic", "tiles.window=[32,32]"]
        + ["model.forward_s=0.5", "sampler.num_steps=50", "video.num_frames=5", f"hydra.run.dir={tmp_path / 'out'}"]
        + ["cluster.num_workers=2", "cluster.cpus_per_worker=0.2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("encode:") for line in process.stdout)  # reads until then
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1:]) == (75, ["stopped at a task boundary, as asked by SIGUSR1"])
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):  # once the last one is gone
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
