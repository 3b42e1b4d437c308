"""The whole command with the embedded model on this machine, against a plain loop of the stock pipeline's parts.

Wall time from command to video: the in-process executor, one Ray worker, two, in both dispatch modes; and a loop in one
process over the same windows with the same steps, prior and fusion, written here with diffusers alone, in one thread
and in two.

    python benchmarks/embedded.py [--repeats 1]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

RUNS = {
    "in-process": ["cluster.executor=inprocess"],
    "1 Ray worker, allreduce": ["cluster.num_workers=1", "dispatch.mode=allreduce"],
    "1 Ray worker, wavefront": ["cluster.num_workers=1", "dispatch.mode=wavefront"],
    "2 Ray workers, allreduce": ["cluster.num_workers=2", "dispatch.mode=allreduce"],
    "2 Ray workers, wavefront": ["cluster.num_workers=2", "dispatch.mode=wavefront"],
}
STOCK_THREADS = {"stock parts, 1 thread": 1, "stock parts, 2 threads": 2}


def command_s(overrides: list[str], folder: Path) -> float:
    """Seconds of the command, the interpreter's start included."""
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "fresco_dist.launch", *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def stock_s(run: Path, threads: int) -> float:
    """Seconds of the same work by this script in a process of its own, settings as `run` recorded them."""
    began_s = time.perf_counter()
    command = [sys.executable, __file__, "--stock", str(run), "--threads", str(threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def run_stock(run: dict, out: Path, threads: int) -> None:
    """Animate the bundled picture with diffusers' classes: one prior, then windows one after the other."""
    import torch
    from diffusers import WanImageToVideoPipeline
    from PIL import Image

    from fresco_dist.media.video import write_video

    torch.set_num_threads(threads)
    assets = files("fresco_dist") / "assets"
    pipeline = WanImageToVideoPipeline.from_pretrained(str(assets / "fresco_tiny"))
    pipeline.set_progress_bar_config(disable=True)
    config, picture = run["config"], Image.open(str(assets / "fresco.png")).convert("RGB")
    prompt, num_frames = (assets / "fresco.txt").read_text().strip(), config["video"]["num_frames"]
    num_steps, (width, height) = config["sampler"]["num_steps"], picture.size
    native = (config["prior"]["area"] * width / height) ** 0.5
    pixel = 16
    small = (int(native) // pixel * pixel, int(native * height / width) // pixel * pixel)
    with torch.inference_mode():
        prior = pipeline(
            image=picture.resize(small), prompt=prompt, width=small[0], height=small[1], num_frames=num_frames,
            num_inference_steps=num_steps, guidance_scale=1.0, output_type="latent",
        ).frames  # fmt: skip
        embeds, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        image = pipeline.video_processor.preprocess(picture, height=height, width=width)
        tile = config["model"]["vae_tile"]
        pipeline.vae.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
        x, condition = pipeline.prepare_latents(
            image, 1, pipeline.vae.config.z_dim, height, width, num_frames, torch.float32, torch.device("cpu"), None
        )
        z = torch.nn.functional.interpolate(prior, size=x.shape[2:], mode="trilinear", align_corners=True)
        pipeline.scheduler.set_timesteps(num_steps)
        for step, t in enumerate(pipeline.scheduler.timesteps):
            total, weight = torch.zeros_like(x), torch.zeros(x.shape[-2:])
            for top, left, rows, columns in run["grid"]["windows"]:
                at = (..., slice(top, top + rows), slice(left, left + columns))
                hidden = torch.cat([x[at], condition[at]], dim=1)
                total[at] += pipeline.transformer(hidden, t.expand(1), embeds, return_dict=False)[0]
                weight[at] += 1.0
            sigma = pipeline.scheduler.sigmas[step]
            lam = config["fusion"]["prior_strength"] if step == 0 else 0.0
            m = (total + lam * sigma * (x - z)) / (weight + lam * sigma**2)
            x = pipeline.scheduler.step(m, t, x, return_dict=False)[0]
        shape = (1, -1, 1, 1, 1)
        mean, std = (torch.tensor(getattr(pipeline.vae.config, f"latents_{k}")).view(shape) for k in ("mean", "std"))
        video = pipeline.vae.decode(x * std + mean, return_dict=False)[0]
        frames = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    write_video(out / "stock.mp4", (frames * 255).round().astype("uint8"), picture.size, config["video"]["fps"])


def main() -> None:
    """Print a row per way of running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stock:
        run_stock(json.loads((arguments.stock / "run.json").read_text()), arguments.stock, arguments.threads)
        return
    times: dict[str, list[float]] = {}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for number, (name, overrides) in enumerate(RUNS.items()):
                out = Path(folder) / f"{number}_{repeat}"
                times.setdefault(name, []).append(command_s(overrides, out))
                digests.add(json.loads((out / "run.json").read_text())["latents_sha256"])
            for name, threads in STOCK_THREADS.items():
                times.setdefault(name, []).append(stock_s(out, threads))
    assert len(digests) == 1, digests
    baseline = statistics.median(times["1 Ray worker, allreduce"])
    print("| | seconds, median (min - max) | over one Ray worker |")
    print("|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median:.1f} ({min(seconds):.1f} - {max(seconds):.1f}) | {median / baseline:.2f} |")


if __name__ == "__main__":
    main()
