"""Fresco-like pictures with known motion: layout, rendering at any crop and scale, activity mask, prompt.

Owns where things stand and how a region becomes pixels. Deterministic from the seed alone: the same seed and size
give the same bytes. A picture is a wall of panels between ornamented borders; each panel is a small scene. What
moves, and how, is one motion per kind for the whole picture (prompts.py), so that far-apart panels agree.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from fresco_dist.training import painting
from fresco_dist.training.painting import PALETTE, ROBES, Brush, Thing, shade
from fresco_dist.training.prompts import LIGHT, OPENINGS, Motion, prompt_of, sample_motions

BORDER_PX = 9.0
SUPERSAMPLE = 3
GOLDEN, NIGHT_BLUE = (255, 240, 200), (24, 30, 72)
Box = tuple[float, float, float, float]  # left, top, width, height in canvas px


@dataclass
class Panel:
    """One small scene: its box, size unit, static painter calls and moving things."""

    box: Box
    u: float
    theme: str
    sky: tuple[painting.Color, painting.Color]
    static: list[tuple] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)


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
        """Kinds present in the picture, in a fixed order."""
        present = {LIGHT, *(thing.kind for panel in self.panels for thing in panel.things)}
        return tuple(kind for kind in self.motions if kind in present)

    def kinds_in(self, box: Box) -> tuple[str, ...]:
        """Kinds of the things that stand in or near `box`, in a fixed order."""
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
        """A frame (height, width, 3) in the light of time `t`: towards gold by day, towards blue by night."""
        if LIGHT not in self.motions:
            return frame
        color, share = (GOLDEN, 0.055) if self.motions[LIGHT].sign > 0 else (NIGHT_BLUE, 0.08)
        return (frame + min(share * t, 0.8) * (np.array(color) - frame)).round().astype(np.uint8)

    def _ground(self, view: "_View") -> Image.Image:
        image = Image.new("RGB", view.raster_size, PALETTE[self.border])
        brush = Brush(ImageDraw.Draw(image), view.left, view.top, view.scale)
        _paint_borders(brush, self)
        for panel in self.panels:
            self._paint_panel(image, panel, view, 0, moving=False)
        return Image.fromarray(_plaster(np.asarray(image), self, view))

    def _paint_panel(self, image, panel: Panel, view: "_View", t: int, *, moving: bool, ink: int | None = None):
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
            _paint_sky(brush, panel)
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

    With a motion of the light a panel shows the sun if day comes, the moon if night does: what decides for the whole
    picture, and stands where most crops do not see it.
    """
    rng = np.random.default_rng((seed, 0xF2E5C0))
    drawn = sample_motions(rng)
    drawn.update(motions or {})
    border = str(rng.choice(["wine", "terracotta", "umber", "lapis", "olive"]))
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    boxes: list[Box] = []
    _split((BORDER_PX, BORDER_PX, width - 2 * BORDER_PX, height - 2 * BORDER_PX), rng, boxes)
    panels = [_make_panel(box, drawn, rng) for box in boxes]
    if LIGHT in drawn:
        index = int(rng.integers(len(panels)))
        panels[index] = _make_luminary_panel(panels[index], drawn[LIGHT].sign)
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


def _make_panel(box: Box, motions: dict[str, Motion], rng: np.random.Generator) -> Panel:
    x, y, w, h = box
    u = float(np.clip(h / 84 * rng.uniform(0.9, 1.15), 0.6, 2.6))
    theme = str(rng.choice(["procession", "river", "garden", "castle", "heaven"], p=[0.28, 0.22, 0.18, 0.2, 0.12]))
    skies = [("sky", "cream"), ("lapis", "sky"), ("gold", "cream"), ("sky", "rose"), ("cream", "ochre")]
    high, low = skies[rng.integers(len(skies))]
    panel = Panel(box, u, theme, (PALETTE[high], PALETTE[low]))
    horizon = y + h * rng.uniform(0.58, 0.7)
    feet = y + h * 0.93
    ground = PALETTE[str(rng.choice(["olive", "ochre", "stone", "forest"]))]

    def add(kind: str, px: float, py: float, color: str, unit: float = u, **extra) -> None:
        motion = motions[kind]
        panel.things.append(painting.MOVERS[kind](px, py, unit, PALETTE[color], motion.verb, motion.sign, extra))

    def places(gap: float, margin: float) -> np.ndarray:
        count = max(1, int((w - 2 * margin * u) // (gap * u)) + 1)
        spots = x + w / 2 + (np.arange(count) - (count - 1) / 2) * gap * u
        return spots + rng.uniform(-3, 3, count) * u

    def add_tree(px: float, py: float, unit: float) -> None:
        tall = rng.uniform(34, 46)
        leaves = [(0, 0.72 * tall, 10, 0.82)]
        leaves += [
            (rng.uniform(-9, 9), rng.uniform(0.55, 0.98) * tall, rng.uniform(5, 8), rng.uniform(0.85, 1.3))
            for _ in range(6)
        ]
        add("trees", px, py, str(rng.choice(["forest", "olive"])), unit, height=tall, leaves=leaves)

    panel.static.append((_paint_hills, box, horizon, shade(ground, 1.12), rng.uniform(0, 6.3), u))
    panel.static.append((_paint_ground, box, horizon + 4 * u, ground))
    if theme in ("castle", "procession"):
        for px in places(58, 22):
            stone = PALETTE[str(rng.choice(["stone", "rose", "ochre", "cream"]))]
            if theme == "castle" or rng.random() < 0.5:
                tall = (feet - y) * rng.uniform(0.5, 0.72)
                panel.static.append(
                    (painting.paint_tower, px, horizon + 8 * u, u, tall - (feet - horizon - 8 * u), stone)
                )
                if theme == "castle" and rng.random() < 0.75:
                    top = horizon + 8 * u - (tall - (feet - horizon - 8 * u))
                    _add_banner(panel, add, px, top, u, rng)
            elif rng.random() < 0.5:
                panel.static.append((painting.paint_house, px, horizon + 8 * u, u, stone))
                add("smoke", px + 5.5 * u, horizon - 27 * u, "smoke", u * 0.8, phase=rng.random())
    if theme != "heaven" and rng.random() < 0.6 or theme == "heaven":
        for px in places(70, 30):
            add("clouds", px, y + h * rng.uniform(0.1, 0.22), "cream", u * 0.9, left=x, width=w)
    if theme == "river":
        water = y + h * rng.uniform(0.62, 0.7)
        panel.static.append((_paint_ground, box, water, PALETTE["sea"]))
        strokes = [
            (rng.uniform(0, w), (row + 0.7) * 6.5 * u, rng.uniform(11, 18) * u, 1.45 if rng.random() < 0.6 else 0.7)
            for row in range(int((y + h - water) / (6.5 * u)) + 1)
            for _ in range(max(2, int(w / (24 * u))))
        ]
        for px in places(44, 20):
            add_tree(px, water - 2 * u, u * rng.uniform(0.7, 0.9))
        add("river", x, water, "sea", strokes=strokes, width=w + 20 * u)
        for px in places(64, 34):
            add(
                "boats",
                px,
                water + (y + h - water) * rng.uniform(0.35, 0.75),
                str(rng.choice(["cream", "wine", "gold"])),
            )
    if theme == "garden":
        for index, px in enumerate(places(34, 18)):
            if index % 2:
                add("figures", px, feet - rng.uniform(0, 4) * u, str(rng.choice(ROBES)))
            else:
                add_tree(px, feet - rng.uniform(3, 9) * u, u * rng.uniform(1.0, 1.25))
    if theme in ("procession", "castle"):
        for px in places(27 if theme == "procession" else 52, 24):
            add("figures", px, feet - rng.uniform(0, 5) * u, str(rng.choice(ROBES)))
    if theme == "heaven":
        for px in places(48, 26):
            add("angels", px, y + h * rng.uniform(0.46, 0.6), str(rng.choice(ROBES)))
    order = list(painting.MOVERS)
    panel.things.sort(key=lambda thing: order.index(thing.kind))
    return panel


def _make_luminary_panel(panel: Panel, sign: int) -> Panel:
    """The sun (+1) or the moon (-1), in place of the scene of `panel`."""
    painter, color = (painting.paint_sun, "rose") if sign > 0 else (painting.paint_moon, "umber")
    return Panel(panel.box, panel.u, LIGHT, (PALETTE[color], PALETTE[color]), [(painter, panel.box)])


def _add_banner(panel: Panel, add, px: float, top: float, u: float, rng: np.random.Generator) -> None:
    side = int(rng.choice((-1, 1)))
    panel.static.append((_paint_pole, px, top, u))
    add(
        "banners",
        px,
        top - 21 * u,
        str(rng.choice(["wine", "lapis", "gold", "terracotta"])),
        side=side,
        phase=rng.random(),
    )


def _paint_pole(brush: Brush, x: float, y: float, u: float) -> None:
    brush.stroke([(x, y), (x, y - 22 * u)], 1.6 * u, PALETTE["umber"])


def _paint_sky(brush: Brush, panel: Panel) -> None:
    x, y, w, h = panel.box
    high, low = (np.array(color, dtype=float) for color in panel.sky)
    bands = 24
    for index in range(bands):
        color = high + (low - high) * min(1.0, index / (0.65 * bands))
        top = y + h * index / bands
        brush.polygon(
            [(x - 2, top), (x + w + 2, top), (x + w + 2, top + h / bands + 1), (x - 2, top + h / bands + 1)],
            tuple(int(c) for c in color),
        )


def _paint_hills(brush: Brush, box: Box, horizon: float, color, phase: float, u: float) -> None:
    x, y, w, h = box
    xs = np.linspace(x - 4, x + w + 4, 24)
    ys = horizon - (6 + 6 * np.sin(xs / (22 * u) + phase) + 3 * np.sin(xs / (9 * u) + 2 * phase)) * u
    brush.polygon([(xs[0], y + h + 4), *zip(xs, ys), (xs[-1], y + h + 4)], color)


def _paint_ground(brush: Brush, box: Box, top: float, color) -> None:
    x, y, w, h = box
    middle = (top + y + h) / 2
    brush.polygon([(x - 4, top), (x + w + 4, top), (x + w + 4, y + h + 4), (x - 4, y + h + 4)], color)
    brush.polygon(
        [(x - 4, middle), (x + w + 4, middle), (x + w + 4, y + h + 4), (x - 4, y + h + 4)], shade(color, 0.93)
    )


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
