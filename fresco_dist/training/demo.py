"""Writes the bundled demonstration picture, its activity map and its prompt.

    python -m fresco_dist.training.demo

The picture has a held-out seed, so no model was trained on it.
"""

import argparse
from pathlib import Path

from fresco_dist.training.build import ASSET_PATH
from fresco_dist.training.pictures import write_scene
from fresco_dist.training.prompts import Motion
from fresco_dist.training.scenes import Scene, make_scene

DEMO_SEED, DEMO_WIDTH_PX, DEMO_HEIGHT_PX = 52, 512, 320
DEMO_MOTIONS = {
    "figures": Motion("walk", 1),
    "angels": Motion("fly", -1),
    "boats": Motion("sail", 1),
    "river": Motion("flows", 1),
    "clouds": Motion("drift", 1),
    "trees": Motion("sway", 1, named=False),
    "banners": Motion("wave", 1, named=False),
    "smoke": Motion("rises", 1, named=False),
}


def demo_scene() -> Scene:
    return make_scene(DEMO_SEED, width=DEMO_WIDTH_PX, height=DEMO_HEIGHT_PX, motions=DEMO_MOTIONS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSET_PATH.parent)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    write_scene(demo_scene(), args.out, "fresco")


if __name__ == "__main__":
    main()
