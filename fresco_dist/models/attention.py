"""Attention kernels through diffusers' dispatcher: try one on the shapes of the run, refuse it with its reason.

A kernel that cannot run is never replaced in silence: only `auto` chooses, and what it chose is in run.json.
"""

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from fresco_dist.config import Attention, InputError

DISPATCHER_NAMES = {
    Attention.native: "native",
    Attention.cudnn: "_native_cudnn",
    Attention.flash: "flash",
    Attention.flash3: "_flash_3",
    Attention.sage: "sage",
    Attention.xformers: "xformers",
}
# Fastest first on Hopper, then what any GPU has. Without sage: it computes in 8 bits, which only a user may choose.
AUTO_ORDER = (Attention.flash3, Attention.cudnn, Attention.flash, Attention.xformers, Attention.native)
NEEDS_CUDA = (Attention.cudnn, Attention.flash, Attention.flash3, Attention.sage)
# What kernels raise that cannot run: a missing package, a shape or type that they refuse, a call of nothing
FAILURES = (RuntimeError, ValueError, NotImplementedError, ImportError, TypeError, AttributeError)


def choose_attention(
    attention: Attention,
    *,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
    lengths: Sequence[tuple[int, int]],
) -> Attention:
    """`attention`, or for auto the first of AUTO_ORDER, once it has run on `device`; needs no model.

    `heads` is (number, size); `lengths` are (queries, keys) of the attentions of one forward, each tried once. Raises
    InputError with the kernel's own reason if it cannot run.
    """
    candidates = AUTO_ORDER if attention is Attention.auto else (attention,)
    reasons = []
    for candidate in candidates:
        try:
            _try(candidate, device, dtype, heads, lengths)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            if "allocate memory" in str(error):  # of a CPU
                raise torch.OutOfMemoryError(_first_line(error)) from error
            reasons.append(f"{candidate.value}: {_first_line(error)}")
        else:
            return candidate
    raise InputError(f"model.attention={attention.value} cannot run here: {'; '.join(reasons)} Try native.")


def _try(
    attention: Attention,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
    lengths: Sequence[tuple[int, int]],
) -> None:
    if attention in NEEDS_CUDA and device.type != "cuda":
        raise ValueError(f"it needs a CUDA GPU, and this is a {device.type}.")
    with attention_backend(DISPATCHER_NAMES[attention]), torch.inference_mode():
        for num_queries, num_keys in lengths:
            query = torch.zeros(1, num_queries, *heads, device=device, dtype=dtype)
            key = torch.zeros(1, num_keys, *heads, device=device, dtype=dtype)
            dispatch_attention_fn(query, key, key)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a kernel's failure shows here


def set_attention(transformer: ModelMixin, attention: Attention) -> None:
    """Switch a transformer to what `choose_attention` has returned."""
    transformer.set_attention_backend(DISPATCHER_NAMES[attention])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().split("\n")
    return lines[0] if lines[0] else type(error).__name__
