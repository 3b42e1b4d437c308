"""Fresco-like pictures with known motion: layout, rendering at any crop and scale, activity mask, prompt.

Owns where panels stand (what stands in them: panels.py) and how a region becomes pixels. Deterministic from the seed
alone: the same seed and size give the same bytes. A picture is a wall of panels between ornamented borders; each panel
is a small scene. What moves, and how, is one motion per kind for the whole picture (prompts.py), so that far-apart
panels agree.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from fresco_dist.training.painting import PALETTE, Box, Brush
from fresco_dist.training.panels import Panel, make_luminary_panel, make_panel
from fresco_dist.training.prompts import LIGHT, OPENINGS, Motion, prompt_of, sample_motions

BORDER_PX = 9.0
SUPERSAMPLE = 3
DAY, NIGHT = ((255, 240, 200), 0.055), ((24, 30, 72), 0.08)  # colour, and the share of it that a frame adds
MAX_LIGHT_SHARE = 0.8


@dataclass
class Scene:
    width: int
    height: int
    seed: int
    motions: dict[str, Motion]
    panels: list[Panel]
    border: str
    opening: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds present in the picture, in a fixed order, and the light if it changes."""
        present = {LIGHT, *(thing.kind for panel in self.panels for thing in panel.things)}
        return tuple(kind for kind in self.motions if kind in present)

    def kinds_in(self, box: Box) -> tuple[str, ...]:
        """Kinds of the things that stand in or near `box`, in a fixed order, and the light if it changes."""
        left, top, width, height = box
        seen = {LIGHT}
        for thing in (thing for panel in self.panels for thing in panel.things):
            reach = 20 * thing.u
            across = thing.extra["width"] if thing.kind == "river" else 0
            inside_x = left - reach - across < thing.x < left + width + reach
            if inside_x and top - reach < thing.y < top + height + 2 * reach:
                seen.add(thing.kind)
        return tuple(kind for kind in self.motions if kind in seen)

    @cached_property
    def prompt(self) -> str:
        return prompt_of({kind: self.motions[kind] for kind in self.kinds}, opening=self.opening)

    @cached_property
    def activity(self) -> np.ndarray:
        """bool (height, width): pixels that anything moving covers in the first 13 frames."""
        return self.activity_of(13)

    def frames(self, num_frames: int, *, box: Box | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 (num_frames, height, width, 3) of `box` (default: all) rendered at `size` = (width, height) px."""
        view = _View.of(self, box, size)
        ground = self._ground(view)
        out = np.empty((num_frames, view.height, view.width, 3), dtype=np.uint8)
        for t in range(num_frames):
            frame = ground.copy()
            for panel in self.panels:
                self._paint_panel(frame, panel, view, t, moving=True)
            out[t] = self._light(np.asarray(frame.reduce(SUPERSAMPLE)), t)
        return out

    def activity_of(
        self, num_frames: int, *, box: Box | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """bool (height, width): pixels touched by a moving thing in any of `num_frames` frames."""
        view = _View.of(self, box, size)
        mask = Image.new("L", view.raster_size)
        for t in range(num_frames):
            for panel in self.panels:
                self._paint_panel(mask, panel, view, t, moving=True, ink=255)
        return np.asarray(mask.reduce(SUPERSAMPLE)) > 0

    def _light(self, frame: np.ndarray, t: int) -> np.ndarray:
        """A frame, uint8 (height, width, 3), in the light of time `t`: towards gold by day, towards blue by night."""
        if LIGHT not in self.motions:
            return frame
        color, share = DAY if self.motions[LIGHT].sign > 0 else NIGHT
        return (frame + min(share * t, MAX_LIGHT_SHARE) * (np.array(color) - frame)).round().astype(np.uint8)

    def _ground(self, view: "_View") -> Image.Image:
        image = Image.new("RGB", view.raster_size, PALETTE[self.border])
        brush = Brush(ImageDraw.Draw(image), view.left, view.top, view.scale)
        _paint_borders(brush, self)
        for panel in self.panels:
            self._paint_panel(image, panel, view, 0, moving=False)
        return Image.fromarray(_plaster(np.asarray(image), self, view))

    def _paint_panel(
        self, image: Image.Image, panel: Panel, view: "_View", t: int, *, moving: bool, ink: int | None = None
    ) -> None:
        """Paints one panel, clipped to its box: everything still, or everything that moves."""
        x, y, w, h = panel.box
        k = view.scale
        left, top = max(0, round((x - view.left) * k)), max(0, round((y - view.top) * k))
        right = min(image.width, round((x + w - view.left) * k))
        bottom = min(image.height, round((y + h - view.top) * k))
        things = [thing for thing in panel.things if bool(thing.sign) == moving]
        if right <= left or bottom <= top or (moving and not things):
            return
        part = image.crop((left, top, right, bottom))
        brush = Brush(ImageDraw.Draw(part), view.left + left / k, view.top + top / k, k, ink)
        if not moving:
            for painter, *numbers in panel.static:
                painter(brush, *numbers)
        for thing in things:
            thing.paint(brush, t)
        image.paste(part, (left, top))


@dataclass
class _View:
    left: float
    top: float
    scale: float  # raster px per canvas px
    width: int
    height: int

    @property
    def raster_size(self) -> tuple[int, int]:
        return self.width * SUPERSAMPLE, self.height * SUPERSAMPLE

    @staticmethod
    def of(scene: Scene, box: Box | None, size: tuple[int, int] | None) -> "_View":
        box = box or (0, 0, scene.width, scene.height)
        width, height = size or (round(box[2]), round(box[3]))
        return _View(box[0], box[1], width * SUPERSAMPLE / box[2], width, height)


def make_scene(seed: int, *, width: int = 512, height: int = 320, motions: dict[str, Motion] | None = None) -> Scene:
    """A picture of `width` x `height` px; `motions` replaces the motions drawn from the seed.

    With a motion of the light one panel, the only one if there is no other, shows the sun if day comes and the moon if
    night does: it tells of the whole picture, but most crops of a large one do not hold it.
    """
    rng = np.random.default_rng((seed, 0xF2E5C0))
    drawn = sample_motions(rng)
    drawn.update(motions or {})
    border = str(rng.choice(["wine", "terracotta", "umber", "lapis", "olive"]))
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    boxes: list[Box] = []
    _split((BORDER_PX, BORDER_PX, width - 2 * BORDER_PX, height - 2 * BORDER_PX), rng, boxes)
    panels = [make_panel(box, drawn, rng) for box in boxes]
    if LIGHT in drawn:
        index = int(rng.integers(len(panels)))
        panels[index] = make_luminary_panel(boxes[index], drawn[LIGHT].sign)
    return Scene(width, height, seed, drawn, panels, border, opening)


def _split(box: Box, rng: np.random.Generator, out: list[Box]) -> None:
    x, y, w, h = box
    wide = w >= 180 and (w > 1.25 * h or h < 170)
    tall = h >= 150 and not wide
    stop = h <= 190 and w <= 2.3 * h and rng.random() < 0.3
    if stop or not (wide or tall):
        out.append(box)
    elif wide:
        cut = w * rng.uniform(0.38, 0.62)
        _split((x, y, cut - BORDER_PX / 2, h), rng, out)
        _split((x + cut + BORDER_PX / 2, y, w - cut - BORDER_PX / 2, h), rng, out)
    else:
        cut = h * rng.uniform(0.42, 0.58)
        _split((x, y, w, cut - BORDER_PX / 2), rng, out)
        _split((x, y + cut + BORDER_PX / 2, w, h - cut - BORDER_PX / 2), rng, out)


def _paint_borders(brush: Brush, scene: Scene) -> None:
    """Diamonds and dots along every panel edge, on the wall colour."""
    step, half = 14.0, BORDER_PX / 2
    light = PALETTE["gold" if scene.border != "olive" else "cream"]
    for panel in scene.panels:
        x, y, w, h = panel.box
        for start, length, horizontal in ((x, w, True), (y, h, False)):
            count = max(1, round(length / step))
            for index in range(count):
                at = start + (index + 0.5) * length / count
                for edge in (y - half, y + h + half) if horizontal else (x - half, x + w + half):
                    cx, cy = (at, edge) if horizontal else (edge, at)
                    if index % 2:
                        brush.ellipse(cx, cy, 1.6, 1.6, PALETTE["cream"])
                    else:
                        brush.polygon([(cx - 3.2, cy), (cx, cy - 3.2), (cx + 3.2, cy), (cx, cy + 3.2)], light)
        for inset, color in ((1.2, PALETTE["cream"]),):
            brush.polygon(
                [
                    (x - inset, y - inset),
                    (x + w + inset, y - inset),
                    (x + w + inset, y + h + inset),
                    (x - inset, y + h + inset),
                ],
                color,
            )


def _plaster(image: np.ndarray, scene: Scene, view: _View) -> np.ndarray:
    """Multiplies by smooth value noise fixed to the wall: two octaves, about 4 % deep."""
    rng = np.random.default_rng((scene.seed, 0x9A57E2))
    ys = view.top + (np.arange(image.shape[0]) + 0.5) / view.scale
    xs = view.left + (np.arange(image.shape[1]) + 0.5) / view.scale
    gain = np.ones(image.shape[:2], dtype=np.float32)
    for cell_px, depth in ((38.0, 0.08), (11.0, 0.03)):
        rows, cols = int(scene.height / cell_px) + 3, int(scene.width / cell_px) + 3
        lattice = rng.uniform(-depth, depth, (rows, cols)).astype(np.float32)
        gain += _bilinear(lattice, ys / cell_px, xs / cell_px)
    return np.clip(image * gain[..., None], 0, 255).astype(np.uint8)


def _bilinear(lattice: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    rows, cols = (np.clip(v, 0, n - 1.001) for v, n in zip((rows, cols), lattice.shape))
    r, c = rows.astype(int), cols.astype(int)
    fr, fc = (rows - r).astype(np.float32)[:, None], (cols - c).astype(np.float32)
    upper = lattice[r][:, c] * (1 - fc) + lattice[r][:, c + 1] * fc
    lower = lattice[r + 1][:, c] * (1 - fc) + lattice[r + 1][:, c + 1] * fc
    return upper * (1 - fr) + lower * fr
