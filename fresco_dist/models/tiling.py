"""VAE tiles put together, one at a time or all at once: neighbours fade into each other where they overlap.

Equal to diffusers' `tiled_encode` and `tiled_decode`, whatever the unit of the space: a tile of the latent canvas, or
what a decoder made of it. Shapes: C channels, T latent frames, F frames, H, W in the unit of the space at hand.
"""

from collections.abc import Iterable, Iterator

import torch

from fresco_dist.method.grid import Tiles, Window, core_size, tiles_over


def blend_tile(
    tiles: Tiles, i: int, j: int, raw: torch.Tensor, above: torch.Tensor | None, left: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tile (i, j), raw (..., H, W), faded in from what `above` and `left` are: the neighbours' parts inside it.

    Returns the part that is kept, and those that the tiles below and to the right take: nothing where there is none.
    """
    height, width = (side * raw.shape[-1] // tiles[i][j].width for side in core_size(tiles, i, j))
    blended = raw if above is None else _fade(above, raw, -2)
    blended = blended if left is None else _fade(left, blended, -1)
    return blended[..., :height, :width], blended[..., height:, :], blended[..., width:]


def _fade(before: torch.Tensor, tile: torch.Tensor, dim: int) -> torch.Tensor:
    """The tile, whose first cells along `dim` are weighted k / n and those of `before` 1 - k / n, for k of n."""
    n = before.shape[dim]
    weight = torch.arange(n, dtype=torch.float64, device=tile.device) / n
    weight = weight[:, None] if dim == -2 else weight
    both = before * (1 - weight).to(tile.dtype) + tile.narrow(dim, 0, n) * weight.to(tile.dtype)
    return torch.cat([both, tile.narrow(dim, n, tile.shape[dim] - n)], dim)


def blend_tiles(tiles: Tiles, raw: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The kept part of each tile, row by row, from raw tiles (..., H, W) in that order."""
    remaining = iter(raw)
    above: list[torch.Tensor | None] = [None] * len(tiles[0])
    for i, row in enumerate(tiles):
        left = None
        for j in range(len(row)):
            core, above[j], left = blend_tile(tiles, i, j, next(remaining), above[j], left)
            yield core


def blend_part(tiles: Tiles, part: Window, raw: Iterable[torch.Tensor]) -> torch.Tensor:
    """A part (..., H, W) of the whole, from the raw tiles of it that `grid.tiles_over` names, in their order."""
    over = tiles_over(tiles, part)
    return join_tiles(over, blend_tiles(over, raw))[(..., *part.within(over[0][0]).slices)]


def join_tiles(tiles: Tiles, cores: Iterable[torch.Tensor], dim: int = -2) -> torch.Tensor:
    """The whole, from the kept parts of its tiles; `dim` is their height's dimension, the width's is the next."""
    parts, columns = list(cores), len(tiles[0])
    rows = [torch.cat(parts[start : start + columns], dim + 1) for start in range(0, len(parts), columns)]
    return torch.cat(rows, dim)
