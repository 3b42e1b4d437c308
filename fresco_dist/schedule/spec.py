"""What planning must know of a model, read from its configuration files and never assumed.

Numbers and names only; models fill it in (`models.read_spec`), the plan and the memory estimate read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fresco_dist.config import Dtype, SamplerConfig, require

PROMPT_TOKENS = 512  # of the text encoders' models, padding included
ITEM_BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}  # of a number
TRANSFORMER_KEYS = (  # of models with a video transformer, and with two of them
    "image_last",
    "sampler.guidance_scale_2",
    "model.image_embedding",
    "model.loras",
    "model.quantization",
    "model.compile",
    "model.expert_offload",
    "model.offload",
)


@dataclass(frozen=True)
class TransformerSpec:
    """What the memory and the time of a transformer depend on; of one expert."""

    num_experts: int
    num_parameters: int
    block_parameters: int  # in the linear layers of the repeated blocks
    num_blocks: int
    width: int
    ffn_width: int
    per_token_timesteps: bool

    def flops_per_token(self, num_tokens: float) -> float:
        """Operations of the blocks for one of so many: linear layers, attention to the prompt, attention among them."""
        linear = (
            2 * self.block_parameters / self.num_blocks - 4 * self.width**2
        )  # two matrices take the prompt's tokens
        return self.num_blocks * (linear + 4 * self.width * (PROMPT_TOKENS + num_tokens))


@dataclass(frozen=True)
class VaeSpec:
    """What the memory of a decoded tile depends on."""

    width: int  # channels of the decoder's last stage
    patch: int  # pixels per side that are channels of its output
    residual: bool


def one_stage(sampler: SamplerConfig, risen_until: int | None = None) -> tuple[int, ...]:
    """The stages of a model with one expert."""
    return (0,) * sampler.num_steps


def tile_and_stride(vae_tile: int | None, default: tuple[int, int], spatial_factor: int) -> tuple[int, int]:
    """Sides of VAE tiles and their stride in pixels, three quarters of it, for `model.vae_tile`.

    Raises InputError unless both are whole latent cells.
    """
    if vae_tile is None:
        return default
    multiple = 4 * spatial_factor
    near = max(1, round(vae_tile / multiple)) * multiple
    allowed = f"a multiple of {multiple} pixels for this model, or null"
    require(vae_tile % multiple == 0, "model.vae_tile", vae_tile, allowed, f"Try {near}.")
    return vae_tile, vae_tile * 3 // 4


@dataclass(frozen=True)
class ModelSpec:
    """What planning needs to know of a model; read from its configuration files, never assumed."""

    latent_channels: int
    condition_channels: int
    spatial_factor: int  # pixels per latent cell
    temporal_factor: int  # frames per latent frame after the first
    patch: int  # latent cells per token side
    weight_bytes: int  # one replica, at the precision it runs in
    text_encoder_bytes: int  # loaded by one worker, before the canvas is
    encode_tile_px: tuple[int, int]  # VAE tile and stride, pixels
    decode_tile_px: tuple[int, int]
    trained: bool = True
    embeds_pictures: bool = False  # has an image encoder
    # the stage of each step, see `level.Step`, of a level that rises until a step; equal for equal models, though the
    # functions are not
    stages: Callable[[SamplerConfig, int | None], tuple[int, ...]] = field(default=one_stage, compare=False)
    flow_matching: bool = True  # else noise preserves variance
    transformer: TransformerSpec | None = None  # None: its activations cannot be estimated
    vae: VaeSpec | None = None
    max_frames: int | None = None  # None: any number
    max_tokens: int | None = None  # that its text encoder reads of a text, marks of its end included; None: unknown
    refuses: Mapping[str, str] = field(default_factory=dict)  # keys that must stay unset, and why
    requires: Mapping[str, str] = field(default_factory=dict)  # keys that must be set, and why
    notes: tuple[str, ...] = field(default=(), compare=False)  # what is odd about its files

    @property
    def grid_px(self) -> int:
        """Sides of canvas and windows are multiples of this many pixels."""
        return self.spatial_factor * self.patch
