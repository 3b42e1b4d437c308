"""The scripts of launch/slurm as a user types them, on a SLURM that is not there: fakes on PATH log what they are told.

The last test, a slow one, runs them on a real Ray: `srun` puts each task into a network namespace of its own.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from conftest import TINY_RUN, run_json
from faults import long_digest  # noqa: F401 (a fixture)
from processes import DEADLINE_S, descendants, is_alive, wait_until
from test_clusters import digest, end, environment, overrides, reference, run_of  # noqa: F401 (fixtures)

REPOSITORY = Path(__file__).parents[2]
FAKE = Path(__file__).parent / "fake_slurm.sh"
GOLDEN = Path(__file__).parent / "golden"
JOB = f"{os.getpid()}42"  # a folder in /tmp is named after it; in what is compared it is 4242
WAIT_FOR_NODES = REPOSITORY / "launch" / "slurm" / "wait_for_nodes.py"
SCRIPTS = sorted((REPOSITORY / "launch" / "slurm").glob("*.s*"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fakes on PATH; `submit(*words)` types `sbatch launch/slurm/WORDS` in the repository, `log()` is what they saw."""
    binaries, spool = tmp_path / "bin", tmp_path / "spool"
    binaries.mkdir(), spool.mkdir(), (tmp_path / "home").mkdir()
    for name in ("sbatch", "srun", "scontrol", "ray", "python"):
        (binaries / name).symlink_to(FAKE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM"))}
    environment |= {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "FAKE_LOG": str(tmp_path / "log"),
        "FAKE_SPOOL": str(spool),
        "FAKE_JOB": JOB,
        "FAKE_RUN": "0",
        "FRESCO_DIST_HEAD_IP": "10.0.0.1",
        "RAY_AUTH_TOKEN": "of another cluster",
    }

    def submit(*words: str, **settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["sbatch", f"launch/slurm/{words[0]}", *words[1:]],
            cwd=REPOSITORY,
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def log() -> list[str]:
        lines = (tmp_path / "log").read_text().splitlines()
        return [line.replace(str(REPOSITORY), "REPOSITORY").replace(JOB, "4242") for line in lines]

    return SimpleNamespace(submit=submit, log=log, folder=tmp_path, binaries=binaries)


def _finish(job: subprocess.Popen) -> tuple[int, str]:
    """Exit status and the lines on stderr; no file of the job is left."""
    _, errors = job.communicate(timeout=DEADLINE_S)
    assert not Path(f"/tmp/fd-{JOB}").exists()
    return job.returncode, errors.replace(JOB, "4242")


def _send_when_running(slurm, job: subprocess.Popen, number: signal.Signals) -> None:
    wait_until(lambda: job.poll() is not None or (slurm.folder / "spool" / "waiting").exists(), "run")
    assert job.poll() is None
    job.send_signal(number)


@pytest.mark.parametrize(
    "script, words",
    [
        ("one_node", ["+cluster=8xh100", "image=mural.jpg", 'prompt="water, banners"']),
        ("several_nodes", ["+cluster=2x8xh100", "image=mural.jpg"]),
        ("sweep", ["fusion.prior_strength=0,1,4", "metrics=true"]),
        ("evaluate", ["dataset=pictures", "compare=table2"]),
    ],
)
def test_slurm_script_runs_these_commands(slurm, script, words):
    assert _finish(slurm.submit(f"{script}.sbatch", *words)) == (0, "")
    said = "\n".join(sorted(slurm.log())) + "\n"
    assert said == (GOLDEN / f"slurm_{script}.txt").read_text()
    assert list((slurm.folder / "home").rglob("token*")) == []


@pytest.mark.parametrize("script", ["one_node", "several_nodes", "sweep"])
@pytest.mark.parametrize("status", [1, 2, 143])
def test_slurm_exit_status_of_the_job_is_that_of_the_run(slurm, script, status):
    assert _finish(slurm.submit(f"{script}.sbatch", FAKE_RUN=str(status)))[0] == status
    assert not any(line.startswith("scontrol") for line in slurm.log())


@pytest.mark.parametrize("script", ["one_node", "several_nodes"])
def test_slurm_signal_reaches_the_run_and_the_job_is_requeued(slurm, script):
    job = slurm.submit(f"{script}.sbatch", FAKE_RUN="wait")
    _send_when_running(slurm, job, signal.SIGUSR1)
    status, errors = _finish(job)
    assert status == 75 and errors.splitlines() == ["interrupted; requeued, restart 1 of 3"]
    said = slurm.log()
    assert said.index("run ended") < said.index("scontrol requeue 4242")
    assert said[: said.index("scontrol requeue 4242")].count("ray stopped") == (2 if script == "several_nodes" else 0)


def test_slurm_job_that_is_requeued_goes_on_where_it_was(slurm, command, folder, picture_path, tmp_path):
    """With a model whose forwards wait, so that the signal comes in mid-run; bits are those of a run in one go."""
    run = ["model=synthetic", "cluster.executor=inprocess", f"image={picture_path}", *TINY_RUN, "model.forward_s=0"]
    typed = [*run, f"hydra.run.dir={tmp_path / 'job'}"]
    settings = {"FAKE_RUN": "real", "FAKE_PYTHON": sys.executable}
    job = slurm.submit("one_node.sbatch", *typed, "model.forward_s=1", **settings)
    stored = "store/*/canvas-*"
    wait_until(lambda: job.poll() is not None or any((tmp_path / "job").glob(stored)), "canvas in the store")
    assert job.poll() is None, job.communicate()
    job.send_signal(signal.SIGUSR1)
    status, errors = _finish(job)
    assert status == 75 and errors.splitlines()[-1] == "interrupted; requeued, restart 1 of 3"
    again = slurm.submit("one_node.sbatch", *typed, **settings)
    said, errors = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0, errors
    assert re.search(r"stored    .*step \d of 3: \d+ of 21 forwards left", said), said
    assert command(*run).returncode == 0
    found, whole = (json.loads((path / "run.json").read_text()) for path in (tmp_path / "job", folder))
    assert [start["forwards_left"] for start in found["starts"]][0] == 21 > found["starts"][1]["forwards_left"]
    assert found["latents_sha256"] == whole["latents_sha256"]


def test_slurm_sigterm_reaches_the_run_and_nothing_is_requeued(slurm):
    job = slurm.submit("one_node.sbatch", FAKE_RUN="wait")
    _send_when_running(slurm, job, signal.SIGTERM)
    assert _finish(job)[0] == 143
    assert not any(line.startswith("scontrol") for line in slurm.log())


def test_slurm_signal_before_the_run_can_take_it_is_an_interruption(slurm):
    assert _finish(slurm.submit("one_node.sbatch", FAKE_RUN="138"))[0] == 75
    assert "scontrol requeue 4242" in slurm.log()
    (slurm.folder / "log").unlink()
    assert _finish(slurm.submit("several_nodes.sbatch", FAKE_WAIT_STATUS="138"))[0] == 75  # while Ray comes up
    assert "scontrol requeue 4242" in slurm.log() and not any("fresco_dist.launch" in line for line in slurm.log())


@pytest.mark.parametrize("settings", [{"SLURM_RESTART_COUNT": "3"}, {"FAKE_SCONTROL": "1"}])
def test_slurm_job_that_is_not_requeued_says_how(slurm, settings):
    status, errors = _finish(slurm.submit("one_node.sbatch", FAKE_RUN="75", **settings))
    assert status == 75
    restarts = settings.get("SLURM_RESTART_COUNT", "0")
    assert errors == (
        f"interrupted and not requeued (restart {restarts} of 3); to run it again: scontrol requeue 4242\n"
    )


def test_slurm_ray_that_does_not_come_up_ends_the_job(slurm):
    assert _finish(slurm.submit("several_nodes.sbatch", FAKE_WAIT_STATUS="1"))[0] == 1
    assert not any("fresco_dist.launch" in line for line in slurm.log())
    assert slurm.log().count("ray stopped") == 2


def test_slurm_head_needs_an_address_that_other_nodes_reach(slurm):
    status, errors = _finish(slurm.submit("several_nodes.sbatch", FRESCO_DIST_HEAD_IP="127.0.0.1"))
    assert status == 2
    assert errors.startswith("error: FRESCO_DIST_HEAD_IP must be the address of this node") and "127.0.0.1" in errors


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("path", [*SCRIPTS, FAKE], ids=lambda path: path.name)
def test_slurm_script_passes_shellcheck(path):
    done = subprocess.run(["shellcheck", "-x", path], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _namespaces_work() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    return subprocess.run(["ip", "netns", "list"], capture_output=True).returncode == 0


@pytest.fixture
def namespaces() -> Iterator[dict[str, str]]:
    """Two network namespaces joined by a virtual cable: name of each, and its address."""
    if not _namespaces_work():
        pytest.skip("needs root and `ip netns`")
    mark = f"{os.getpid() % 10000:04d}"
    names = {f"fd{mark}a": "10.213.77.1", f"fd{mark}b": "10.213.77.2"}
    cables = [f"fdv{mark}a", f"fdv{mark}b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for (name, address), cable in zip(names.items(), cables):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_slurm_several_nodes_give_the_bits_of_one_process(slurm, namespaces, overrides, reference):  # noqa: F811
    """Real Ray on two nodes that only a virtual cable joins, brought up and taken down by the script."""
    head, _ = namespaces
    commands = {  # instead of the fakes
        "ray": f"{sys.executable} -m ray.scripts.scripts",
        "python": sys.executable,
        "sbatch": f"ip netns exec {head} {slurm.folder / 'sbatch'}",
    }
    (slurm.folder / "sbatch").symlink_to(FAKE)
    for name, words in commands.items():
        (slurm.binaries / name).unlink()
        (slurm.binaries / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (slurm.binaries / name).chmod(0o755)
    settings = {"FAKE_NAMESPACES": " ".join(namespaces), "FRESCO_DIST_HEAD_IP": namespaces[head]}
    settings |= {"FAKE_CPUS": "1", "FAKE_GPUS": ""}
    out = slurm.folder / "out"
    job = slurm.submit("several_nodes.sbatch", *overrides, f"hydra.run.dir={out}", **settings)
    below: set[int] = set()
    deadline = time.monotonic() + 200
    try:
        while job.poll() is None and time.monotonic() < deadline:
            below |= descendants(job.pid)
            time.sleep(0.5)
        status, errors = _finish(job)
        assert status == 0, errors
        assert digest(slurm.folder, 2) == reference
        assert not any(map(is_alive, below))
    finally:
        for pid in filter(is_alive, below):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_goes_on_with_equal_bits_when_the_cable_to_a_node_is_cut(tmp_path, namespaces, long_digest):  # noqa: F811
    """The worker there lives and cannot be reached."""
    token = secrets.token_hex(32)
    settings = environment(token) | {
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
    }
    (head, address), (node, other) = namespaces.items()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    start = {
        head: [f"--node-ip-address={address}", "--head", "--port=6379", "--include-dashboard=false"],
        node: [f"--node-ip-address={other}", f"--address={address}:6379"],
    }
    nodes = []
    with TemporaryDirectory(prefix="fd-", dir="/tmp") as folder, (tmp_path / "log").open("w") as log:  # a short path
        settings["RAY_TMPDIR"] = folder
        try:
            wait = ["ip", "netns", "exec", head, sys.executable, WAIT_FOR_NODES, f"{address}:6379"]
            for name, options in start.items():
                words = ["ip", "netns", "exec", name, *ray, *options]
                nodes.append(subprocess.Popen(words, env=settings, stdout=log, stderr=log))
                subprocess.run([*wait, str(len(nodes))], env=settings, check=True, timeout=DEADLINE_S)
            with run_of(tmp_path, token, f"{address}:6379", prefix=["ip", "netns", "exec", head]) as run:
                cable = f"fdv{node[2:]}"
                subprocess.run(["ip", "-n", node, "link", "set", cable, "down"], check=True)
                out, errors = run.communicate(timeout=200)
        finally:
            for process in nodes:
                end(process)
    assert run.returncode == 0, errors
    facts = run_json(tmp_path / "out")
    assert facts["latents_sha256"] == long_digest
    assert any("rank 1" in line for line in facts["survived"]), out
