"""What both training stages share: learning-rate schedule, weight averaging, checkpoints, log, sample grids.

Owns the run folder of a stage (`state.safetensors`, `log.jsonl`, `samples/`). Checkpoints are safetensors only and
are written aside, then renamed, so that a killed run always resumes from a whole one.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

logger = logging.getLogger(__name__)


def learning_rate(step: int, *, peak: float, num_steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return peak * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


class Average:
    """Exponential moving average of float parameters; the horizon grows with the step, so early weights fade."""

    def __init__(self, module: nn.Module, *, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in module.named_parameters():
            self.weights[name].lerp_(value.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, value in module.named_parameters():
            value.copy_(self.weights[name])


def save_state(path: Path, *, step: int, module: nn.Module, average: Average, optimizers: list) -> None:
    """Writes weights, averaged weights, optimizer moments and the step to one safetensors file."""
    tensors = {f"module/{name}": value.detach() for name, value in module.named_parameters()}
    tensors |= {f"average/{name}": value for name, value in average.weights.items()}
    for rank, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer/{rank}/{index}/{key}"] = torch.as_tensor(value)
    aside = path.with_suffix(".partial")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, aside, {"step": str(step)})
    aside.replace(path)


@torch.no_grad()
def load_state(path: Path, *, module: nn.Module, average: Average, optimizers: list) -> int:
    """Restores what `save_state` wrote and returns the step to continue from; 0 when there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        moments: list[dict] = [{} for _ in optimizers]
        for name in file.keys():  # noqa: SIM118 (not a dict)
            part, _, rest = name.partition("/")
            if part == "average":
                average.weights[rest].copy_(file.get_tensor(name))
            elif part == "module":
                module.get_parameter(rest).copy_(file.get_tensor(name))
            else:
                rank, index, key = rest.split("/")
                moments[int(rank)].setdefault(int(index), {})[key] = file.get_tensor(name)
        step = int(file.metadata()["step"])
    for optimizer, state in zip(optimizers, moments):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    logger.info("resumed from step %d", step)
    return step


class Log:
    """Appends one JSON line per report to `log.jsonl`, with the seconds since the process began."""

    def __init__(self, folder: Path):
        self.path, self.start = folder / "log.jsonl", time.monotonic()

    def write(self, **facts: Any) -> None:
        facts["elapsed_s"] = round(time.monotonic() - self.start, 1)
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        logger.info("%s", facts)


def save_grid(path: Path, rows: list[np.ndarray]) -> None:
    """Contact sheet: one row of frames per uint8 array (F, H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)


def to_frames(video_CFHW: torch.Tensor) -> np.ndarray:
    """[-1, 1] (3, F, H, W) -> uint8 (F, H, W, 3)."""
    return ((video_CFHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def psnr_db(first: torch.Tensor, second: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two tensors in [-1, 1]."""
    return float(10 * torch.log10(4 / (first.float() - second.float()).pow(2).mean()))
