"""Stage 1: trains the video autoencoder on procedural clips, then measures its latents.

    python -m fresco_dist.training.vae --run training_runs/vae --steps 2400
    python -m fresco_dist.training.vae --run training_runs/decoder --refine training_runs/vae/vae --steps 1500

The first half of the steps sees single frames, STILLS of them in place of one clip: most of what an autoencoder has to
learn is spatial, and pictures are many where clips are few. Runs through the stock `encode` and `decode` (first frame,
then chunks with the causal cache), so what is trained is what inference runs. A share of the steps decodes latents
that were resized: the prior of the method is a resized latent, so resizing in latent space should look like resizing
the video (equivariance, arXiv 2502.09509).
`--refine` continues from a trained folder with the encoder frozen: latents stay as they are, so a transformer
trained on them fits the better decoder; it sees clips alone. Clips have all native frames: a cache state never trained
decodes badly.
Resumes from the run folder. Writes `vae/` there: averaged weights, with latents_mean and latents_std measured.
"""

import argparse
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import nn

from fresco_dist.training.build import NATIVE_FRAMES, NATIVE_HEIGHT_PX, NATIVE_WIDTH_PX, build_vae
from fresco_dist.training.data import HELD_OUT_SEEDS, sample_clip, to_tensor
from fresco_dist.training.loop import Average, Log, learning_rate, load_state, psnr_db, save_grid, save_state, to_frames
from fresco_dist.training.muon import Muon
from fresco_dist.training.team import Team, run_team

CLIP_PX, CLIP_FRAMES = 64, NATIVE_FRAMES
STILLS, STILLS_SHARE = 4, 0.5
RESIZED_SHARE, KL_WEIGHT = 0.1, 1e-5


def resized_pair(
    latents_BCTHW: torch.Tensor, video_BCFHW: torch.Tensor, factor: int, top: int, left: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop 1/factor of the latents, stretch it back endpoint-aligned; the video stretched by the same map.

    Returns (latents, video) of the input sizes. Latent cell i maps to cell i * (big - 1) / (small - 1), as the
    prior is resized (METHOD: trilinear, align_corners); pixel centres follow their cells.
    """
    cells = latents_BCTHW.shape[-1]
    small, px = cells // factor, video_BCFHW.shape[-1] // cells
    crop = latents_BCTHW[..., top : top + small, left : left + small]
    frames = latents_BCTHW.shape[2]
    latents = F.interpolate(crop, size=(frames, cells, cells), mode="trilinear", align_corners=True)
    centre = (torch.arange(cells * px, device=video_BCFHW.device) + 0.5) / px - 0.5
    inside = centre * (small - 1) / (cells - 1)
    ys, xs = ((inside + start + 0.5) * px / (cells * px) * 2 - 1 for start in (top, left))
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)
    flat = video_BCFHW.transpose(1, 2).flatten(0, 1)
    video = F.grid_sample(flat, grid.expand(len(flat), -1, -1, -1), padding_mode="border", align_corners=False)
    return latents, video.unflatten(0, (len(video_BCFHW), -1)).transpose(1, 2)


def training_loss(vae: AutoencoderKLWan, video_BCFHW: torch.Tensor, *, rng: torch.Generator) -> torch.Tensor:
    posterior = vae.encode(video_BCFHW).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=rng).to(mean)
    latents, target = mean + noise * torch.exp(0.5 * logvar), video_BCFHW
    if torch.rand((), generator=rng) < RESIZED_SHARE:
        cells = latents.shape[-1]
        top, left = torch.randint(0, cells // 2 + 1, (2,), generator=rng).tolist()
        latents, target = resized_pair(latents, target, 2, top, left)
    # The stock decode clamps to [-1, 1], which stops gradients there; pixels that saturate are already at a bound.
    error = vae.decode(latents).sample.float() - target
    divergence = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + KL_WEIGHT * divergence


@torch.no_grad()
def evaluate(vae: AutoencoderKLWan, *, num_clips: int = 12, device: str = "cpu") -> tuple[float, float, list]:
    """Round trip on held-out native clips: (PSNR in dB, PSNR of the first frames, sample rows)."""
    clips = [
        sample_clip(seed, height=NATIVE_HEIGHT_PX, width=NATIVE_WIDTH_PX, num_frames=NATIVE_FRAMES)
        for seed in range(num_clips)
    ]
    video = to_tensor(clips).to(device)
    output = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in video.split(4)])
    rows = [
        row
        for index in range(min(3, num_clips))
        for row in (to_frames(video[index])[::2], to_frames(output[index])[::2])
    ]
    return psnr_db(output, video), psnr_db(output[:, :, :1], video[:, :, :1]), rows


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, *, num_clips: int = 96, device: str = "cpu") -> tuple[list, list]:
    """Mean and standard deviation per latent channel over training clips."""
    clips = [
        sample_clip(HELD_OUT_SEEDS + index, height=NATIVE_HEIGHT_PX, width=NATIVE_WIDTH_PX, num_frames=NATIVE_FRAMES)
        for index in range(num_clips)
    ]
    latents = torch.cat([vae.encode(part.to(device)).latent_dist.mode().float() for part in to_tensor(clips).split(8)])
    flat = latents.transpose(0, 1).flatten(1)
    return flat.mean(1).tolist(), flat.std(1).tolist()


def start_from(folder: Path | None) -> AutoencoderKLWan:
    """A fresh autoencoder, or the one in `folder` with its encoder frozen."""
    if folder is None:
        return build_vae()
    vae = AutoencoderKLWan.from_pretrained(folder)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    return vae


def make_optimizers(vae: AutoencoderKLWan, *, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions inside, AdamW for the first and last ones, biases and norms."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in vae.named_parameters():
        if p.requires_grad:
            edge = not name.endswith("weight") or "conv_in" in name or "conv_out" in name
            (rest if edge else inner).append(p)
    return [Muon(inner, lr=lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=1e-4)]


def train(args: argparse.Namespace, team: Team) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    vae = start_from(args.refine).to(args.device).train()
    average = Average(vae, decay=0.995)
    optimizers = make_optimizers(vae, lr=args.lr)
    state = args.run / "state.safetensors"
    start = load_state(state, module=vae, average=average, optimizers=optimizers)
    log = Log(args.run)
    for step in range(start, args.steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(step, peak=args.lr, num_steps=args.steps, warmup=40)
        stills = args.refine is None and step < STILLS_SHARE * args.steps
        frames, count = (1, STILLS * args.batch) if stills else (CLIP_FRAMES, args.batch)
        first = HELD_OUT_SEEDS + args.seed * 10_000_000 + (step * team.size + team.rank) * STILLS * args.batch
        clips = [sample_clip(first + i, height=CLIP_PX, width=CLIP_PX, num_frames=frames) for i in range(count)]
        rng = torch.Generator().manual_seed(step * team.size + team.rank)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = training_loss(vae, to_tensor(clips).to(args.device), rng=rng)
        vae.zero_grad()
        loss.backward()
        team.average_gradients(vae)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(vae, step)
        done = step + 1
        if not team.leads:
            continue
        if done % 20 == 0 or done == args.steps:
            log.write(step=done, loss=round(loss.item(), 5))
        if done % args.save_every == 0 or done == args.steps:
            save_state(state, step=done, module=vae, average=average, optimizers=optimizers)
            report(vae, average, args, log, done)


def report(vae: AutoencoderKLWan, average: Average, args: argparse.Namespace, log: Log, step: int) -> None:
    """Evaluates the averaged weights and writes them to `vae/` with measured latent statistics."""
    averaged = start_from(args.refine).to(args.device).eval()
    average.copy_to(averaged)
    overall, first, rows = evaluate(averaged, num_clips=args.eval_clips, device=args.device)
    log.write(step=step, psnr_db=round(overall, 2), first_frame_psnr_db=round(first, 2))
    save_grid(args.run / "samples" / f"{step:06d}.png", rows)
    if args.refine is None:
        mean, std = measure_latents(averaged, num_clips=args.statistics_clips, device=args.device)
        averaged.register_to_config(latents_mean=mean, latents_std=std)
    averaged.save_pretrained(args.run / "vae", safe_serialization=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("training_runs/vae"))
    parser.add_argument("--refine", type=Path, help="folder of a trained autoencoder whose decoder to improve")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=2, help="clips per process and step")
    parser.add_argument("--processes", type=int, default=1, help="single-threaded workers, for CPU training")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--statistics-clips", type=int, default=96, help="clips that latents_mean and _std rest on")
    parser.add_argument("--eval-clips", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    num_parameters = sum(p.numel() for p in start_from(args.refine).parameters() if p.requires_grad)
    run_team(train, args, size=args.processes, num_parameters=num_parameters)


if __name__ == "__main__":
    main()
