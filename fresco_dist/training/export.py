"""Stage 3: packages a trained transformer and autoencoder as the embedded model.

python -m fresco_dist.training.export --pipeline training_runs/transformer/pipeline
"""

import argparse
from pathlib import Path

from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

from fresco_dist.training import build


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=Path("training_runs/transformer/pipeline"))
    parser.add_argument("--vae", type=Path, help="refined autoencoder; default: the one in the pipeline")
    parser.add_argument("--out", type=Path, default=build.ASSET_PATH)
    args = parser.parse_args(argv)
    pipe = WanImageToVideoPipeline.from_pretrained(args.pipeline)
    if args.vae is not None:
        refined = AutoencoderKLWan.from_pretrained(args.vae).eval()
        for key in ("latents_mean", "latents_std"):
            if refined.config[key] != pipe.vae.config[key]:
                raise ValueError(f"--vae: {key} differs from the pipeline's. Refine that pipeline's own autoencoder.")
        pipe.register_modules(vae=refined)
    build.save_pipeline(pipe, args.out, status={"trained": True})
    for path in args.out.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
