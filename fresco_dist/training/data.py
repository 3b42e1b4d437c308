"""Training clips: random crops and thumbnails of procedural pictures, each a pure function of one integer.

Owns the split into training and held-out seeds and the choice of crop, zoom and prompt. Never trains.
Crops at full scale are what a window of a large canvas shows; thumbnails are what its prior shows. A clip can be
aimed at a kind of thing that few crops hold by chance. A clip aimed at the light is of a picture whose light changes:
its thumbnails are placed around the sun or the moon, its crops anywhere.
Half of the prompts tell of the whole picture, as at inference, and half only of what stands in the crop.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fresco_dist.training.prompts import LIGHT, light_motion, prompt_of
from fresco_dist.training.scenes import Scene, make_scene

# Pictures with a seed below are never trained on; index i of the training stream uses seed HELD_OUT_SEEDS + i.
HELD_OUT_SEEDS = 100_000
NEXT_PICTURE = 10**9  # from a picture without the kind aimed at to the one tried next
NO_PROMPT_SHARE, LOCAL_PROMPT_SHARE, THUMBNAIL_SHARE = 0.05, 0.5, 0.3
LIGHT_THUMBNAIL_SHARE, NAMED_LIGHT_SHARE = 0.6, 0.2
MIN_ZOOM_OUT, MAX_ZOOM_OUT = 2.0, 5.5


@dataclass
class Clip:
    """frames: uint8 (F, H, W, 3); moving: bool (H, W), what the things that move touch."""

    frames: np.ndarray
    moving: np.ndarray
    prompt: str


def sample_clip(seed: int, *, height: int, width: int, num_frames: int, around: str | None = None) -> Clip:
    """One clip of (num_frames, height, width), around a thing of the named kind, or "light"; same input, same bytes."""
    rng = np.random.default_rng((seed, 0xC11B))
    motions, lit = {}, around == LIGHT
    if lit:
        motions[LIGHT] = light_motion(int(rng.choice((-1, 1))), named=bool(rng.random() < NAMED_LIGHT_SHARE))
    if rng.random() < (LIGHT_THUMBNAIL_SHARE if lit else THUMBNAIL_SHARE):
        zoom_out = float(np.exp(rng.uniform(np.log(MIN_ZOOM_OUT), np.log(MAX_ZOOM_OUT))))
    else:
        zoom_out = 1.0
    box_w, box_h = width * zoom_out, height * zoom_out
    canvas_w = max(int(rng.integers(240, 640)), int(np.ceil(box_w)))
    canvas_h = max(int(rng.integers(160, 420)), int(np.ceil(box_h)))
    scene = make_scene(seed, width=canvas_w, height=canvas_h, motions=motions)
    while around is not None and around not in scene.kinds:
        seed += NEXT_PICTURE
        scene = make_scene(seed, width=canvas_w, height=canvas_h, motions=motions)
    left, top = rng.uniform(0, canvas_w - box_w), rng.uniform(0, canvas_h - box_h)
    if around is not None and (not lit or zoom_out > 1):
        x, y = _place_of(scene, around, rng)
        left = float(np.clip(x - box_w * rng.uniform(0.25, 0.75), 0, canvas_w - box_w))
        top = float(np.clip(y - box_h * rng.uniform(0.25, 0.75), 0, canvas_h - box_h))
    box = (left, top, box_w, box_h)
    frames = scene.frames(num_frames, box=box, size=(width, height))
    moving = scene.activity_of(num_frames, box=box, size=(width, height))
    draw = rng.random()
    prompt = scene.prompt
    if draw < NO_PROMPT_SHARE:
        prompt = ""
    elif draw < NO_PROMPT_SHARE + LOCAL_PROMPT_SHARE:
        prompt = prompt_of({kind: scene.motions[kind] for kind in scene.kinds_in(box)}, opening=scene.opening)
    return Clip(frames, moving, prompt)


def _place_of(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[float, float]:
    if kind == LIGHT:
        left, top, width, height = next(panel.box for panel in scene.panels if panel.theme == LIGHT)
        return left + width / 2, top + height / 2
    things = [thing for panel in scene.panels for thing in panel.things if thing.kind == kind]
    thing = things[rng.integers(len(things))]
    return thing.x, thing.y


def to_tensor(clips: list[Clip]) -> torch.Tensor:
    """float32 (B, 3, F, H, W) in [-1, 1]."""
    stacked = np.stack([clip.frames for clip in clips])
    return torch.from_numpy(stacked).permute(0, 4, 1, 2, 3).contiguous().float() / 127.5 - 1
