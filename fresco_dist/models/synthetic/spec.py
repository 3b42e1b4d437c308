"""What planning needs to know of the model without weights."""

from fresco_dist.config import ModelConfig
from fresco_dist.schedule.spec import TRANSFORMER_KEYS, ModelSpec, tile_and_stride

CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, PATCH = 4, 8, 4, 2
VAE_TILE_PX = (256, 192)  # tile and stride


def read_spec(model: ModelConfig) -> ModelSpec:
    """A small latent video model in Wan's proportions."""
    tile = tile_and_stride(model.vae_tile, VAE_TILE_PX, SPATIAL_FACTOR)
    return ModelSpec(
        latent_channels=CHANNELS,
        condition_channels=CHANNELS,
        spatial_factor=SPATIAL_FACTOR,
        temporal_factor=TEMPORAL_FACTOR,
        patch=PATCH,
        weight_bytes=0,
        text_encoder_bytes=0,
        encode_tile_px=tile,
        decode_tile_px=tile,
        refuses=dict.fromkeys(TRANSFORMER_KEYS, "it has no weights"),
    )
