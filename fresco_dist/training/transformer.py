"""Stage 2b: trains the denoising transformer and the text encoder on cached latents by flow matching.

    python -m fresco_dist.training.transformer --vae training_runs/vae/vae --cache training_runs/latents --steps 8000

Target: velocity eps - x0 at x = (1 - sigma) x0 + sigma eps, with sigma drawn as the sampler visits it (uniform, then
shifted). Matrices of the blocks are trained by Muon (orthogonalised momentum), all else by AdamW; what reads the
prompt learns slowly. Resumes from the run folder. Writes `pipeline/` there: the whole model with averaged weights,
loadable by the stock pipeline.
"""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from torch import nn

from fresco_dist.training import build
from fresco_dist.training.data import sample_clip
from fresco_dist.training.latents import load_cache
from fresco_dist.training.loop import Average, Log, learning_rate, load_state, save_grid, save_state
from fresco_dist.training.muon import Muon
from fresco_dist.training.team import Team, run_team

MOVING_WEIGHT = 4.0  # cells that something moving touches are few; still cells are learnt at once
TEXT_SHARE = 0.03
NATIVE_CELLS = build.NATIVE_HEIGHT_PX * build.NATIVE_WIDTH_PX // build.SPATIAL_FACTOR**2
PADDED_LENGTHS = (226, 512)  # the stock pipeline's default, and Wan's own


class PaddedTextProcessor(WanAttnProcessor):
    """Cross-attention over the real tokens and one padding token that counts `n` times (logit + log n).

    The stock pipeline pads the prompt with equal zero rows; equal keys under softmax are one key with log n added,
    so this is exact and skips hundreds of rows per layer.
    """

    bias: torch.Tensor  # of the batch that comes next

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        bias = self.bias.to(hidden_states.dtype)
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)


class Denoiser(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = build.build_tokenizer()
        self.text_encoder = build.build_text_encoder(tokenizer)
        self.transformer = build.build_transformer()
        build.make_directions_heard(self.text_encoder, self.transformer, tokenizer)
        self.text_processor = PaddedTextProcessor()
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.text_processor)

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        sigma_B: torch.Tensor,
        condition_BCTHW: torch.Tensor,
        tokens_BL: torch.Tensor,
        counts_B: torch.Tensor,
        padded_length: int,
    ) -> torch.Tensor:
        """Velocity (B, C, T, H, W); tokens_BL int64 padded beyond counts_B."""
        position = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        real_BL = position < counts_B[:, None]
        text = self.text_encoder(tokens_BL, real_BL.long()).last_hidden_state * real_BL[..., None]
        text = torch.cat([text, torch.zeros_like(text[:, :1])], dim=1)
        bias = torch.where(real_BL, 0.0, -math.inf)
        self.text_processor.bias = torch.cat([bias, (padded_length - counts_B[:, None]).log()], dim=1)[:, None, None]
        inputs = torch.cat([x_BCTHW, with_mask(condition_BCTHW)], dim=1)
        return self.transformer(inputs, sigma_B * 1000, text, return_dict=False)[0]


def with_mask(condition_BCTHW: torch.Tensor) -> torch.Tensor:
    """Prepends the stock pipeline's mask channels: 1 on the first latent frame, 0 after."""
    batch, _, frames, height, width = condition_BCTHW.shape
    mask = condition_BCTHW.new_zeros(batch, build.TEMPORAL_FACTOR, frames, height, width)
    mask[:, :, 0] = 1
    return torch.cat([mask, condition_BCTHW], dim=1)


def shifted(u: torch.Tensor, *, shift: float = build.NATIVE_SHIFT) -> torch.Tensor:
    return shift * u / (1 + (shift - 1) * u)


def draw_batch(cache: list[dict], batch: int, *, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch of one shape, with the cells of `batch` native clips; all clips are drawn equally often."""
    cells = [part["moving"][0].numel() for part in cache]
    counts = [round(batch * NATIVE_CELLS / size) for size in cells]
    shares = torch.tensor([len(part["tokens"]) / count for part, count in zip(cache, counts)])
    chosen = int(torch.multinomial(shares, 1, generator=rng))
    part = cache[chosen]
    index = torch.randint(len(part["tokens"]), (counts[chosen],), generator=rng)
    return {key: value[index] for key, value in part.items()}


def flow_matching_error(denoiser: Denoiser, batch: dict, *, rng: torch.Generator, device: str) -> torch.Tensor:
    """Squared velocity error (B, C, T, H, W); noise levels are stratified over the batch."""
    x0 = batch["latents"].float().to(device)
    count = len(x0)
    sigma = shifted((torch.arange(count) + torch.rand(count, generator=rng)) / count).to(device)
    eps = torch.randn(x0.shape, generator=rng).to(device)
    s = sigma.view(-1, 1, 1, 1, 1)
    longest = int(batch["token_counts"].max())
    padded_length = PADDED_LENGTHS[int(torch.rand((), generator=rng) < 0.25)]
    velocity = denoiser(
        (1 - s) * x0 + s * eps,
        sigma,
        batch["condition"].float().to(device),
        batch["tokens"][:, :longest].long().to(device),
        batch["token_counts"].float().to(device),
        padded_length,
    )
    return (velocity.float() - (eps - x0)).pow(2)


def reads_text(name: str) -> bool:
    """Whether a parameter decides what is heard of the prompt: its encoder, and where cross-attention looks."""
    return not name.endswith(("to_v.weight", "to_v.bias", "to_out.0.weight", "to_out.0.bias")) and any(
        part in name for part in ("text_encoder", "text_embedder", "attn2", ".norm2.")
    )


def make_optimizers(denoiser: Denoiser, *, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; AdamW for all else, with TEXT_SHARE of the rate for what reads the text.

    Before anything moves, prompts look like noise: at the full rate the text side is switched off within a hundred
    steps and does not come back.
    """
    text: list[nn.Parameter] = []
    blocks: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in denoiser.named_parameters():
        (text if reads_text(name) else blocks if ".blocks." in name and p.ndim == 2 else rest).append(p)
    return [
        Muon(blocks, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.AdamW([{"params": text, "share": TEXT_SHARE}], lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(args: argparse.Namespace, team: Team) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    cache = load_cache(args.cache)
    denoiser = Denoiser().to(args.device).train()
    average = Average(denoiser, decay=args.average_decay)
    optimizers = make_optimizers(denoiser, lr=args.lr)
    state = args.run / "state.safetensors"
    start = load_state(state, module=denoiser, average=average, optimizers=optimizers)
    log = Log(args.run)
    errors: list[torch.Tensor] = []
    moving_errors: list[float] = []
    for step in range(start, args.steps):
        lr = learning_rate(step, peak=args.lr, num_steps=args.steps, warmup=100)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * optimizer.param_groups[0].get("share", 1.0)
        rng = torch.Generator().manual_seed((args.seed * 1_000_003 + step) * team.size + team.rank)
        batch = draw_batch(cache, args.batch, rng=rng)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            error = flow_matching_error(denoiser, batch, rng=rng, device=args.device)
        for optimizer in optimizers:
            optimizer.zero_grad()
        moving = batch["moving"].to(args.device)[:, None, None].float()
        weight = 1 + MOVING_WEIGHT * moving
        (error * weight).mean().backward()
        team.average_gradients(denoiser)
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(denoiser, step)
        errors.append(error.detach().mean((0, 1, 3, 4)).cpu())
        moving_errors.append(float((error.detach() * moving).mean() / moving.mean().clamp(min=1e-6)))
        done = step + 1
        if not team.leads:
            continue
        if done % 25 == 0 or done == args.steps:
            by_frame = torch.stack(errors).mean(0)
            log.write(
                step=done,
                loss=round(by_frame.mean().item(), 4),
                loss_moving=round(sum(moving_errors) / len(moving_errors), 4),
                by_latent_frame=[round(value, 4) for value in by_frame.tolist()],
                lr=round(lr, 6),
            )
            errors.clear()
            moving_errors.clear()
        if done % args.save_every == 0 or done == args.steps:
            save_state(state, step=done, module=denoiser, average=average, optimizers=optimizers)
            export(average, args, step=done)


def averaged_pipeline(average: Average, vae_path: Path) -> WanImageToVideoPipeline:
    """The stock pipeline with averaged weights and the trained autoencoder, on CPU."""
    denoiser = Denoiser()
    average.copy_to(denoiser)
    for block in denoiser.transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    pipe = build.build_pipeline()
    pipe.register_modules(
        vae=AutoencoderKLWan.from_pretrained(vae_path).eval(),
        transformer=denoiser.transformer.eval(),
        text_encoder=denoiser.text_encoder.eval(),
    )
    return pipe


def export(average: Average, args: argparse.Namespace, *, step: int) -> None:
    """Writes `pipeline/` and a sample grid from the stock pipeline: truth above, generated below."""
    pipe = averaged_pipeline(average, args.vae)
    build.save_pipeline(pipe, args.run / "pipeline", status={"trained": True, "transformer_steps": step})
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for seed in range(args.num_samples):
        height, width, frames = build.NATIVE_HEIGHT_PX, build.NATIVE_WIDTH_PX, build.NATIVE_FRAMES
        clip = sample_clip(seed, height=height, width=width, num_frames=frames)
        video = pipe(
            image=Image.fromarray(clip.frames[0]),
            prompt=clip.prompt,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=build.NATIVE_STEPS,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
        ).frames[0]
        rows += [clip.frames[::2], (video[::2] * 255).round().astype("uint8")]
    if rows:
        save_grid(args.run / "samples" / f"{step:06d}.png", rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, default=Path("training_runs/vae/vae"))
    parser.add_argument("--cache", type=Path, default=Path("training_runs/latents"))
    parser.add_argument("--run", type=Path, default=Path("training_runs/transformer"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=5, help="native clips per process and step")
    parser.add_argument("--processes", type=int, default=1, help="single-threaded workers, for CPU training")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--average-decay", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    num_parameters = sum(p.numel() for p in Denoiser().parameters())
    run_team(train, args, size=args.processes, num_parameters=num_parameters)


if __name__ == "__main__":
    main()
