"""Stage 2a: encodes clips once, so that the transformer trains on latents from disk.

    python -m fresco_dist.training.latents --vae training_runs/vae/vae --clips 3072

Owns the latent cache: safetensors shards, one picture shape each. Half of the clips have half the native area: what a
clip teaches grows with what moves in it, what it costs with its area. Half of the clips are aimed at something that
travels, every second of these at angels: nothing else goes up or down. A quarter is aimed at the light. Condition
latents are made as the stock image-to-video pipeline makes them: the encoding of the first frame followed by grey
frames.
"""

import argparse
import logging
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer

from fresco_dist.training.build import NATIVE_FRAMES, SPATIAL_FACTOR, build_tokenizer
from fresco_dist.training.data import HELD_OUT_SEEDS, Clip, sample_clip, to_tensor
from fresco_dist.training.prompts import VOCABULARY

logger = logging.getLogger(__name__)
# (height, width) px and share of the clips; sides are multiples of 16 because the stock pipeline asks for that.
SHAPES = (((48, 64), 0.5), ((64, 96), 0.3), ((96, 64), 0.1), ((80, 80), 0.1))
AIMS = ("angels", "light", "figures", None, "angels", "light", "boats", None)  # of one clip after the other
MAX_TOKENS = 96


def shape_of(index: int) -> tuple[int, int]:
    """Shape of shard `index`: seeded draw with the shares above."""
    rng = np.random.default_rng((index, 0x54A9E))
    return SHAPES[rng.choice(len(SHAPES), p=[share for _, share in SHAPES])][0]


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised (latents, condition), both float32 (B, C, T, h, w)."""
    video = to_tensor(clips).to(vae.device)
    still = torch.zeros_like(video)
    still[:, :, 0] = video[:, :, 0]
    latents = vae.encode(torch.cat([video, still])).latent_dist.mode().float()
    mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=vae.device).view(1, -1, 1, 1, 1)
    return tuple(((latents - mean) / std).chunk(2))


def to_cells(masks: list[np.ndarray]) -> torch.Tensor:
    """bool (B, h, w): latent cells that hold any true pixel of the (H, W) masks."""
    pixels = torch.from_numpy(np.stack(masks)).float()[:, None]
    return F.max_pool2d(pixels, SPATIAL_FACTOR)[:, 0] > 0


def write_shard(
    path: Path, index: int, vae: AutoencoderKLWan, tokenizer: T5Tokenizer, *, num_clips: int, seed: int, bf16: bool
) -> None:
    height, width = shape_of(index)
    first = HELD_OUT_SEEDS + seed * 10_000_000 + index * num_clips
    parts = []
    prompts = []
    moving = []
    for start in range(first, first + num_clips, 8):
        seeds = range(start, min(start + 8, first + num_clips))
        clips = [
            sample_clip(s, height=height, width=width, num_frames=NATIVE_FRAMES, around=AIMS[s % len(AIMS)])
            for s in seeds
        ]
        prompts += [clip.prompt for clip in clips]
        moving.append(to_cells([clip.moving for clip in clips]))
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
            parts.append([part.half().cpu() for part in encode_clips(vae, clips)])
    tokens = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    aside = path.with_suffix(".partial")
    save_file(
        {
            "latents": torch.cat([latents for latents, _ in parts]),
            "condition": torch.cat([condition for _, condition in parts]),
            "moving": torch.cat(moving),
            "tokens": tokens.input_ids.to(torch.int16),
            "token_counts": tokens.attention_mask.sum(1).to(torch.int16),
        },
        aside,
        metadata={"vocabulary": vocabulary_digest()},
    )
    aside.replace(path)


def vocabulary_digest() -> str:
    """SHA-256 of the words that token ids stand for."""
    return sha256(" ".join(VOCABULARY).encode()).hexdigest()


def load_cache(folder: Path) -> list[dict[str, torch.Tensor]]:
    """All shards, merged by shape; each entry has latents, condition (B, C, T, h, w) float16,
    moving (B, h, w) bool, tokens, token_counts. Raises ValueError if there is none, or one of another vocabulary."""
    by_shape: dict[tuple, list[dict]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("vocabulary") != vocabulary_digest():
                raise ValueError(f"--cache: {path} has tokens of another vocabulary. Remove it and write it again.")
        shard = load_file(path)
        by_shape.setdefault(tuple(shard["latents"].shape[1:]), []).append(shard)
    if not by_shape:
        raise ValueError(f"--cache: no shard in {folder}. Run `python -m fresco_dist.training.latents` first.")
    return [{key: torch.cat([shard[key] for shard in shards]) for key in shards[0]} for shards in by_shape.values()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, default=Path("training_runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("training_runs/latents"))
    parser.add_argument("--clips", type=int, default=3072)
    parser.add_argument("--shard-clips", type=int, default=64)
    parser.add_argument("--part", type=int, default=0, help="this process writes every `parts`-th shard from `part`")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vae = AutoencoderKLWan.from_pretrained(args.vae).to(args.device).eval()
    tokenizer = build_tokenizer()
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.part, -(-args.clips // args.shard_clips), args.parts):
        path = args.out / f"{index:05d}.safetensors"
        if not path.exists():
            write_shard(path, index, vae, tokenizer, num_clips=args.shard_clips, seed=args.seed, bf16=args.bf16)
            logger.info("shard %d %s", index, shape_of(index))


if __name__ == "__main__":
    main()
