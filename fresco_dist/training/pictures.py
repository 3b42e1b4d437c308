"""Writes held-out pictures with their activity maps and prompts, for sweeps over pictures.

    python -m fresco_dist.training.pictures --out pictures --num-pictures 8 --size 192 128
    python -m fresco_dist.launch --config-dir pictures -m '+picture=glob(*)' metrics=true fusion.prior_strength=0,1,4

`pictures/picture/` holds a file per picture for the command line: what belongs together is chosen together.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fresco_dist.training.build import NATIVE_FRAMES
from fresco_dist.training.prompts import LIGHT, VERBS, Motion, light_motion
from fresco_dist.training.scenes import Scene, make_scene


def night_or_day(seed: int) -> int:
    """Night (-1) or day (+1) in turn."""
    return 1 if seed % 2 else -1


def open_scene(seed: int, width: int, height: int, *, light_sign: int = 0) -> Scene:
    """A held-out picture (seeds below 100000) in which everything moves and the prompt names no direction.

    Night comes (`light_sign` -1) or day (+1) or neither (0); the prompt does not say which, the moon or the sun does.
    """
    rng = np.random.default_rng((seed, 0xCA))
    motions = {kind: Motion(options[0][0], int(rng.choice((-1, 1))), named=False) for kind, options in VERBS.items()}
    if light_sign:
        motions[LIGHT] = light_motion(light_sign, named=False)
    return make_scene(seed, width=width, height=height, motions=motions)


def write_scene(scene: Scene, folder: Path, name: str) -> None:
    """NAME.png, NAME_activity.png (white where something moves) and NAME.txt, the prompt."""
    Image.fromarray(scene.frames(1)[0]).save(folder / f"{name}.png")
    activity = scene.activity_of(NATIVE_FRAMES)
    Image.fromarray(activity.astype(np.uint8) * 255).save(folder / f"{name}_activity.png")
    (folder / f"{name}.txt").write_text(scene.prompt + "\n")


def write_choice(folder: Path, name: str, prompt: str) -> None:
    """`+picture=NAME` for the files of `write_scene`, as a file below FOLDER/picture; JSON is YAML."""
    path = folder.resolve() / name
    values = {"image": f"{path}.png", "prompt": prompt, "fusion": {"activity_map": f"{path}_activity.png"}}
    (folder / "picture" / f"{name}.yaml").write_text(f"# @package _global_\n{json.dumps(values, indent=1)}\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-pictures", type=int, default=8)
    parser.add_argument("--light", action="store_true", help="night or day comes, as a panel says")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 128), metavar=("WIDTH", "HEIGHT"), help="in pixels")
    args = parser.parse_args(argv)
    (args.out / "picture").mkdir(parents=True, exist_ok=True)
    for seed in range(args.num_pictures):
        scene = open_scene(seed, *args.size, light_sign=night_or_day(seed) if args.light else 0)
        write_scene(scene, args.out, f"{seed:02d}")
        write_choice(args.out, f"{seed:02d}", scene.prompt)


if __name__ == "__main__":
    main()
