"""Wan2.2-I2V-A14B at full size on one GPU: how long a forward takes, and so a whole clip.

Random weights, made on the device from the published configuration: time does not depend on their values. For each
window size, attention backend and precision, compiled or not: seconds per forward, model FLOP/s over those of a
measured matrix product in bfloat16, peak memory, and the share of a denoising step that is not forwards (goal: at most
1%). Then the bandwidth of fusion, and the predicted denoising time of a clip of 3840 x 2160 px, 81 frames and 6 steps
from the project's own schedule. Without a GPU it says so and ends.

    python benchmarks/wan_gpu.py [--repeats 5] [--tiny]

`--tiny` runs the same code with a small model on any device, to test it; its figures mean nothing.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from fusion_bandwidth import measure as measure_fusion
from fusion_bandwidth import print_table
from outside_forwards import share_outside

from fresco_dist.config import Attention, Config, DispatchMode, InputError, Quantization
from fresco_dist.models.attention import choose_attention, set_attention
from fresco_dist.models.wan.experts import check_device, quantize_fp8_
from fresco_dist.models.wan.spec import transformer_spec
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.schedule.spec import ModelSpec
from fresco_dist.settings.schema import compose_config

A14B = {  # transformer/config.json of Wan2.2-I2V-A14B-Diffusers; both experts
    "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": None, "attention_head_dim": 128,
    "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256, "image_dim": None, "in_channels": 36,
    "num_attention_heads": 40, "num_layers": 40, "out_channels": 16, "patch_size": [1, 2, 2],
    "pos_embed_seq_len": None, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
}  # fmt: skip
TINY = A14B | {"attention_head_dim": 16, "ffn_dim": 64, "freq_dim": 16, "num_attention_heads": 2, "num_layers": 2}
TEXT_TOKENS = 512
SPATIAL_FACTOR, TEMPORAL_FACTOR, LATENT_CHANNELS = 8, 4, 16  # of the model's VAE
NUM_FRAMES, NUM_STEPS, CLIP_PX = 81, 6, (3840, 2160)
PAPER_MINUTES = 8.58  # FrescoDiffusion on one H100, averaged over the paper's data sets (arXiv 2603.17555, Table 2)
WINDOWS = {"832x480": (480, 832), "1280x720": (720, 1280)}


def forward_flops(config: dict, tokens: tuple[int, int, int]) -> float:
    """Multiplications and additions in the matrix products of one forward; `tokens` is (T, H, W)."""
    N, L = tokens[0] * tokens[1] * tokens[2], TEXT_TOKENS
    D = config["num_attention_heads"] * config["attention_head_dim"]
    F, patch = config["ffn_dim"], 4
    self_attention = 4 * N * D * D + 2 * N * N * D
    cross_attention = 2 * N * D * D + 2 * L * D * D + 2 * N * L * D
    feed_forward = 2 * N * D * F
    text = L * (config["text_dim"] * D + D * D)
    timestep = config["freq_dim"] * D + D * D + 6 * D * D
    ends = N * patch * D * (config["in_channels"] + config["out_channels"])
    blocks = config["num_layers"] * (self_attention + cross_attention + feed_forward)
    return 2.0 * (blocks + text + timestep + ends)


def clip_config(window: tuple[int, int], num_workers: int, num_frames: int, num_steps: int, *overrides: str) -> Config:
    """Windows half overlapping, a prior at the window's area."""
    sizes = [
        f"tiles.window=[{window[0]},{window[1]}]",
        f"prior.area={window[0] * window[1]}",
        f"video.num_frames={num_frames}",
        f"sampler.num_steps={num_steps}",
        f"cluster.num_workers={num_workers}",
    ]
    return compose_config(*sizes, *overrides)


def model_spec() -> ModelSpec:
    """The model as the planner sees it, without weights."""
    return ModelSpec(
        latent_channels=LATENT_CHANNELS,
        condition_channels=A14B["in_channels"] - LATENT_CHANNELS,
        spatial_factor=SPATIAL_FACTOR,
        temporal_factor=TEMPORAL_FACTOR,
        patch=2,
        weight_bytes=0,
        text_encoder_bytes=0,
        encode_tile_px=(256, 192),
        decode_tile_px=(256, 192),
        transformer=transformer_spec(A14B, 2, 0, False),
    )


def clip_plan(window: tuple[int, int], num_workers: int) -> Plan:
    """The project's plan of the clip."""
    config = clip_config(window, num_workers, NUM_FRAMES, NUM_STEPS)
    return make_plan(config, model_spec(), CLIP_PX, num_workers)


def measure_outside(
    transformer: WanTransformer3DModel, window: tuple[int, int], num_frames: int, device: torch.device
) -> float:
    """Share of two steps of two windows, without a prior, that is spent outside forwards; `window` is in pixels."""
    config = clip_config(window, 1, num_frames, 2, "fusion=multidiffusion", "preview=false")
    plan = make_plan(config, model_spec(), (3 * window[1] // 2, window[0]), 1)
    return share_outside(transformer, config, plan, device, TEXT_TOKENS)


def clip_minutes(window: tuple[int, int], forward_s: float, num_workers: int) -> float:
    """Predicted denoising time of the clip: the schedule in forwards, times one forward. Encoding and decoding not."""
    makespan = simulate_run(clip_plan(window, num_workers), DispatchMode.wavefront)["makespan_s"]
    return makespan * forward_s / 60.0


def window_tokens(window: tuple[int, int], num_frames: int) -> tuple[int, int, int]:
    """Tokens (T, H, W) of a window in pixels."""
    side = 2 * SPATIAL_FACTOR
    return (num_frames - 1) // TEMPORAL_FACTOR + 1, window[0] // side, window[1] // side


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    attention: Attention
    fp8: bool
    compiled: bool

    def __str__(self) -> str:
        return f"{self.attention.value} | {'fp8' if self.fp8 else 'bf16'} | {'yes' if self.compiled else 'no'}"


class Timer:
    """Times functions on a device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self._repeats = device, repeats

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __call__(self, function: Callable[[], object]) -> list[float]:
        """Seconds of each of `repeats` calls, after one that warms up."""
        times = []
        for _ in range(self._repeats + 1):
            self.synchronize()
            started_s = time.perf_counter()
            function()
            self.synchronize()
            times.append(time.perf_counter() - started_s)
        return times[1:]


def matmul_flops(timer: Timer, side: int) -> float:
    """FLOP/s of a square matrix product in bfloat16: the best of the repeats."""
    a, b = (torch.randn(side, side, device=timer.device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * side**3 / min(timer(lambda: a @ b))


def make_transformer(config: dict, device: torch.device, fp8: bool) -> WanTransformer3DModel:
    """Random weights, made on the device in the precisions that loading gives them."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            transformer = WanTransformer3DModel.from_config(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, parameter in transformer.named_parameters():
        if any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    if fp8:
        quantize_fp8_(transformer)
    return transformer


def measure_forward(
    transformer: WanTransformer3DModel, tokens: tuple[int, int, int], variant: Variant, timer: Timer
) -> tuple[list[float], float, float]:
    """Seconds of each forward, seconds of the first (with compilation), peak memory in GB. Raises InputError."""
    config, device = transformer.config, timer.device
    num_tokens = tokens[0] * tokens[1] * tokens[2]
    attention = choose_attention(
        variant.attention,
        device=device,
        dtype=torch.bfloat16,
        heads=(config.num_attention_heads, config.attention_head_dim),
        lengths=[(num_tokens, num_tokens), (num_tokens, TEXT_TOKENS)],
    )
    set_attention(transformer, attention)
    if variant.compiled:
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    size = (tokens[0], 2 * tokens[1], 2 * tokens[2])
    hidden = torch.randn(1, config.in_channels, *size, device=device, dtype=torch.bfloat16)
    embeds = torch.randn(1, TEXT_TOKENS, config.text_dim, device=device, dtype=torch.bfloat16)
    timestep = torch.full((1,), 900.0, device=device)

    @torch.inference_mode()
    def forward() -> None:
        transformer(hidden, timestep, embeds, return_dict=False)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started_s = time.perf_counter()
    forward()
    timer.synchronize()
    first_s = time.perf_counter() - started_s
    times = timer(forward)
    peak_gb = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
    return times, first_s, peak_gb


def variants() -> Iterator[Variant]:
    """Attention, precision, compilation: every combination."""
    for attention, fp8, compiled in product(
        (Attention.native, Attention.xformers, Attention.cudnn), (False, True), (False, True)
    ):
        yield Variant(attention, fp8, compiled)


def report(config: dict, windows: dict[str, tuple[int, int]], num_frames: int, timer: Timer, matmul_side: int) -> None:
    """Print the table of forwards, and the clip's time from the fastest of each window size."""
    peak = matmul_flops(timer, matmul_side)
    print(f"matrix product of {matmul_side} in bfloat16: {peak / 1e12:.1f} TFLOP/s\n")
    print(
        "| window | attention | weights | compiled | forward, s: median (min - max) | first, s | of peak | memory, GB"
        " | outside forwards |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    fastest: dict[str, float] = {}
    for variant in variants():
        try:
            check_variant(variant, timer.device)
            transformer = make_transformer(config, timer.device, variant.fp8)
            for name, window in windows.items():
                tokens = window_tokens(window, num_frames)
                times, first_s, peak_gb = measure_forward(transformer, tokens, variant, timer)
                median_s = statistics.median(times)
                fastest[name] = min(median_s, fastest.get(name, median_s))
                share = forward_flops(config, tokens) / median_s / peak
                spread = f"{median_s:.3f} ({min(times):.3f} - {max(times):.3f})"
                outside = measure_outside(transformer, window, num_frames, timer.device)
                figures = f"{first_s:.1f} | {share:.0%} | {peak_gb:.1f} | {outside:.2%}"
                print(f"| {name} | {variant} | {spread} | {figures} |", flush=True)
        except InputError as error:
            print(f"| all | {variant} | {error} | | | | |", flush=True)
        transformer = None
        torch._dynamo.reset()
        gc.collect()
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()
    print("\n| window | windows | clip on 1 GPU, minutes | on 8 GPUs | the paper, one H100 |")
    print("|---|---|---|---|---|")
    for name, forward_s in fastest.items():
        window = WINDOWS[name]
        one, eight = (clip_minutes(window, forward_s, num_workers) for num_workers in (1, 8))
        num_windows = len(clip_plan(window, 1).canvas.steps[0].grid.windows)
        print(f"| {name} | {num_windows} | {one:.2f} | {eight:.2f} | {PAPER_MINUTES} |")


def check_variant(variant: Variant, device: torch.device) -> None:
    """Raise InputError if the device cannot run a variant's precision."""
    if variant.fp8:
        model = compose_config("model.dtype=bfloat16").model
        check_device(replace(model, quantization=Quantization.fp8), device)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small model on any device, to test this script")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print(f"{Path(__file__).name}: no GPU here, nothing measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timer = Timer(device, arguments.repeats)
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    if arguments.tiny:
        print("a tiny model: these figures mean nothing\n")
        report(TINY, {"832x480": (32, 48)}, 5, timer, matmul_side=64)
        shape = (16, 2, 27, 48)
    else:
        report(A14B, WINDOWS, NUM_FRAMES, timer, matmul_side=8192)
        shape = (16, 21, 270, 480)
    print()
    print_table(measure_fusion(device, shape, arguments.repeats))


if __name__ == "__main__":
    main()
