"""Builds the embedded model: real Wan classes at toy sizes, in the stock diffusers layout.

Owns every architecture constant of the embedded model and the way it is written to disk (safetensors only).
Never trains. The classes are those of Wan 2.1/2.2 image-to-video (arXiv 2503.20314), so the stock
`WanImageToVideoPipeline.from_pretrained(folder)` loads the result unchanged.

    python -m fresco_dist.training.build --out folder      # writes an untrained copy
"""

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from fresco_dist.training.prompts import VOCABULARY

ASSET_PATH = Path(__file__).resolve().parent.parent / "assets" / "fresco_tiny"
NATIVE_HEIGHT_PX, NATIVE_WIDTH_PX, NATIVE_FRAMES, NATIVE_FPS = 64, 96, 9, 6
NATIVE_STEPS, NATIVE_SHIFT = 6, 4.0
Z_DIM, SPATIAL_FACTOR, TEMPORAL_FACTOR, PIXEL_PATCH = 16, 4, 2, 2
ROPE_THETA = 10000.0  # WanRotaryPosEmbed's default
# Where the heads of the first blocks begin to look, in tokens (rows, columns): here, and one step to either side.
LOOKS = (((0, 0), (0, -1), (0, 1)), ((0, 0), (-1, 0), (1, 0)), ((0, 0), (0, -1), (0, 1)))
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
    """Causal video autoencoder, 4x in space and 2x in time, on 2 x 2 px patches as Wan 2.2's.

    Nothing runs at full resolution, which makes it far cheaper than the same factors without patches. It starts as a
    codec of single frames with small residual branches: convolutions see no past, and time is halved by averaging and
    doubled by repeating. What is learnt from stills (a ninth of the work) is then at once good for clips.
    """
    vae = AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=32,
        z_dim=Z_DIM,
        dim_mult=[1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        is_residual=True,
        in_channels=3 * PIXEL_PATCH**2,
        out_channels=3 * PIXEL_PATCH**2,
        patch_size=PIXEL_PATCH,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
        scale_factor_spatial=SPATIAL_FACTOR,
        scale_factor_temporal=TEMPORAL_FACTOR,
    )
    for module in vae.modules():
        name = type(module).__name__
        if name == "WanCausalConv3d" and module.kernel_size == (3, 3, 3):
            nn.init.zeros_(module.weight[:, :, :-1])
        if name == "WanResidualBlock":
            module.conv2.weight.data.mul_(0.1)
        if name == "WanAttentionBlock":
            nn.init.zeros_(module.proj.weight)
        if name == "WanResample" and hasattr(module, "time_conv"):
            _start_between_frames(module.time_conv)
    # The log-variance half starts at exp(-6): near-deterministic latents from the first step.
    nn.init.zeros_(vae.quant_conv.weight[Z_DIM:])
    nn.init.constant_(vae.quant_conv.bias[Z_DIM:], -6.0)
    return vae


def _start_between_frames(conv: nn.Conv3d) -> None:
    """Downsampling starts as the mean of the newest two frames, upsampling (twice the channels) as the newest twice."""
    newest = [-1] if conv.stride[0] == 1 else [-2, -1]
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    for part in conv.weight.data.split(conv.in_channels):
        for tap in newest:
            part[:, :, tap, 0, 0] = torch.eye(conv.in_channels) / len(newest)


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
    for block, offsets in zip(transformer.blocks, LOOKS):
        _start_looking(block.attn1, transformer.rope, offsets)
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


@torch.no_grad()
def make_directions_heard(
    encoder: UMT5EncoderModel, transformer: WanTransformer3DModel, tokenizer: T5Tokenizer
) -> None:
    """Half of the heads of every cross-attention begin by reading the words for directions, wherever they stand.

    A direction pays only once things are moved by it, and they are moved only once it is heard: from plain initial
    values neither began within thousands of clips. So left and right (up and down) begin as one common vector plus and
    minus another: the common one draws the attention, and the sign reaches every token nearly as strong as the picture.
    """
    rows = torch.tensor([tokenizer(f"the {word}").input_ids[1] for word in ("left", "right", "up", "down")])
    common, across, along, _ = encoder.shared.weight[rows].clone()
    encoder.shared.weight[rows] = 1.5 * torch.stack([common - across, common + across, common - along, common + along])
    sentences = torch.stack([rows, torch.full_like(rows, tokenizer.eos_token_id)], dim=1)
    embedder = transformer.condition_embedder.text_embedder
    words = embedder(encoder(sentences).last_hidden_state[:, 0])
    padding = embedder(torch.zeros(1, TEXT_DIM))
    for block in transformer.blocks:
        attention = block.attn2
        half = attention.inner_dim // 2
        key = (attention.norm_k(attention.to_k(words)).mean(0) - attention.norm_k(attention.to_k(padding))[0])[:half]
        attention.to_q.bias[:half] += 1.5 * key


@torch.no_grad()
def _start_looking(attention: WanAttention, rope: WanRotaryPosEmbed, offsets: tuple[tuple[int, int], ...]) -> None:
    """Lets each head begin by attending to one place (rows down, columns right) in every frame; training may change it.

    Copying the first frame, still or moved, is most of the task. A constant query and key, rotated by RoPE, score
    cos(theta * (distance - offset)) per frequency: the two fastest of height and width make a peak one token wide.
    """
    head_dim = attention.inner_dim // attention.heads
    for head, offset in enumerate(offsets):
        first = head * head_dim
        for projection in (attention.to_q, attention.to_k):
            projection.weight[first : first + head_dim] *= 0.1
            projection.bias[first : first + head_dim] = 0.0
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight[first : first + head_dim] = 0.3
        for start, axis_dim, distance in zip((rope.t_dim, rope.t_dim + rope.h_dim), (rope.h_dim, rope.w_dim), offset):
            for pair in range(2):
                at = slice(first + start + 2 * pair, first + start + 2 * pair + 2)
                angle = distance * ROPE_THETA ** (-2 * pair / axis_dim)
                attention.to_q.bias[at] = 2**0.5 * torch.tensor([math.cos(angle), math.sin(angle)])
                attention.to_k.bias[at] = torch.tensor([2**0.5, 0.0])
                for norm in (attention.norm_q, attention.norm_k):
                    norm.weight[at] = 2.0


def build_pipeline(*, seed: int = 0) -> WanImageToVideoPipeline:
    """All components with seeded, untrained weights, float32 on CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_encoder, transformer = build_text_encoder(tokenizer), build_transformer()
        make_directions_heard(text_encoder, transformer, tokenizer)
        return WanImageToVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder.eval(),
            vae=build_vae().eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=NATIVE_SHIFT),
            transformer=transformer.eval(),
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
