"""Writes held-out pictures with their activity maps and prompts, for evaluations and for sweeps over pictures.

    python -m fresco_dist.training.pictures --out pictures --num-pictures 8 --size 192 128
    python -m fresco_dist.launch --config-dir pictures -m '+picture=glob(*)' metrics=true fusion.prior_strength=0,1,4

`metadata.jsonl` makes the folder a data set (evaluate/dataset.py). `picture/` holds a file per picture for the command
line of a run: what belongs together is chosen together.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fresco_dist.training.build import NATIVE_FRAMES
from fresco_dist.training.prompts import LIGHT, SINGULAR, VERBS, Motion, light_motion
from fresco_dist.training.scenes import Scene, make_scene

# Seeds begin here, each kind's apart, so that no two pictures have the same panels; below 100000 all are held out.
FIRST_SEEDS = {"open": 0, "light": 0, "directions": 10_000, "background": 20_000}
TOGETHER = ("light", "directions", "background")  # --kind all
MOST_PICTURES = 10_000


def night_or_day(seed: int) -> int:
    """Night (-1) or day (+1) in turn."""
    return 1 if seed % 2 else -1


def open_motions(seed: int) -> dict[str, Motion]:
    """Everything moves, each kind this way or that, and the prompt names no direction."""
    rng = np.random.default_rng((seed, 0xCA))
    return {kind: Motion(options[0][0], int(rng.choice((-1, 1))), named=False) for kind, options in VERBS.items()}


def open_scene(seed: int, width: int, height: int, *, light_sign: int = 0) -> Scene:
    """A held-out picture in which everything moves and the prompt names no direction.

    Night comes (`light_sign` -1) or day (+1) or neither (0); the prompt does not say which, the moon or the sun does.
    """
    motions = open_motions(seed)
    if light_sign:
        motions[LIGHT] = light_motion(light_sign, named=False)
    return make_scene(seed, width=width, height=height, motions=motions)


def directions_scene(seed: int, width: int, height: int) -> Scene:
    """A held-out picture in which everything moves and the prompt names each direction; sideways there is but one."""
    rng = np.random.default_rng((seed, 0xD1))
    heading, rise = (int(sign) for sign in rng.choice((-1, 1), 2))
    motions = {}
    for kind, ((verb, words), *_) in VERBS.items():
        motions[kind] = Motion(verb, rise if words == ("up", "down") else heading if words else 1)
    return make_scene(seed, width=width, height=height, motions=motions)


def background_scene(seed: int, width: int, height: int) -> Scene:
    """A held-out picture in which one or two kinds of things move, at most half of those that it has, if several.

    The prompt says of the others that they stand still, and names no direction.
    """
    motions = open_motions(seed)
    kinds = make_scene(seed, width=width, height=height, motions=motions).kinds
    moving = np.random.default_rng((seed, 0xB6)).permutation(kinds)[: max(1, min(2, len(kinds) // 2))]
    for kind in motions.keys() - set(moving):
        motions[kind] = Motion("stands still" if kind in SINGULAR else "stand still", 0)
    return make_scene(seed, width=width, height=height, motions=motions)


def scene_of(kind: str, index: int, width: int, height: int) -> Scene:
    """The held-out picture of a kind (a key of FIRST_SEEDS) with this number."""
    seed = FIRST_SEEDS[kind] + index
    if kind == "directions":
        return directions_scene(seed, width, height)
    if kind == "background":
        return background_scene(seed, width, height)
    return open_scene(seed, width, height, light_sign=night_or_day(seed) if kind == "light" else 0)


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


def write_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    """`metadata.jsonl`, as evaluations and Hugging Face's datasets read it; it is there when it is whole."""
    path = folder / ".partial-metadata.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path.rename(folder / "metadata.jsonl")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-pictures", type=int, default=8, help=f"of each kind, at most {MOST_PICTURES}")
    parser.add_argument(
        "--kind",
        choices=(*FIRST_SEEDS, "all"),
        default="open",
        help="open: everything moves, the prompt names no direction; light: night or day comes, too, as a panel says;"
        " directions: the prompt names them; background: most things stand still; all: the last three",
    )
    parser.add_argument("--size", type=int, nargs=2, default=(192, 128), metavar=("WIDTH", "HEIGHT"), help="in pixels")
    args = parser.parse_args(argv)
    if not 1 <= args.num_pictures <= MOST_PICTURES:
        parser.error(f"--num-pictures must be in [1, {MOST_PICTURES}]; got {args.num_pictures}. Try 8.")
    (args.out / "picture").mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in TOGETHER if args.kind == "all" else (args.kind,):
        for index in range(args.num_pictures):
            name = f"{kind}_{index:02d}" if args.kind == "all" else f"{index:02d}"
            scene = scene_of(kind, index, *args.size)
            write_scene(scene, args.out, name)
            write_choice(args.out, name, scene.prompt)
            row = {"file_name": f"{name}.png", "text": scene.prompt, "fusion.activity_map": f"{name}_activity.png"}
            rows.append(row | {"kind": kind} if args.kind == "all" else row)
    write_metadata(args.out, rows)


if __name__ == "__main__":
    main()
