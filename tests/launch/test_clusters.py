"""The embedded model on a Ray cluster that is joined: the same bits as in one process, and no cluster without a token.

The nodes of Ray's own `Cluster` share an address; test_slurm.py has a network namespace per node.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

import pytest
import ray
from conftest import WARM_TOKEN, make_picture, run_here, run_json
from faults import LONG, long_digest  # noqa: F401 (a fixture)
from PIL import Image
from processes import descendants

TIMEOUT_S = 150.0
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(1, int(sys.argv[1])):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:  # until the test ends it
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
"""


def environment(token: str | None) -> dict[str, str]:
    """This process's, with Ray's authentication by `token`; None turns it off."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled" if token is None else "token"}
    return clean if token is None else clean | {"RAY_AUTH_TOKEN": token}


@contextmanager
def cluster_of(num_nodes: int, token: str | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster of nodes with a CPU each, and what has it lose one that is not its head."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(num_nodes)],
        env=environment(token),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr

    def lose() -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        yield address, lose
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill `process` and all below it."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def run_command(folder: Path, token: str | None, *overrides: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, with `token` in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch", *overrides, f"hydra.run.dir={folder / 'out'}"],
        env=environment(token),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def refusal(folder: Path, token: str | None, *overrides: str) -> str:
    """The line of a command that is refused."""
    done = run_command(folder, token, *overrides)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def digest(folder: Path, num_workers: int) -> str:
    """Of the latents of a run that is done; `num_workers` took part."""
    run = json.loads((folder / "out" / "run.json").read_text())
    rows = {event["tid"] // 2 for event in json.loads((folder / "out" / "trace.json").read_text())["traceEvents"]}
    assert run["status"] == "done" and rows == set(range(num_workers))
    return run["latents_sha256"]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    """Four windows of the embedded model on a part of its picture, in two steps."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.open(str(files("fresco_dist") / "assets" / "fresco.png")).crop((0, 0, 144, 96)).save(path)
    return [f"image={path}", "prompt='the figures walk to the left.'", "sampler.num_steps=2", "fusion.cutoff=1"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, overrides) -> str:
    """The digest of the run in one process."""
    folder = tmp_path_factory.mktemp("reference")
    assert run_here([*overrides, "cluster.executor=inprocess", f"hydra.run.dir={folder / 'out'}"]) == 0
    return digest(folder, 1)


def test_cluster_is_joined_by_who_has_its_token_and_left_as_it_was(tmp_path, warm_pool, overrides, reference):
    warm_pool.stop_workers()
    address = f"cluster.address={ray.get_runtime_context().gcs_address}"
    few = "cluster.cpus_per_worker=0.2"
    done = run_command(tmp_path, WARM_TOKEN, *overrides, address, few, "cluster.num_workers=1")
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path, 1) == reference
    line = refusal(tmp_path, WARM_TOKEN, *overrides, address, few, "cluster.num_nodes=2")
    assert line.startswith("error: cluster.num_nodes must be at most 1, the nodes with 0 GPUs and 0.2 CPUs; got 2.")
    line = refusal(tmp_path, "0" * 64, *overrides, address)
    assert line.startswith("error: RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) must be the token of the Ray cluster at")
    assert [node["Alive"] for node in ray.nodes()] == [True]


def test_cluster_without_authentication_is_refused_in_one_line(tmp_path, overrides):
    with cluster_of(1, None) as (address, _):
        line = refusal(tmp_path, "0" * 64, *overrides, f"cluster.address={address}")
    assert line.startswith("error: cluster.address must be a Ray cluster with token authentication; got " + address)


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_one_process(tmp_path, overrides, reference):
    token = secrets.token_hex(32)
    with cluster_of(2, token) as (address, _):
        places = [f"cluster.address={address}", "cluster.num_nodes=2"]
        done = run_command(tmp_path, token, *overrides, *places)
        assert done.returncode == 0, done.stderr
        assert digest(tmp_path, 2) == reference
        line = refusal(tmp_path, token, *overrides, *places, "cluster.num_nodes=3")
    assert line == (
        "error: cluster.num_nodes must be at most 2, the nodes with 0 GPUs and 1 CPUs; got 3."
        " There: 2 with 0 GPUs and 1 CPUs."
    )


@contextmanager
def run_of(folder: Path, token: str, address: str, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen]:
    """LONG on a cluster, in a process of its own, past its first prediction; gone afterwards in any case."""
    make_picture(96, 48).save(folder / "picture.png")
    places = [f"image={folder / 'picture.png'}", f"hydra.run.dir={folder / 'out'}", f"cluster.address={address}"]
    places += ["cluster.num_nodes=2", "cluster.timeout_s=10", "model.forward_s=0.6"]
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "fresco_dist.launch", *LONG, *places],
        env=environment(token),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("denoise" in line for line in process.stdout), process.stderr.read()
        yield process
    finally:
        end(process)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_goes_on_with_equal_bits_without_a_node_that_is_lost(tmp_path, long_digest):  # noqa: F811
    token = secrets.token_hex(32)
    with cluster_of(2, token) as (address, lose), run_of(tmp_path, token, address) as process:
        lose()
        _, errors = process.communicate(timeout=2 * TIMEOUT_S)
    assert process.returncode == 0, errors
    run = run_json(tmp_path / "out")
    assert run["latents_sha256"] == long_digest
    assert any("died" in line for line in run["survived"]), run["survived"]
