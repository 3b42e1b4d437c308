"""Canvas tensors in pieces that stay in a processor's cache: pointwise work on them needs no passes over memory."""

from collections.abc import Iterator

import torch

BLOCK_CELLS = 1 << 17  # half a megabyte of float32


def cache_blocks(*tensors_CTHW: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views (frames, H, W) of tensors of one shape (C, T, H, W), the same cells of each, BLOCK_CELLS or one frame."""
    _, T, H, W = tensors_CTHW[0].shape
    num_frames = max(1, BLOCK_CELLS // (H * W))
    for planes_THW in zip(*tensors_CTHW, strict=True):
        for t in range(0, T, num_frames):
            yield tuple(plane_THW[t : t + num_frames] for plane_THW in planes_THW)
