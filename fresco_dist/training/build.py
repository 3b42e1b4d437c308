"""Builds the embedded model: real Wan classes at toy sizes, in the stock diffusers layout.

Owns every architecture constant of the embedded model and the way it is written to disk (safetensors only).
Never trains. The classes are those of Wan 2.1/2.2 image-to-video (arXiv 2503.20314), so the stock
`WanImageToVideoPipeline.from_pretrained(folder)` loads the result unchanged.

    python -m fresco_dist.training.build --out folder      # writes an untrained copy
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from fresco_dist.training.prompts import VOCABULARY

ASSET_PATH = Path(__file__).resolve().parent.parent / "assets" / "fresco_tiny"
NATIVE_HEIGHT_PX, NATIVE_WIDTH_PX, NATIVE_FRAMES, NATIVE_FPS = 64, 96, 13, 8
NATIVE_STEPS, NATIVE_SHIFT = 8, 3.0
Z_DIM, SPATIAL_FACTOR, TEMPORAL_FACTOR = 16, 4, 4
TEXT_DIM, TEXT_TOKENS = 128, 226  # 226: what the stock pipeline pads prompts to


def build_tokenizer() -> T5Tokenizer:
    """Unigram tokenizer over the words of the prompts, with letters as fallback for any other word."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -20.0)]
    pieces += [(f"▁{word}", -1.0) for word in VOCABULARY]
    pieces += [(letter, -20.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build_text_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_DIM,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
    )
    encoder = UMT5EncoderModel(config)
    _start_reading_neighbours(encoder)
    return encoder


def _start_reading_neighbours(encoder: UMT5EncoderModel) -> None:
    """Each head begins by attending to one relative position, so that `left` knows of `figures` and the reverse."""
    for block, offsets in zip(encoder.encoder.block, ((-4, -2, 2, 4), (-3, -1, 1, 3))):
        attention = block.layer[0].SelfAttention
        for head, offset in enumerate(offsets):
            bucket = attention._relative_position_bucket(torch.tensor(offset))
            attention.relative_attention_bias.weight.data[bucket, head] = 5.0


def build_vae() -> AutoencoderKLWan:
    """Causal video autoencoder, 4x in time and space, with the parameter-free shortcuts of Wan 2.2.

    Residual branches start at zero, so that training begins from the shortcuts alone.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        is_residual=True,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
        scale_factor_spatial=SPATIAL_FACTOR,
        scale_factor_temporal=TEMPORAL_FACTOR,
    )
    for module in vae.modules():
        if type(module).__name__ == "WanResidualBlock":
            module.conv2.weight.data.mul_(0.1)
        if type(module).__name__ == "WanAttentionBlock":
            nn.init.zeros_(module.proj.weight)
    # The log-variance half starts at exp(-6): near-deterministic latents from the first step.
    nn.init.zeros_(vae.quant_conv.weight[Z_DIM:])
    nn.init.constant_(vae.quant_conv.bias[Z_DIM:], -6.0)
    return vae


def build_transformer() -> WanTransformer3DModel:
    """Image-to-video denoiser: noisy latents, first-frame mask and condition latents on the channel axis."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=2 * Z_DIM + TEMPORAL_FACTOR,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=576,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        image_dim=None,
        rope_max_seq_len=1024,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    for block in transformer.blocks[:2]:
        _start_looking_here(block.attn1, transformer.rope)
    make_words_heard(transformer)
    return transformer


@torch.no_grad()
def make_words_heard(transformer: WanTransformer3DModel) -> None:
    """Raises the share of single words in cross-attention at the start of training.

    By default nine tenths of the attention rest on the padding key, which stands for some 200 equal rows, and the
    rest spreads evenly over the words: a direction then reaches the picture about 500 times too faintly to be learnt.
    So words are embedded more strongly, attention is sharper, and every query turns away from the padding key.
    """
    embedder = transformer.condition_embedder.text_embedder
    embedder.linear_1.weight.mul_(2.0)
    embedder.linear_2.weight.mul_(4.0)
    padding = embedder(torch.zeros(1, TEXT_DIM))
    for block in transformer.blocks:
        attention = block.attn2
        attention.norm_q.weight.mul_(1.6)
        attention.norm_k.weight.mul_(1.6)
        key = attention.norm_k(attention.to_k(padding))[0]
        attention.to_q.bias.sub_(0.3 * key)


def _start_looking_here(attention: nn.Module, rope: nn.Module) -> None:
    """Lets the first head begin by attending to its own place in every frame; training is free to change it.

    Copying the first frame is most of the task. A constant query and key, rotated by RoPE, score cos(theta * offset)
    per frequency: the two fastest frequencies of height and width make a peak one token wide.
    """
    head_dim = attention.inner_dim // attention.heads
    fast = torch.zeros(head_dim, dtype=torch.bool)
    for start in (rope.t_dim, rope.t_dim + rope.h_dim):
        fast[start : start + 4] = True
    for projection, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        projection.weight.data[:head_dim] *= 0.1
        projection.bias.data[:head_dim] = fast.float()
        norm.weight.data[:head_dim] = torch.where(fast, 2.0, 0.3)


def build_pipeline(*, seed: int = 0) -> WanImageToVideoPipeline:
    """All components with seeded, untrained weights, float32 on CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        return WanImageToVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(tokenizer).eval(),
            vae=build_vae().eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=NATIVE_SHIFT),
            transformer=build_transformer().eval(),
        )


def save_pipeline(pipe: WanImageToVideoPipeline, folder: Path, *, status: dict) -> None:
    """Writes the diffusers folder and `status.json` (at least `trained`: bool) beside it."""
    pipe.save_pretrained(folder, safe_serialization=True)
    facts = {
        "native_height_px": NATIVE_HEIGHT_PX,
        "native_width_px": NATIVE_WIDTH_PX,
        "num_frames": NATIVE_FRAMES,
        "fps": NATIVE_FPS,
        "num_steps": NATIVE_STEPS,
        "guidance_scale": 1.0,
        "shift": NATIVE_SHIFT,
    }
    (Path(folder) / "status.json").write_text(json.dumps({**status, **facts}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write an untrained copy of the embedded model.")
    parser.add_argument("--out", type=Path, default=ASSET_PATH)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    save_pipeline(build_pipeline(seed=args.seed), args.out, status={"trained": False})


if __name__ == "__main__":
    main()
