"""The words that names of tensors are made of, by component: what planning knows of a class without importing it.

A tensor whose name has another word has no place in the model. Words are not all: the loader has the last say.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fresco_dist.models.wan.names import diffusers_name

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # what each library calls a file of weights


@dataclass(frozen=True)
class Places:
    """A component: what its files are called, the words of its tensors, and the one before a block's number.

    `name_of` gives the library's name of a tensor that files may have under another one.
    """

    stem: str
    words: frozenset[str]
    blocks: str = ""
    name_of: Callable[[str], str] = str

    def without(self, words: frozenset[str]) -> "Places":
        return replace(self, words=self.words - words)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split()) | {"weight", "bias"}


IMAGE = frozenset(("add_k_proj", "add_v_proj", "norm_added_k", "image_embedder", "ff", "norm1", "pos_embed"))
WAN_TRANSFORMER = Places(
    DIFFUSERS,
    _words(
        "attn1 attn2 blocks condition_embedder ffn linear_1 linear_2 net norm2 norm_k norm_q patch_embedding proj"
        " proj_out scale_shift_table text_embedder time_embedder time_proj to_k to_out to_q to_v"
    )
    | IMAGE,
    blocks="blocks",
    name_of=diffusers_name,
)
WAN_VAE = Places(
    DIFFUSERS,
    _words(
        "attentions conv1 conv2 conv_in conv_out conv_shortcut decoder down_blocks downsampler encoder gamma mid_block"
        " norm norm1 norm2 norm_out post_quant_conv proj quant_conv resample resnets time_conv to_qkv up_blocks"
        " upsampler upsamplers"
    ),
)
UMT5 = Places(
    TRANSFORMERS,
    _words(
        "DenseReluDense SelfAttention block embed_tokens encoder final_layer_norm k layer layer_norm o q"
        " relative_attention_bias shared v wi wi_0 wi_1 wo"
    ),
    blocks="block",
)
CLIP_WORDS = _words(
    "embeddings encoder fc1 fc2 k_proj layer_norm1 layer_norm2 layers mlp out_proj q_proj self_attn v_proj"
)
CLIP_VISION = Places(
    TRANSFORMERS,
    CLIP_WORDS | _words("class_embedding patch_embedding position_embedding post_layernorm pre_layrnorm vision_model"),
    blocks="layers",
)
CLIP_TEXT = Places(
    TRANSFORMERS,
    CLIP_WORDS | _words("final_layer_norm position_embedding token_embedding text_model"),
    blocks="layers",
)
SD_UNET = Places(
    DIFFUSERS,
    _words(
        "attentions attn1 attn2 conv conv1 conv2 conv_in conv_norm_out conv_out conv_shortcut down_blocks downsamplers"
        " ff group_norm linear_1 linear_2 mid_block net norm norm1 norm2 norm3 proj proj_in proj_out resnets"
        " time_emb_proj time_embedding to_k to_out to_q to_v transformer_blocks up_blocks upsamplers"
    ),
)
SD_VAE = Places(
    DIFFUSERS,
    _words(
        "attentions conv conv1 conv2 conv_in conv_norm_out conv_out conv_shortcut decoder down_blocks downsamplers"
        " encoder group_norm mid_block norm1 norm2 post_quant_conv quant_conv resnets to_k to_out to_q to_v up_blocks"
        " upsamplers query key value proj_attn"  # the last four as older versions of diffusers saved them
    ),
)
