"""The pure parts of benchmarks/wan_gpu.py, and the script itself on a tiny model."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from published_models import published
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fresco_dist.method.grid import Window
from fresco_dist.runtime import step
from fresco_dist.schedule.plan import forward_share

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def wan_gpu(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import wan_gpu

    return wan_gpu


def test_its_model_is_the_published_one(wan_gpu):
    files = published("wan2_2_i2v_a14b")
    assert files["transformer/config.json"] == files["transformer_2/config.json"] == wan_gpu.A14B


@pytest.mark.parametrize("tokens", [(2, 3, 4), (3, 8, 8)])
def test_flops_are_those_that_torch_counts(wan_gpu, tokens):
    transformer = WanTransformer3DModel.from_config(wan_gpu.TINY)
    hidden = torch.zeros(1, 36, tokens[0], 2 * tokens[1], 2 * tokens[2])
    counted = sdpa_kernel(SDPBackend.MATH)  # the only attention whose products are counted on a CPU
    with torch.inference_mode(), counted, FlopCounterMode(display=False) as counter:
        transformer(hidden, torch.tensor([500]), torch.zeros(1, 512, 4096), return_dict=False)
    assert wan_gpu.forward_flops(wan_gpu.TINY, tokens) == counter.get_total_flops()


def test_clip_is_predicted_from_the_schedule(wan_gpu):
    """25 windows of 1280 x 720, 6 steps, a prior of 6 forwards (METHOD 6): 156 forwards on one GPU."""
    plan = wan_gpu.clip_plan((720, 1280), 1)
    assert len(plan.canvas.steps[0].grid.windows) == 25 and plan.num_forwards == 156
    assert wan_gpu.clip_minutes((720, 1280), 2.0, 1) == pytest.approx(156 * 2 / 60)
    assert 156 / 8 <= wan_gpu.clip_minutes((720, 1280), 60.0, 8) < 156 / 4


def test_window_tokens_are_those_of_the_model(wan_gpu):
    assert wan_gpu.window_tokens((720, 1280), 81) == (21, 45, 80)


def test_forward_share_is_the_ratio_of_the_counted_flops(wan_gpu):
    """The plan's own count of a window's forward against that of its matrix products, at 81 frames."""
    full = wan_gpu.WINDOWS["1280x720"]
    for size in (wan_gpu.WINDOWS["832x480"], (720, 640), (368, 1280), full):
        ours = forward_share(wan_gpu.model_spec(), 21, (90, 160), Window(7, 5, *(side // 8 for side in size)))
        flops, flops_of_full = (
            wan_gpu.forward_flops(wan_gpu.A14B, wan_gpu.window_tokens(window, 81)) for window in (size, full)
        )
        assert ours == pytest.approx(flops / flops_of_full, rel=0.02)
        assert size != (480, 832) or ours == pytest.approx(0.26, abs=0.01)


def test_share_outside_forwards_is_what_remains_of_the_steps(wan_gpu, monkeypatch):
    """Two windows at two steps, on a clock that only forwards (2 s) and accumulation (1 s) move on."""
    transformer = wan_gpu.make_transformer(wan_gpu.TINY, torch.device("cpu"), fp8=False)
    forward, accumulate, shapes, now_s = transformer.forward, step.accumulate_, [], 0.0

    def takes(seconds, function):
        def timed(*args, **options):
            nonlocal now_s
            now_s += seconds
            shapes.append(args[0].shape)
            return function(*args, **options)

        return timed

    monkeypatch.setattr(transformer, "forward", takes(2.0, forward))
    monkeypatch.setattr(step, "accumulate_", takes(1.0, accumulate))
    for clock in ("time", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: now_s)
    assert wan_gpu.measure_outside(transformer, (32, 48), 5, torch.device("cpu")) == pytest.approx(1 / 3)
    assert shapes == [(1, 36, 2, 4, 6), (16, 2, 4, 6)] * 4


def test_without_a_gpu_it_says_so_in_one_line(wan_gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wan_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wan_gpu.main()
    assert capsys.readouterr() == ("wan_gpu.py: no GPU here, nothing measured\n", "")


@pytest.mark.slow
def test_it_runs_on_a_tiny_model(monkeypatch):
    """Every row is there: measured, or refused with its reason."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, str(BENCHMARKS / "wan_gpu.py"), "--tiny", "--repeats", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout
    rows = [line for line in printed.splitlines() if line.startswith("| 832x480 | native | bf16 |")]
    assert len(rows) == 2 and all(0.0 < float(row.split("|")[-2].strip(" %")) < 100.0 for row in rows)
    assert printed.count("model.quantization must be null without a CUDA GPU") == 6
    assert printed.count("model.attention=cudnn cannot run here") == 2
    assert "| 8.58 |" in printed and "| accumulate |" in printed
