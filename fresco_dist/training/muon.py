"""Muon: momentum whose matrix is orthogonalised by Newton-Schulz iteration, for linear and convolution weights.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale that matches
AdamW's step size is that of arXiv 2502.16982. `torch.optim.Muon` takes matrices only; a convolution here is the
matrix (out, in * kernel).
"""

from collections.abc import Iterable

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MATCHED_RMS = 0.2


def orthogonalised(matrix: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values land in about [0.7, 1.2]. bfloat16 is precise enough."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (wide / (wide.norm() + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per weight; `lr` is comparable to AdamW's."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # none of ours has one
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalised(weight.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = MATCHED_RMS * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)
