"""Compilation, quantisation and the places of weights: nothing but rounding may change."""

import json

import pytest
import torch
from conftest import make_picture
from diffusers import WanTransformer3DModel
from jobs import denoise, make_job
from published_models import make_published
from test_lora import make_lora

from fresco_dist import backbones
from fresco_dist.backbones.experts import Swap, offload_blocks_, quantize_fp8_
from fresco_dist.backbones.lora import load_loras_
from fresco_dist.config import LoraConfig

ONE_WINDOW = ("fusion=multidiffusion", "tiles.window=[480,640]")


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory):
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("precision") / "a14b")


def test_swapped_experts_predict_what_held_ones_do(a14b_path):
    image = make_picture(64, 64)
    held, swapped = (
        denoise(make_job(a14b_path, *ONE_WINDOW, f"model.expert_offload={policy}", image=image))
        for policy in ("hold", "swap")
    )
    assert torch.equal(held, swapped)


def test_one_module_at_a_time_is_on_the_device(monkeypatch):
    """A copy stands for the device: the active module's weights are copies, the others' are those in host memory."""
    monkeypatch.setattr(Swap, "_on_device", lambda self, host: host.clone())
    modules = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    before = [module.weight.detach().clone() for module in modules]
    swap = Swap(modules, torch.device("cpu"))
    host = [[tensor.data_ptr() for tensor in tensors] for tensors in swap._host]
    for active, waiting in ((0, 1), (1, 0), (1, 0), (0, 1)):
        swap.activate(active)
        assert [tensor.data_ptr() for tensor in modules[waiting].parameters()] == host[waiting]
        assert not {tensor.data_ptr() for tensor in modules[active].parameters()} & set(host[active])
        assert all(torch.equal(module.weight, weight) for module, weight in zip(modules, before))


@pytest.fixture
def forward(model_path):
    """A transformer, and its output for fixed inputs."""
    transformer = WanTransformer3DModel.from_pretrained(model_path / "transformer").eval()
    generator = torch.Generator().manual_seed(0)
    hidden, embeds = torch.randn(1, 12, 3, 8, 8, generator=generator), torch.randn(1, 512, 16, generator=generator)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        dtype = transformer.dtype
        return transformer(hidden.to(dtype), torch.tensor([500]), embeds.to(dtype), return_dict=False)[0].float()

    return transformer, run


def test_offloaded_blocks_predict_what_resident_ones_do(forward):
    transformer, run = forward
    resident = run()
    offload_blocks_(transformer, torch.device("cpu"))
    assert torch.equal(run(), resident)


def test_fp8_changes_the_linear_layers_of_the_blocks_alone(monkeypatch, tmp_path):
    """Not those of adapters beside them."""
    pytest.importorskip("torchao", reason="pip install '.[fp8]'")
    monkeypatch.setattr("torch.xpu.is_available", lambda: True)  # weights can be converted anywhere
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=12, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=64, num_layers=2,
    ).to(torch.bfloat16)  # fmt: skip
    make_lora(transformer, "peft", tmp_path / "lora.safetensors")
    load_loras_(transformer, [LoraConfig(str(tmp_path / "lora.safetensors"))], 0, fuse=False)
    quantize_fp8_(transformer)
    names = {name for name, value in transformer.named_parameters() if "Float8" in type(value).__name__}
    modules = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {name for name in modules if name.startswith("blocks.") and "lora" not in name}
    assert names and names == {f"{name}.weight" for name in layers}
    adapters = [value for name, value in transformer.named_parameters() if "lora" in name]
    assert len(adapters) == 2 * len(layers) and {value.dtype for value in adapters} == {torch.bfloat16}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["model.quantization=fp8", "model.dtype=bfloat16"],
            ["model.quantization must be null", "8.9", "this is a cpu"],
        ),
        (["model.offload=group"], ["model.offload must be null without a CUDA GPU", "got group"]),
    ],
)
def test_command_what_the_device_cannot_do_is_refused_before_weights_are_read(command, monkeypatch, overrides, words):
    def load_component(*args, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("fresco_dist.backbones.experts.load_component", load_component)
    done = command(*overrides)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line


def test_command_compiles_the_block_and_says_how_long_it_took(command, folder):
    """Two shapes, the window's and the thumbnail's: both are compiled at start, and nothing later."""
    assert command("cluster.executor=inprocess").returncode == 0
    plain = json.loads((folder / "run.json").read_text())
    done = command("model.compile=true")
    assert done.returncode == 0, done.stderr
    compiled = json.loads((folder / "run.json").read_text())
    assert plain["timings_s"]["compile"] == 0.0 < compiled["timings_s"]["compile"] <= compiled["timings_s"]["load"]


def test_compiled_blocks_predict_nearly_the_same(model_path):
    eager, compiled = (denoise(make_job(model_path, *ONE_WINDOW, *extra)) for extra in ((), ("model.compile=true",)))
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-4)


def test_blocks_of_one_shape_share_one_graph(model_path):
    """Also a window of another shape than the thumbnail: one graph each, made while loading."""
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    job = make_job(model_path, "model.compile=true", "tiles.window=[32,32]", "prior.area=512")
    assert len(set(job.plan.tile_shapes)) == 2
    backbones.load(job.config.model, torch.device("cpu"), job.plan.tile_shapes)
    loaded = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert loaded - before == 2
    denoise(job)  # loads once more, and compiles nothing after that
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - loaded == 2
