"""Starting up: what the workers of a node read from storage, as the system itself counts it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from fresco_dist.runtime.machine import read_gb
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.trace import TaskRecord, loaded_gb


def drop_cache(path: Path) -> None:
    """Have the next reader of the files below `path` read them from storage."""
    for file in path.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def large_path(model_path, tmp_path_factory) -> Path:
    """The small model with a transformer of 76 MB: much more than the system reads ahead."""
    path = shutil.copytree(model_path, tmp_path_factory.mktemp("startup") / "large")
    torch.manual_seed(0)
    wide = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 18}
    config = WanTransformer3DModel.load_config(path / "transformer")
    WanTransformer3DModel.from_config(config | wide).save_pretrained(path / "transformer")
    drop_cache(path)
    before_gb = read_gb()
    (path / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    if before_gb is None or read_gb() - before_gb < 0.07:
        pytest.skip("this file system is in memory, or reads are not counted")
    return path


def file_gb(path: Path) -> float:
    """Of the files that every worker loads."""
    return (
        sum(file.stat().st_size for name in ("transformer", "vae") for file in (path / name).glob("*.safetensors"))
        / 1e9
    )


def test_two_workers_of_a_node_read_each_file_once(launch, large_path, picture_path, tmp_path):
    """Also in another precision than the files': each worker converts what it maps."""
    drop_cache(large_path)
    overrides = [f"image={picture_path}", "cluster.num_workers=2", f"model.path={large_path}", "model.dtype=bfloat16"]
    done = launch(*overrides, "sampler.num_steps=1", "fusion=multidiffusion")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["num_workers"] == 2
    assert run["loaded_gb"] == pytest.approx(file_gb(large_path), rel=0.2)


def test_what_is_in_memory_is_not_read_again(command, folder, large_path, tmp_path):
    path = shutil.copytree(large_path, tmp_path / "large")  # which no worker that is still ending has mapped
    drop_cache(path)
    loaded, size = [], file_gb(large_path)
    for seed in range(6):
        overrides = (f"model.path={path}", "sampler.num_steps=1", "fusion=multidiffusion", f"seed={seed}")
        assert command(*overrides).returncode == 0
        loaded.append(json.loads((folder / "run.json").read_text())["loaded_gb"])
        if seed and loaded[-1] <= 0.1 * size:  # or others took the memory meanwhile
            break
    assert loaded[0] == pytest.approx(size, rel=0.2) and loaded[-1] <= 0.1 * size, loaded


def test_bytes_of_all_workers_are_added_up_where_all_can_tell():
    records = [TaskRecord(Task(kind), worker, 0.0, 1.0, 1.0, gb) for kind, worker, gb in
               (("load", 0, 1.5), ("load", 1, 0.25), ("encode_text", 1, 8.0))]  # fmt: skip
    assert loaded_gb(records) == 1.75
    assert loaded_gb([*records, TaskRecord(Task("load"), 2, 0.0, 1.0, 1.0)]) is None
