"""Which nodes and GPUs the workers get, and what is said when there are too few. No Ray is started."""

import os
from pathlib import Path
from unittest import mock

import pytest
from make_jobs import make_config
from ray.exceptions import RpcError

from fresco_dist.config import Attention, ClusterConfig, Dtype, InputError
from fresco_dist.runtime import collectives, ray_cluster, ray_executor, ray_head
from fresco_dist.schedule.execute import WorkerError
from fresco_dist.settings.schema import CONFIG_FOLDER

EMPTY_NODE, LARGE_NODE, SMALL_NODE = {"CPU": 2.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 4.0}


def _cluster(*overrides: str) -> ClusterConfig:
    return make_config("cluster.executor=ray", *overrides).cluster


@pytest.mark.parametrize(
    "overrides, nodes, expected",
    [
        (["+cluster=2x8xh100"], [LARGE_NODE] * 3, (16, 1)),
        (["cluster.num_nodes=2"], [SMALL_NODE, LARGE_NODE, EMPTY_NODE], (8, 1)),  # four on each
        (["cluster.num_nodes=2"], [EMPTY_NODE, EMPTY_NODE], (4, 0)),
        (["cluster.num_nodes=1"], [SMALL_NODE, LARGE_NODE], (8, 1)),
        ([], [SMALL_NODE, LARGE_NODE], (12, 1)),
        (["+cluster=4xa100"], [SMALL_NODE], (4, 1)),
    ],
)
def test_workers_are_spread_evenly_over_the_nodes_asked_for(overrides, nodes, expected):
    assert ray_cluster.choose_num_workers(_cluster(*overrides), nodes) == expected


@pytest.mark.parametrize(
    "overrides, nodes, message",
    [
        (
            ["+cluster=2x8xh100"],
            [EMPTY_NODE],
            "cluster.num_nodes must be at most 0, the nodes with 8 GPUs and 32 CPUs; got 2."
            " There: 1 with 0 GPUs and 2 CPUs. Join a Ray cluster with cluster.address=HOST:PORT.",
        ),
        (
            ["+cluster=2x8xh100", "cluster.address=10.0.0.1:6379"],
            [LARGE_NODE, SMALL_NODE, SMALL_NODE],
            "cluster.num_nodes must be at most 1, the nodes with 8 GPUs and 32 CPUs; got 2."
            " There: 1 with 8 GPUs and 64 CPUs; 2 with 4 GPUs and 64 CPUs.",
        ),
        (
            ["+cluster=8xh100"],  # eight GPUs on two nodes are another cluster
            [SMALL_NODE, SMALL_NODE],
            "cluster.num_nodes must be at most 0, the nodes with 8 GPUs and 32 CPUs; got 1."
            " There: 2 with 4 GPUs and 64 CPUs. Join a Ray cluster with cluster.address=HOST:PORT.",
        ),
        (
            ["+cluster=8xh100"],
            [EMPTY_NODE],
            "cluster.num_workers: 8 workers need 8 GPUs; 0 are there. cluster.gpus_per_worker=0 runs on CPUs.",
        ),
    ],
)
def test_too_small_a_cluster_is_refused_with_what_is_there_and_what_is_missing(overrides, nodes, message):
    with pytest.raises(InputError) as refused:
        ray_cluster.choose_num_workers(_cluster(*overrides), nodes)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "overrides, strategy, bundles, indices",
    [
        (["cluster.num_nodes=2"], "STRICT_SPREAD", [{"CPU": 8.0, "GPU": 2}] * 2, [0, 0, 1, 1]),
        (["cluster.num_nodes=1"], "STRICT_SPREAD", [{"CPU": 16.0, "GPU": 4}], [0, 0, 0, 0]),
        ([], "PACK", [{"CPU": 4.0, "GPU": 1}] * 4, [0, 1, 2, 3]),
    ],
)
def test_placement_is_one_bundle_per_node_or_packed(monkeypatch, overrides, strategy, bundles, indices):
    made = mock.Mock()
    monkeypatch.setattr(ray_cluster, "placement_group", made)
    group, places = ray_cluster.reserve(_cluster("cluster.cpus_per_worker=4", *overrides), 4, 1)
    made.assert_called_once_with(bundles, strategy=strategy)
    assert group is made.return_value
    assert [place.placement_group_bundle_index for place in places] == indices


def test_placement_that_is_not_granted_ends_the_run(monkeypatch):
    made, removed = mock.Mock(), mock.Mock()
    made.return_value.wait.return_value = False
    monkeypatch.setattr(ray_cluster, "placement_group", made)
    monkeypatch.setattr(ray_cluster, "remove_placement_group", removed)
    monkeypatch.setattr(ray_head, "TELL_EVERY_S", 0.0)
    told = []
    with pytest.raises(
        WorkerError, match=r"others hold .* 4 workers \(4 CPUs\).* cluster.start_timeout_s=0.1 s. Raise"
    ):
        ray_cluster.reserve(_cluster("cluster.start_timeout_s=0.1"), 4, 0, told.append)
    assert told[0] == "waiting   for others to free 4 CPUs (0 s)"
    removed.assert_called_once_with(made.return_value)


def test_workers_that_are_missing_are_named_with_their_nodes_if_these_are_several():
    addresses = {0: "10.0.0.1", 1: "10.0.0.1", 2: "10.0.0.2", 3: "10.0.0.2"}
    assert ray_executor.names_of([3, 2], addresses) == "workers 2, 3 on 10.0.0.2"
    assert ray_executor.names_of([1], dict.fromkeys(addresses, "10.0.0.1")) == "worker 1"


@pytest.mark.parametrize("absence_s, expected", [(30.0, None), (0.0, "Ray's head has not answered for 0 s: no answer")])
def test_head_that_does_not_answer_is_lost_after_a_while(monkeypatch, absence_s, expected):
    node = mock.Mock(dead_processes=lambda: [])
    node.get_gcs_client().check_alive.side_effect = RpcError("no answer")
    monkeypatch.setattr(ray_head.ray._private.worker, "_global_node", node)
    monkeypatch.setattr(ray_head.ray, "get_runtime_context", lambda: mock.Mock(get_node_id=lambda: "0" * 56))
    monkeypatch.setattr(ray_head, "ABSENCE_S", absence_s)
    assert ray_head.Head().loss() == expected


def test_two_workers_on_one_gpu_are_refused_before_they_form_a_group():
    address = ray_executor.Address
    unique = [address("10.0.0.1", [0], "GPU-a", "1"), address("10.0.0.1", [1], "GPU-b", "1")]
    unique.append(address("10.0.0.2", [0], "GPU-c", "2"))
    ray_executor._require_unique_gpus(unique)
    ray_executor._require_unique_gpus([address("10.0.0.1", [], "", "1")] * 2)  # CPU workers have none
    with pytest.raises(WorkerError, match="the same GPU, GPU-b on 10.0.0.2"):
        ray_executor._require_unique_gpus([*unique, address("10.0.0.2", [1], "GPU-b", "2")])


def test_interface_is_the_one_with_the_node_address():
    assert collectives.interface_of("127.0.0.1") == "lo"
    assert collectives.interface_of("192.0.2.77") is None


def test_nccl_uses_the_interface_of_the_node_address_unless_the_user_chose_one(monkeypatch):
    monkeypatch.setattr(collectives.dist, "ProcessGroupNCCL", mock.Mock(), raising=False)
    for given, expected in ((None, "=lo"), ("ib0", "ib0")):
        with mock.patch.dict(os.environ):
            os.environ.pop("NCCL_SOCKET_IFNAME", None)
            if given:
                os.environ["NCCL_SOCKET_IFNAME"] = given
            collectives.ProcessGroup(mock.Mock(), 0, 1, "127.0.0.1", 30.0, cuda=True)
            assert os.environ["NCCL_SOCKET_IFNAME"] == expected


PRESETS = sorted(path.stem for path in (Path(CONFIG_FOLDER) / "cluster").glob("*.yaml"))
MODELS = ("fresco_tiny", "synthetic", "wan", "wan2_2_i2v_a14b", "stable_diffusion")


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "cpu"])
def test_preset_is_named_after_its_nodes_and_gpus(name):
    *nodes, gpus, _ = name.split("x")
    cluster = _cluster(f"+cluster={name}")
    assert (cluster.num_nodes, cluster.gpus_per_worker) == (int(nodes[0]) if nodes else 1, 1)
    assert cluster.num_workers == cluster.num_nodes * int(gpus)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_states_what_decides_bits_after_the_model_and_before_the_command_line(name, model):
    overrides = ["cluster.executor=ray", f"model={model}"]
    overrides += ["model.path=/model"] * (model not in ("fresco_tiny", "synthetic"))
    bits = (Attention.native, Dtype.float32) if name == "cpu" else (Attention.auto, Dtype.bfloat16)
    plain, preset = make_config(*overrides), make_config(*overrides, f"+cluster={name}")
    assert (preset.model.attention, preset.model.dtype) == bits
    for given in (["model.dtype=float32", "model.attention=xformers"], ["model.dtype=bfloat16", "tiles.batch=4"]):
        typed = make_config(*given, *overrides, f"+cluster={name}")
        assert typed.model.dtype.value == given[0].partition("=")[2]
        assert typed.model.attention is (Attention.xformers if "model.attention=xformers" in given else bits[0])
        assert typed.tiles.batch == (4 if "tiles.batch=4" in given else 1)
    plain.model.attention, plain.model.dtype = bits
    plain.cluster = preset.cluster
    assert preset == plain  # and nothing else


def test_command_takes_a_preset_of_the_users_own(command, tmp_path):
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "3x2xmine.yaml").write_text("num_nodes: 3\nnum_workers: 6\ngpus_per_worker: 1\n")
    flags = ("--config-dir", str(tmp_path / "conf"))
    done = command("cluster.executor=ray", "+cluster=3x2xmine", "plan_only=true", flags=flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "workers   6\n" in done.stdout
