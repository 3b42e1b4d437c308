"""SIGUSR1: the run stops at a task boundary, says so in run.json, keeps what is committed, and exits with 75."""

import json
import os
import signal
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
    """Send a signal to this process at the start of a method."""

    def ask(owner: type, name: str, number: signal.Signals = signal.SIGUSR1) -> None:
        method = getattr(owner, name)

        def asking(self, *arguments, **inputs):
            os.kill(os.getpid(), number)
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
    goes_on = f"stored    the same command with hydra.run.dir={folder} goes on\n"
    assert goes_on in done.stdout


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
    assert done.returncode == 75 and f"the same command with hydra.sweep.dir={sweep} goes on" in done.stdout
    for point in ("0", "1"):  # they run together
        assert products_of(sweep / point) == {"run.json", "trace.json", "timeline.png"}
        assert json.loads((sweep / point / "run.json").read_text())["status"] == "interrupted"


def test_sighup_is_not_heard_under_nohup(command, ask_when):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ask_when(Worker, "_begin", signal.SIGHUP)
        assert command().returncode == 0
    finally:
        signal.signal(signal.SIGHUP, handler)
