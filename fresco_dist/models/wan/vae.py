"""A diffusers video VAE, used tile by tile so that tiles can be spread over workers.

Tiles, blending and cropping are those of diffusers' own `tiled_encode` and `tiled_decode`; the results are equal.
Decoded tiles stay in the VAE's raw space (still patched, not clamped) until they are blended, as diffusers does.
Shapes: C latent or raw channels, T latent frames, F frames, H, W in the unit of the space at hand.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from fresco_dist.method.grid import Window, core_size
from fresco_dist.models.wan.spec import STRIDE_PX, TILE_PX, encode_tile_px


class TiledVae:
    """The VAE of one worker: encode, decode and blend single tiles."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self._patch = vae.config.patch_size or 1
        self._factor = vae.config.scale_factor_spatial
        shape = (-1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)

    def encode_tile(self, video_3FHW: torch.Tensor) -> torch.Tensor:
        """Raw latent mean (C, T, H, W), float32, of a pixel tile in [-1, 1]; not yet normalised."""
        return self.vae.encode(video_3FHW[None].to(self.vae.dtype)).latent_dist.mode()[0].float()

    def assemble(self, tiles: Sequence[Sequence[Window]], encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        """The raw latent canvas (C, T, H, W) from its encoded tiles (row-major), blended as `tiled_encode` does."""
        tile_px, stride_px = encode_tile_px(self.vae.config.patch_size)
        extent = (tile_px - stride_px) // self._factor
        remaining = iter(encoded)
        above: list[torch.Tensor | None] = [None] * len(tiles[0])
        canvas_rows = []
        for i, row in enumerate(tiles):
            left, cores = None, []
            for j in range(len(row)):
                left = above[j] = self._blend(next(remaining), above[j], left, extent)
                height, width = core_size(tiles, i, j)
                cores.append(left[..., :height, :width])
            canvas_rows.append(torch.cat(cores, dim=-1))
        return torch.cat(canvas_rows, dim=-2)

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        """Latents of zero mean and unit variance from raw ones."""
        return (raw_CTHW.float() - self._mean) * (1.0 / self._std)

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """Raw decoded tile (channels, F, H, W), float32, from normalised latents, before blending and clamping."""
        vae = self.vae
        z_1CTHW = (latents_CTHW * self._std + self._mean)[None].to(vae.dtype)
        vae.clear_cache()
        frames = []
        for k in range(z_1CTHW.shape[2]):  # causal in time: one latent frame after the other, with cached features
            vae._conv_idx = [0]
            z_k = vae.post_quant_conv(z_1CTHW[:, :, k : k + 1])
            frames.append(vae.decoder(z_k, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=k == 0))
        vae.clear_cache()
        return torch.cat(frames, dim=2)[0].float()

    def blend_decoded(
        self, tile: torch.Tensor, above: torch.Tensor | None, left: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blend a raw tile into the bottom edge of the tile above and the right edge of the one to its left.

        Returns the blended tile and its own bottom and right edges, for the tiles below and to the right.
        """
        extent = (TILE_PX - STRIDE_PX) // self._patch
        tile = self._blend(tile, above, left, extent)
        return tile, tile[..., -extent:, :], tile[..., -extent:]

    def to_pixels(self, blended: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """uint8 (F, height, width, 3): the tile's top left part, unpatched, clamped and scaled to 0..255."""
        cut = blended[..., : height // self._patch, : width // self._patch][None]
        video_3FHW = (unpatchify(cut, patch_size=self._patch) if self._patch > 1 else cut)[0].float()
        return video_3FHW.clamp(-1.0, 1.0).mul(0.5).add(0.5).mul(255.0).round().byte().permute(1, 2, 3, 0)

    def _blend(
        self, tile: torch.Tensor, above: torch.Tensor | None, left: torch.Tensor | None, extent: int
    ) -> torch.Tensor:
        tile_1 = tile[None].clone()
        if above is not None:
            tile_1 = self.vae.blend_v(above[None], tile_1, extent)
        if left is not None:
            tile_1 = self.vae.blend_h(left[None], tile_1, extent)
        return tile_1[0]
