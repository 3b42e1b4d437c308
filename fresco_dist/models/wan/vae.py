"""A diffusers video VAE, used tile by tile so that tiles can be spread over workers.

Decoded tiles stay in the VAE's raw space (still patched, not clamped) until they are blended, as diffusers does.
Shapes: C latent or raw channels, T latent frames, F frames, H, W in the unit of the space at hand.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from fresco_dist.models.backbone import floats_to_pixels


class TiledVae:
    """The VAE of one worker: encode and decode single tiles."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self._patch = vae.config.patch_size or 1
        shape = (-1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)

    def encode_tile(self, video_3FHW: torch.Tensor) -> torch.Tensor:
        """Raw latent mean (C, T, H, W), float32, of a pixel tile in [-1, 1]; not yet normalised."""
        return self.vae.encode(video_3FHW[None].to(self.vae.dtype)).latent_dist.mode()[0].float()

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

    def to_pixels(self, raw: torch.Tensor, bits: int = 8) -> torch.Tensor:
        """Pixels (F, H, W, 3) of a raw tile or a part of it, unpatched; see `floats_to_pixels`."""
        video_3FHW = (unpatchify(raw[None], patch_size=self._patch) if self._patch > 1 else raw[None])[0]
        return floats_to_pixels(video_3FHW, bits)
