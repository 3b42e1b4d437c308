"""The digest of a model: what changes it, and what must not."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_jobs import make_config
from safetensors.numpy import save_file

from fresco_dist.config import Dtype, Expert, InputError, LoraConfig, ModelConfig, Quantization
from fresco_dist.models import fingerprint as module
from fresco_dist.models.fingerprint import BLOCK, NUM_BLOCKS, fingerprint

SHARD = Path("transformer/diffusion_pytorch_model-00001-of-00002.safetensors")
TOKENS = Path("tokenizer/spiece.model")
TENSORS = {"first": 2**20, "bias": 10_000, "last": 2**19}


def write_weights(path: Path, seed: int = 0, **sizes: int) -> None:
    """Random bytes of a small integer type, as tensors."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: random.integers(0, 255, size, dtype=np.uint8) for name, size in sizes.items()}, path)


@pytest.fixture
def model(tmp_path) -> ModelConfig:
    """A directory with what a model has: weights above and below the size up to which all is read, and other files."""
    folder = tmp_path / "model"
    write_weights(folder / SHARD, **TENSORS)
    write_weights(folder / "vae/diffusion_pytorch_model.safetensors", first=1000)
    (folder / "tokenizer").mkdir()
    (folder / TOKENS).write_bytes(np.random.default_rng(0).bytes(2**21))
    (folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.9}))
    for name in ("a", "b"):
        write_weights(tmp_path / f"{name}.safetensors", ord(name), down=2**20, up=2**20)
    loras = [LoraConfig(str(tmp_path / f"{name}.safetensors"), 0.5, Expert.high_noise) for name in ("a", "b")]
    return replace(make_config().model, path=str(folder), loras=loras)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def header_size(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def swap_names(path: Path) -> None:
    """A header of the same length."""
    path.write_bytes(path.read_bytes().replace(b'"bias"', b'"sail"'))


CHANGES: dict[str, Callable[[Path], object]] = {
    "header": lambda folder: swap_names(folder / SHARD),
    "first block": lambda folder: flip_byte(folder / SHARD, header_size(folder / SHARD)),
    "end of first block": lambda folder: flip_byte(folder / SHARD, header_size(folder / SHARD) + BLOCK - 1),
    "last byte": lambda folder: flip_byte(folder / SHARD, -1),
    "last block": lambda folder: flip_byte(folder / SHARD, -BLOCK),
    "size": lambda folder: (folder / SHARD).open("ab").write(b"\0"),
    "small weights": lambda folder: flip_byte(folder / "vae/diffusion_pytorch_model.safetensors", -500),
    "JSON": lambda folder: (folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.8})),
    "tokenizer's first": lambda folder: flip_byte(folder / TOKENS, 0),
    "tokenizer's last": lambda folder: flip_byte(folder / TOKENS, -1),
    "tokenizer's size": lambda folder: os.truncate(folder / TOKENS, 2**21 - 1),
    "name": lambda folder: (folder / TOKENS).rename(folder / "tokenizer/other.model"),
    "place": lambda folder: (folder / "vae").rename(folder / "vae_2"),
    "new file": lambda folder: (folder / "transformer/config.json").write_text("{}"),
    "missing file": lambda folder: (folder / TOKENS).unlink(),
    "first LoRA": lambda folder: flip_byte(folder.parent / "a.safetensors", -1),
    "second LoRA": lambda folder: flip_byte(folder.parent / "b.safetensors", -1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_file_changes_it(model, change):
    before = fingerprint(model)
    change(Path(model.path))
    assert fingerprint(model) != before


def test_any_tensor_that_has_changed_as_a_whole_changes_it(model):
    """Also one that lies between two blocks."""
    file, sizes = Path(model.path) / SHARD, TENSORS | {"between": 5000}
    write_weights(file, **sizes)
    content, begin, seen = file.read_bytes(), header_size(file), set()
    header = json.loads(content[8:begin])
    distance = (len(content) - begin) / (NUM_BLOCKS - 1)
    assert all(sizes[name] < distance for name in ("bias", "between"))
    for name in sizes:
        start, end = (begin + offset for offset in header[name]["data_offsets"])
        file.write_bytes(content[:start] + bytes(255 - byte for byte in content[start:end]) + content[end:])
        seen.add(fingerprint(model))
    file.write_bytes(content)
    assert len(seen | {fingerprint(model)}) == len(sizes) + 1


def test_change_as_long_as_the_distance_of_blocks_changes_it(model):
    file, before = Path(model.path) / TOKENS, fingerprint(model)
    content = file.read_bytes()
    length = len(content) // (NUM_BLOCKS - 1) + BLOCK
    for start in range(0, len(content) - length, length // 3):
        changed = bytes(255 - byte for byte in content[start : start + length])
        file.write_bytes(content[:start] + changed + content[start + length :])
        assert fingerprint(model) != before


@pytest.mark.parametrize(
    "changed",
    [
        {"backbone": "stable_diffusion"},
        {"dtype": Dtype.float32},
        {"vae_dtype": Dtype.bfloat16},
        {"quantization": Quantization.fp8},
        {"compile": True},
        {"fuse_loras": False},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_key_that_changes_bits_changes_it(model, changed):
    model = replace(model, dtype=Dtype.bfloat16, vae_dtype=Dtype.float32)
    assert fingerprint(replace(model, **changed)) != fingerprint(model)


def test_weight_expert_order_and_number_of_loras_change_it(model):
    first, second = model.loras
    lists = [
        [first, second],
        [second, first],
        [first],
        [first, first],
        [first, replace(second, weight=0.25)],
        [first, replace(second, weight=-0.5)],
        [first, replace(second, expert=Expert.low_noise)],
        [first, replace(second, expert=None)],
        [],
    ]
    assert len({fingerprint(replace(model, loras=loras)) for loras in lists}) == len(lists)


def test_copy_is_the_same_model(model, tmp_path):
    before = fingerprint(model)
    there = tmp_path / "there"
    shutil.copytree(model.path, there / "moved")
    for file in there.rglob("*"):
        os.utime(file, (1, 1))
    loras = [replace(lora, path=str(there / f"{i}.safetensors")) for i, lora in enumerate(model.loras)]
    for ours, theirs in zip(model.loras, loras):
        shutil.copy(ours.path, theirs.path)
    assert fingerprint(replace(model, path=str(there / "moved"), loras=loras)) == before
    (there / "linked").mkdir()
    for part in (there / "moved").iterdir():
        (there / "linked" / part.name).symlink_to(part)
    assert fingerprint(replace(model, path=str(there / "linked"))) == before


def test_what_no_loader_reads_does_not_change_it(model):
    before, folder = fingerprint(model), Path(model.path)
    names = ["README.md", "README", "LICENSE.txt", ".gitattributes", ".git/HEAD", ".cache/huggingface/a.json"]
    names += ["assets/logo.PNG", "transformer/model.safetensors.lock", "vae/diffusion_pytorch_model.bin"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
        assert fingerprint(model) == before, name


def test_variant_that_is_not_loaded_does_not_change_it(model):
    """The file that is, under its own name; also if there are shards and a single file, of which one is loaded."""
    folder = Path(model.path)
    before = fingerprint(model)
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.bf16-00001-of-00002"):
        write_weights(folder / f"vae/{name}.safetensors", 7, first=500)
    (folder / "vae/diffusion_pytorch_model.safetensors.index.bf16.json").write_text('{"weight_map": {}}')
    assert fingerprint(model) == before
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    several = fingerprint(model)  # in doubt all count
    (folder / "vae/diffusion_pytorch_model.safetensors.index.bf16.json").unlink()
    only = fingerprint(model)
    assert len({before, several, only}) == 3


def test_settings_that_peft_has_saved_beside_an_adapter_change_it(model):
    lora = Path(model.loras[0].path).with_name("adapter_model.safetensors")
    shutil.copy(model.loras[0].path, lora)
    adapted = replace(model, loras=[LoraConfig(str(lora))])
    seen = {fingerprint(adapted)}
    for alpha in (8, 16):
        lora.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        seen.add(fingerprint(adapted))
    assert len(seen) == 3


def test_what_changes_no_bits_does_not_change_it(model):
    other = make_config("model.attention=native", "model.expert_offload=swap", "model.vae_tile=64").model
    other = replace(other, path=model.path, loras=model.loras, forward_s=1.0)
    assert fingerprint(other) == fingerprint(model)


def test_embedded_model_and_the_one_without_files():
    embedded, synthetic = make_config().model, make_config("model=synthetic").model
    assert embedded.path is None and len(fingerprint(embedded)) == 64
    assert fingerprint(embedded) == fingerprint(replace(embedded, path=str(module.model_path(embedded))))
    assert fingerprint(synthetic) == fingerprint(replace(synthetic, path="/nowhere")) != fingerprint(embedded)


def test_what_is_no_safetensors_file_is_as_any_other(model):
    """A download that was cut off, which nothing loads, must not stop a run."""
    seen = set()
    for content in (b"\0" * 2**21, b"\0" * (2**21 + 1), b"\xff" * 2**21, b"\x02" + b"\0" * 7 + b"[]" + b"\0" * 2**21):
        (Path(model.path) / "cut.safetensors").write_bytes(content)
        seen.add(fingerprint(model))
    assert len(seen) == 4


def test_missing_files_are_named(model, tmp_path):
    with pytest.raises(InputError, match=r"model.path must be .*nowhere"):
        fingerprint(replace(model, path=str(tmp_path / "nowhere")))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.loras: .*b.safetensors cannot be read"):
        fingerprint(model)


def test_little_is_read_of_large_files(tmp_path):
    """A terabyte that is not on the disk."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    file = tmp_path / "transformer.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, file.stat().st_size + 2**40)
    assert fingerprint(replace(make_config().model, path=str(tmp_path)))
