"""Compilation, quantisation and the places of weights: nothing but rounding may change."""

import json
from functools import partialmethod

import pytest
import torch
from conftest import make_picture
from diffusers import WanTransformer3DModel
from lora_files import make_lora
from make_jobs import denoise, make_config, make_job
from published_models import make_published

from fresco_dist import models
from fresco_dist.config import LoraConfig
from fresco_dist.models.wan.experts import Swap, offload_blocks_, quantize_fp8_
from fresco_dist.models.wan.lora import load_loras_

ONE_WINDOW = ("fusion=multidiffusion", "tiles.window=[480,640]")


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory):
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("precision") / "a14b")


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
@pytest.mark.parametrize("policy", ["ahead", "swap"])
def test_moved_experts_predict_what_held_ones_do(a14b_path, policy, mode):
    """Several windows, and a prior whose steps come between those of the canvas."""
    overrides = ["tiles.window=[64,64]", "prior.area=4096", "prior.num_steps=3", f"dispatch.mode={mode}"]
    held, moved = (
        denoise(make_job(a14b_path, *overrides, f"model.expert_offload={each}", image=make_picture(128, 64)))
        for each in ("hold", policy)
    )
    assert torch.equal(held, moved)


@pytest.fixture
def copies(monkeypatch) -> list:
    """A copy stands for the device; the addresses of what is copied there, a list per module."""
    made = []

    def on_device(self, host):
        made.append([tensor.data_ptr() for tensor in host])
        return [tensor.clone() for tensor in host]

    monkeypatch.setattr(Swap, "_on_device", on_device)
    return made


def on_host(swap: Swap) -> list[bool]:
    """Of each module, whether its weights are those in host memory."""
    return [
        [tensor.data_ptr() for tensor in tensors] == [tensor.data_ptr() for tensor in host]
        for tensors, host in zip(swap._tensors, swap._host)
    ]


@pytest.mark.parametrize(
    "capacity, order, num_copies", [(1, (0, 1, 1, 0), 3), (2, (0, 1, 1, 0), 2)], ids=["swap", "ahead"]
)
def test_so_many_modules_are_on_the_device_and_no_more(copies, capacity, order, num_copies):
    modules = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    before = [module.weight.detach().clone() for module in modules]
    swap = Swap(modules, torch.device("cpu"), capacity)
    used: list[int] = []
    for active in order:
        swap.activate(active)
        used = [*(index for index in used if index != active), active][-capacity:]
        assert on_host(swap) == [index not in used for index in (0, 1)]
        assert all(torch.equal(module.weight, weight) for module, weight in zip(modules, before))
    assert len(copies) == num_copies
    swap.shrink(1)
    assert on_host(swap) == [index != order[-1] for index in (0, 1)]


def test_second_expert_comes_during_the_last_step_of_the_first(a14b_path, copies):
    """Tasks of both steps at the boundary alternate, as in a wavefront; then another prompt needs the room."""
    model = make_job(a14b_path, "model.expert_offload=ahead").config.model
    backbone = models.load(model, torch.device("cpu"))
    swap = backbone._experts._swap
    timesteps = backbone.make_scheduler(4, None).timesteps
    _, condition, embeds = backbone._zeros((1, 2, 2))
    x = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = []
    with torch.inference_mode():
        for step in (0, 0, 1, 1, 2, 1, 2, 3):
            backbone.predict(x, [condition], timesteps[step], embeds)
            seen.append((step, on_host(swap), len(copies)))
        backbone.encode_text("the figures walk left")
    first, both = [False, True], [False, False]
    assert seen == [(0, first, 1), (0, first, 1)] + [(step, both, 2) for step in (1, 1, 2, 1, 2, 3)]
    assert on_host(swap) == [True, False]


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


@pytest.mark.parametrize("adapted", [False, True])
def test_offloaded_blocks_predict_what_resident_ones_do(forward, tmp_path, adapted):
    transformer, run = forward
    if adapted:
        make_lora(transformer, "peft", tmp_path / "lora.safetensors")
        load_loras_(transformer, [LoraConfig(str(tmp_path / "lora.safetensors"))], 0, fuse=False)
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
    make_lora(transformer, "peft", tmp_path / "lora.safetensors", rank=16)  # of other sizes torchao leaves them alone
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

    monkeypatch.setattr("fresco_dist.models.wan.experts.load_component", load_component)
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
    models.load(job.config.model, torch.device("cpu"), job.plan.tile_shapes)
    loaded = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert loaded - before == 2
    denoise(job)  # loads once more, and compiles nothing after that
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - loaded == 2


def test_windows_that_move_have_more_shapes_than_torch_compiles_by_default(model_path, monkeypatch):
    """Nine and more of one block end in an error there; traced only, which is what counts them."""
    traced = partialmethod(WanTransformer3DModel.compile_repeated_blocks, backend="eager")
    monkeypatch.setattr(WanTransformer3DModel, "compile_repeated_blocks", traced)
    tiles = [(1, 2, 2 * side, 4) for side in range(2, 12)]
    assert len(tiles) > torch._dynamo.config.recompile_limit
    config = make_config(f"model.path={model_path}", "model.compile=true")
    assert models.load(config.model, torch.device("cpu"), tiles).compile_s > 0
