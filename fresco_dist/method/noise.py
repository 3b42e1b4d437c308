"""Position-keyed Gaussian noise: the noise of a cell depends on seed, stream and coordinates, on nothing else.

Counter-based: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of the counter
(channel // 4, t, h, w) under the key (seed, stream), then Box-Muller; the four words serve four channels. So any
worker can make any part of the canvas, and a crop of the noise is the noise of the crop. Of a seed above 32 bits, the
upper ones are a counter under the key of the lower, and what comes of that is the key.
"""

import math
from collections.abc import Sequence

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Four int64 tensors of 32-bit words from four broadcastable int64 tensors of 32-bit counters."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps to the low 64 bits, which is what is wanted
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def key_of(seed: int, stream: int) -> tuple[int, int]:
    """Philox' key, two words of 32 bits, for a seed of 64 bits and a stream of 32."""
    upper, key = seed >> 32, (seed & _MASK, stream)
    if not upper:
        return key
    zero = torch.zeros(1, dtype=torch.int64)
    first, second, *_ = philox([zero + upper, zero, zero, zero], key)
    return int(first), int(second)


def _box_muller(word_a: torch.Tensor, word_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two standard normals (float64) from two 32-bit words."""
    radius = (-2.0 * ((word_a.double() + 0.5) / 2**32).log()).sqrt()
    angle = word_b.double() * (2.0 * math.pi / 2**32)
    return radius * angle.cos(), radius * angle.sin()


def gaussian_noise(
    shape: Sequence[int],
    *,
    seed: int,
    stream: int = 0,
    origin: tuple[int, int] = (0, 0),
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standard normal noise, float32 of `shape` (C, T, H, W), for the canvas part that starts at `origin` (h, w).

    `seed` has up to 64 bits.
    """
    C, T, H, W = shape
    key = key_of(seed, stream)
    block, h, w = torch.meshgrid(
        torch.arange(math.ceil(C / 4), device=device),
        torch.arange(origin[0], origin[0] + H, device=device),
        torch.arange(origin[1], origin[1] + W, device=device),
        indexing="ij",
    )
    noise_CTHW = torch.empty(4 * block.shape[0], T, H, W, device=device)
    for t in range(T):  # frame by frame: bounded memory for the 64-bit words
        words = philox([block, torch.full_like(block, t), h, w], key)
        noise_CTHW[0::4, t], noise_CTHW[1::4, t] = _box_muller(words[0], words[1])
        noise_CTHW[2::4, t], noise_CTHW[3::4, t] = _box_muller(words[2], words[3])
    return noise_CTHW[:C]
