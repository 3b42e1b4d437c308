"""The panels of a picture: small scenes of a few themes, and the sun or the moon.

Owns what stands where inside a panel; never draws the things themselves. Every number comes from the generator that is
handed in, in a fixed order.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fresco_dist.training import painting
from fresco_dist.training.painting import PALETTE, ROBES, Box, Brush, Color, Thing, shade
from fresco_dist.training.prompts import LIGHT, Motion


@dataclass
class Panel:
    """One small scene: its box, static painter calls from back to front, and moving things."""

    box: Box
    theme: str
    static: list[tuple] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)


def make_panel(box: Box, motions: dict[str, Motion], rng: np.random.Generator) -> Panel:
    """A scene of a theme drawn from `rng`; what it shows moves as `motions` says, by kind."""
    h = box[3]
    u = float(np.clip(h / 84 * rng.uniform(0.9, 1.15), 0.6, 2.6))
    theme = str(rng.choice(["procession", "river", "garden", "castle", "heaven"], p=[0.28, 0.22, 0.18, 0.2, 0.12]))
    skies = [("sky", "cream"), ("lapis", "sky"), ("gold", "cream"), ("sky", "rose"), ("cream", "ochre")]
    high, low = skies[rng.integers(len(skies))]
    builder = _PanelBuilder(Panel(box, theme, [(_paint_sky, box, PALETTE[high], PALETTE[low])]), u, motions, rng)
    builder.add_land()
    if theme in ("castle", "procession"):
        builder.add_buildings()
    if theme == "heaven" or rng.random() < 0.6:
        builder.add_clouds()
    if theme == "river":
        builder.add_river()
    if theme == "garden":
        builder.add_garden()
    if theme in ("procession", "castle"):
        builder.add_people()
    if theme == "heaven":
        builder.add_angels()
    order = list(painting.MOVERS)
    builder.panel.things.sort(key=lambda thing: order.index(thing.kind))
    return builder.panel


class _PanelBuilder:
    """Puts things into a panel, one group after the other; `u` is its size unit."""

    def __init__(self, panel: Panel, u: float, motions: dict[str, Motion], rng: np.random.Generator) -> None:
        self.panel, self._u, self._motions, self._rng = panel, u, motions, rng
        _, y, _, h = panel.box
        self._horizon = y + h * rng.uniform(0.58, 0.7)
        self._feet = y + h * 0.93

    def add_land(self) -> None:
        u, box = self._u, self.panel.box
        ground = PALETTE[str(self._rng.choice(["olive", "ochre", "stone", "forest"]))]
        hills = (_paint_hills, box, self._horizon, shade(ground, 1.12), self._rng.uniform(0, 6.3), u)
        self.panel.static += [hills, (_paint_ground, box, self._horizon + 4 * u, ground)]

    def add_buildings(self) -> None:
        """Towers, of a castle with banners; in a procession also houses, which smoke."""
        u, castle = self._u, self.panel.theme == "castle"
        foot = self._horizon + 8 * u
        for px in self._places(58, 22):
            stone = PALETTE[str(self._rng.choice(["stone", "rose", "ochre", "cream"]))]
            if castle or self._rng.random() < 0.5:
                tall = (self._feet - self.panel.box[1]) * self._rng.uniform(0.5, 0.72)
                tower = tall - (self._feet - self._horizon - 8 * u)
                self.panel.static.append((painting.paint_tower, px, foot, u, tower, stone))
                if castle and self._rng.random() < 0.75:
                    self._add_banner(px, foot - tower)
            elif self._rng.random() < 0.5:
                self.panel.static.append((painting.paint_house, px, foot, u, stone))
                self._add("smoke", px + 5.5 * u, self._horizon - 27 * u, "smoke", u * 0.8, phase=self._rng.random())

    def add_clouds(self) -> None:
        x, y, w, h = self.panel.box
        for px in self._places(70, 30):
            self._add("clouds", px, y + h * self._rng.uniform(0.1, 0.22), "cream", self._u * 0.9, left=x, width=w)

    def add_river(self) -> None:
        """Water with trees behind it and boats on it."""
        (x, y, w, h), u, rng = self.panel.box, self._u, self._rng
        water = y + h * rng.uniform(0.62, 0.7)
        self.panel.static.append((_paint_ground, self.panel.box, water, PALETTE["sea"]))
        strokes = [
            (rng.uniform(0, w), (row + 0.7) * 6.5 * u, rng.uniform(11, 18) * u, 1.45 if rng.random() < 0.6 else 0.7)
            for row in range(int((y + h - water) / (6.5 * u)) + 1)
            for _ in range(max(2, int(w / (24 * u))))
        ]
        for px in self._places(44, 20):
            self._add_tree(px, water - 2 * u, u * rng.uniform(0.7, 0.9))
        self._add("river", x, water, "sea", strokes=strokes, width=w + 20 * u)
        for px in self._places(64, 34):
            depth = rng.uniform(0.35, 0.75)
            self._add("boats", px, water + (y + h - water) * depth, str(rng.choice(["cream", "wine", "gold"])))

    def add_garden(self) -> None:
        """Trees and people in turn."""
        u, rng = self._u, self._rng
        for index, px in enumerate(self._places(34, 18)):
            if index % 2:
                self._add("figures", px, self._feet - rng.uniform(0, 4) * u, str(rng.choice(ROBES)))
            else:
                self._add_tree(px, self._feet - rng.uniform(3, 9) * u, u * rng.uniform(1.0, 1.25))

    def add_people(self) -> None:
        for px in self._places(27 if self.panel.theme == "procession" else 52, 24):
            depth = self._rng.uniform(0, 5) * self._u
            self._add("figures", px, self._feet - depth, str(self._rng.choice(ROBES)))

    def add_angels(self) -> None:
        _, y, _, h = self.panel.box
        for px in self._places(48, 26):
            self._add("angels", px, y + h * self._rng.uniform(0.46, 0.6), str(self._rng.choice(ROBES)))

    def _add(self, kind: str, px: float, py: float, color: str, unit: float | None = None, **extra: Any) -> None:
        motion, unit = self._motions[kind], self._u if unit is None else unit
        self.panel.things.append(painting.MOVERS[kind](px, py, unit, PALETTE[color], motion.verb, motion.sign, extra))

    def _places(self, gap: float, margin: float) -> np.ndarray:
        """Where things stand in a row, about `gap` apart and `margin` from the sides, in size units of the panel."""
        (x, _, w, _), u = self.panel.box, self._u
        count = max(1, int((w - 2 * margin * u) // (gap * u)) + 1)
        spots = x + w / 2 + (np.arange(count) - (count - 1) / 2) * gap * u
        return spots + self._rng.uniform(-3, 3, count) * u

    def _add_tree(self, px: float, py: float, unit: float) -> None:
        rng = self._rng
        tall = rng.uniform(34, 46)
        leaves = [(0.0, 0.72 * tall, 10.0, 0.82)]
        leaves += [
            (rng.uniform(-9, 9), rng.uniform(0.55, 0.98) * tall, rng.uniform(5, 8), rng.uniform(0.85, 1.3))
            for _ in range(6)
        ]
        self._add("trees", px, py, str(rng.choice(["forest", "olive"])), unit, height=tall, leaves=leaves)

    def _add_banner(self, px: float, top: float) -> None:
        side, u = int(self._rng.choice((-1, 1))), self._u
        self.panel.static.append((_paint_pole, px, top, u))
        color = str(self._rng.choice(["wine", "lapis", "gold", "terracotta"]))
        self._add("banners", px, top - 21 * u, color, side=side, phase=self._rng.random())


def make_luminary_panel(box: Box, sign: int) -> Panel:
    """The sun (+1) or the moon (-1)."""
    painter, color = (painting.paint_sun, "rose") if sign > 0 else (painting.paint_moon, "umber")
    return Panel(box, LIGHT, [(_paint_sky, box, PALETTE[color], PALETTE[color]), (painter, box)])


def _paint_pole(brush: Brush, x: float, y: float, u: float) -> None:
    brush.stroke([(x, y), (x, y - 22 * u)], 1.6 * u, PALETTE["umber"])


def _paint_sky(brush: Brush, box: Box, high: Color, low: Color) -> None:
    """`high` into `low` from the top down."""
    x, y, w, h = box
    bands = 24
    for index in range(bands):
        color = np.array(high) + (np.array(low, dtype=float) - high) * min(1.0, index / (0.65 * bands))
        red, green, blue = (int(c) for c in color)
        top = y + h * index / bands
        brush.polygon(
            [(x - 2, top), (x + w + 2, top), (x + w + 2, top + h / bands + 1), (x - 2, top + h / bands + 1)],
            (red, green, blue),
        )


def _paint_hills(brush: Brush, box: Box, horizon: float, color: Color, phase: float, u: float) -> None:
    x, y, w, h = box
    xs = np.linspace(x - 4, x + w + 4, 24)
    ys = horizon - (6 + 6 * np.sin(xs / (22 * u) + phase) + 3 * np.sin(xs / (9 * u) + 2 * phase)) * u
    brush.polygon([(xs[0], y + h + 4), *zip(xs, ys), (xs[-1], y + h + 4)], color)


def _paint_ground(brush: Brush, box: Box, top: float, color: Color) -> None:
    x, y, w, h = box
    middle = (top + y + h) / 2
    brush.polygon([(x - 4, top), (x + w + 4, top), (x + w + 4, y + h + 4), (x - 4, y + h + 4)], color)
    brush.polygon(
        [(x - 4, middle), (x + w + 4, middle), (x + w + 4, y + h + 4), (x - 4, y + h + 4)], shade(color, 0.93)
    )
