"""A clip decoded VAE tile by VAE tile in one place."""

from collections.abc import Sequence

import numpy as np
import torch

from fresco_dist.method.grid import Window, core_size
from fresco_dist.models.backbone import TileVae


def decode_clip(
    vae: TileVae, tiles: Sequence[Sequence[Window]], latents_CTHW: torch.Tensor, spatial_factor: int
) -> np.ndarray:
    """A whole clip, uint8 (F, H, W, 3), from normalised latents, one VAE tile after the other."""
    above: list[torch.Tensor | None] = [None] * len(tiles[0])
    rows = []
    for i, row in enumerate(tiles):
        right, cores = None, []
        for j, tile in enumerate(row):
            decoded = vae.decode_tile(latents_CTHW[(..., *tile.slices)])
            blended, above[j], right = vae.blend_decoded(decoded, above[j], right)
            height, width = core_size(tiles, i, j)
            cores.append(vae.to_pixels(blended, height * spatial_factor, width * spatial_factor).cpu())
        rows.append(torch.cat(cores, dim=2))
    return torch.cat(rows, dim=1).numpy()
