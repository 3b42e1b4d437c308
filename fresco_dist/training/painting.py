"""Vector painting of fresco figures: every thing is drawn at any time and any scale from a few numbers.

Owns the shapes and their motion over time. Never decides what stands where (see panels.py) and never rasterises
beyond Pillow's polygon and ellipse. Lengths are canvas pixels, times are frames; `u` is the size unit of a panel
(1 = figures 38 px tall). Whatever travels does so at SPEED px per frame, large or small, and turns back after TURN
frames; oscillations take PERIOD frames.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, width, height in canvas px
PERIOD, TURN, SPEED = 12.0, 16.0, 1.5
PALETTE: dict[str, Color] = {
    "cream": (236, 217, 178),
    "ochre": (201, 157, 88),
    "gold": (226, 184, 84),
    "terracotta": (172, 88, 58),
    "rose": (205, 133, 112),
    "wine": (128, 52, 48),
    "sky": (150, 178, 188),
    "lapis": (66, 96, 148),
    "sea": (74, 124, 136),
    "olive": (116, 130, 78),
    "forest": (70, 96, 66),
    "umber": (84, 60, 44),
    "stone": (184, 166, 138),
    "skin": (224, 178, 138),
    "smoke": (214, 206, 196),
}
ROBES = ("terracotta", "wine", "lapis", "olive", "rose", "cream", "gold")


def shade(color: Color, factor: float) -> Color:
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in color)
    return red, green, blue


def there_and_back(t: float) -> float:
    """Triangle wave in frames: t up to TURN, then back through 0 to -TURN."""
    phase = (t + TURN) % (4 * TURN)
    return phase - TURN if phase < 2 * TURN else 3 * TURN - phase


def swing(t: float) -> float:
    return math.sin(2 * math.pi * t / PERIOD)


@dataclass
class Brush:
    """Maps canvas pixels to one raster: origin (x0, y0), `scale` raster px per canvas px; `ink` overrides colours."""

    draw: ImageDraw.ImageDraw
    x0: float
    y0: float
    scale: float
    ink: int | None = None

    def polygon(self, points: Iterable[Point], color: Color) -> None:
        scaled = [((x - self.x0) * self.scale, (y - self.y0) * self.scale) for x, y in points]
        self.draw.polygon(scaled, fill=color if self.ink is None else self.ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        k = self.scale
        cx, cy = (x - self.x0) * k, (y - self.y0) * k
        box = (cx - rx * k, cy - ry * k, cx + rx * k, cy + ry * k)
        self.draw.ellipse(box, fill=color if self.ink is None else self.ink)

    def stroke(self, points: Iterable[Point], width: float, color: Color) -> None:
        scaled = [((x - self.x0) * self.scale, (y - self.y0) * self.scale) for x, y in points]
        ink = color if self.ink is None else self.ink
        self.draw.line(scaled, fill=ink, width=max(1, round(width * self.scale)), joint="curve")


@dataclass
class Thing(ABC):
    """Something painted at (x, y), its foot or centre, with size unit `u`; `verb`/`sign` say how it moves."""

    x: float
    y: float
    u: float
    color: Color
    verb: str = ""
    sign: int = 0
    extra: dict = field(default_factory=dict)
    kind = ""

    @abstractmethod
    def paint(self, brush: Brush, t: float) -> None:
        """Paints the thing at time `t` in frames."""


class Figure(Thing):
    kind = "figures"

    def paint(self, brush: Brush, t: float) -> None:
        u, lean = self.u, 0.0
        x, y = self.x, self.y
        if self.verb == "walk":
            x += self.sign * SPEED * there_and_back(t)
            y -= 0.8 * u * abs(math.sin(math.pi * t / 4))
        elif self.verb == "sway" and self.sign:
            lean = self.sign * 6.0 * u * swing(t)
        top = y - 38 * u

        def at(dx: float, height: float) -> Point:
            return x + dx * u + lean * height / 38, y - height * u

        dark, light = shade(self.color, 0.72), shade(self.color, 1.16)
        brush.ellipse(*at(0, 33), 7.4 * u, 7.4 * u, PALETTE["gold"])
        brush.polygon([at(-8.5, 0), at(-6.5, 22), at(-3, 27), at(3, 27), at(6.5, 22), at(8.5, 0)], self.color)
        brush.polygon([at(1, 0), at(2, 26), at(3, 27), at(6.5, 22), at(8.5, 0)], dark)
        brush.polygon([at(-6.5, 0), at(-4, 22), at(-2.4, 22), at(-4, 0)], light)
        brush.polygon([at(-6.5, 20), at(-1, 14), at(6.5, 20), at(6, 16.5), at(-1, 10.5), at(-6, 16.5)], light)
        brush.ellipse(*at(0, 32), 4.4 * u, 5.2 * u, PALETTE["skin"])
        brush.polygon([at(-4.4, 33), at(-3, 37.5), at(3, 37.5), at(4.4, 33), at(2, 35), at(-2, 35)], PALETTE["umber"])
        assert top < y


class Angel(Thing):
    kind = "angels"

    def paint(self, brush: Brush, t: float) -> None:
        u, x, y = self.u, self.x, self.y
        flap = 0.0
        if self.verb == "fly":
            y += self.sign * SPEED * there_and_back(t)
            flap = 4.0 * u * swing(2 * t)
        for side in (-1, 1):
            brush.polygon(
                [
                    (x, y - 6 * u),
                    (x + side * 17 * u, y - 12 * u - flap),
                    (x + side * 14 * u, y - 2 * u),
                    (x, y + 4 * u),
                ],
                PALETTE["cream"],
            )
            brush.polygon(
                [(x, y - 2 * u), (x + side * 14 * u, y - 5 * u - flap), (x + side * 10 * u, y + 3 * u), (x, y + 5 * u)],
                PALETTE["rose"],
            )
        brush.ellipse(x, y - 11 * u, 6.4 * u, 6.4 * u, PALETTE["gold"])
        brush.polygon(
            [(x - 4 * u, y - 7 * u), (x + 4 * u, y - 7 * u), (x + 7 * u, y + 15 * u), (x - 7 * u, y + 15 * u)],
            self.color,
        )
        brush.polygon(
            [(x, y - 7 * u), (x + 4 * u, y - 7 * u), (x + 7 * u, y + 15 * u), (x + u, y + 15 * u)],
            shade(self.color, 0.75),
        )
        brush.ellipse(x, y - 11 * u, 4 * u, 4.6 * u, PALETTE["skin"])


class Tree(Thing):
    kind = "trees"

    def paint(self, brush: Brush, t: float) -> None:
        u, x, y = self.u, self.x, self.y
        lean = self.sign * 6.5 * u * swing(t) if self.verb == "sway" else 0.0
        height = self.extra["height"] * u
        brush.polygon(
            [
                (x - 2.2 * u, y),
                (x + 2.2 * u, y),
                (x + lean * 0.6 + u, y - height * 0.7),
                (x + lean * 0.6 - u, y - height * 0.7),
            ],
            PALETTE["umber"],
        )
        for dx, dy, radius, tone in self.extra["leaves"]:
            rise = (dy * u) / height
            brush.ellipse(
                x + dx * u + lean * rise**1.5, y - dy * u, radius * u, radius * u * 0.92, shade(self.color, tone)
            )


class Boat(Thing):
    kind = "boats"

    def paint(self, brush: Brush, t: float) -> None:
        u, x, y = self.u, self.x, self.y
        if self.verb == "sail":
            x += self.sign * SPEED * there_and_back(t)
            y += 0.8 * u * swing(t)
        brush.polygon(
            [(x - 15 * u, y - 6 * u), (x + 15 * u, y - 6 * u), (x + 10 * u, y + 2 * u), (x - 10 * u, y + 2 * u)],
            PALETTE["umber"],
        )
        brush.polygon(
            [(x - 15 * u, y - 6 * u), (x + 15 * u, y - 6 * u), (x + 13 * u, y - 3.5 * u), (x - 13 * u, y - 3.5 * u)],
            PALETTE["ochre"],
        )
        brush.polygon(
            [(x - u, y - 6 * u), (x + u, y - 6 * u), (x + u, y - 30 * u), (x - u, y - 30 * u)], PALETTE["umber"]
        )
        brush.polygon(
            [
                (x, y - 29 * u),
                (x + 11 * u, y - 16 * u),
                (x + 9 * u, y - 9 * u),
                (x - 9 * u, y - 9 * u),
                (x - 11 * u, y - 16 * u),
            ],
            self.color,
        )
        brush.polygon(
            [(x - 2.5 * u, y - 26 * u), (x + 2.5 * u, y - 26 * u), (x + 2.5 * u, y - 9 * u), (x - 2.5 * u, y - 9 * u)],
            shade(self.color, 0.75),
        )


class River(Thing):
    """Water strokes over a band; the still water below them belongs to the panel's ground."""

    kind = "river"

    def paint(self, brush: Brush, t: float) -> None:
        width = self.extra["width"]
        drift = self.sign * SPEED * t if self.verb == "flows" else 0.0
        for dx, dy, length, tone in self.extra["strokes"]:
            x = self.x + (dx + drift) % width - length
            for shift in (0, width):
                left, y = x + shift, self.y + dy
                brush.polygon(
                    [
                        (left, y),
                        (left + 0.3 * length, y - 1.8 * self.u),
                        (left + 0.7 * length, y - 1.8 * self.u),
                        (left + length, y),
                        (left + 0.7 * length, y + self.u),
                        (left + 0.3 * length, y + self.u),
                    ],
                    shade(self.color, tone),
                )


class Cloud(Thing):
    kind = "clouds"

    def paint(self, brush: Brush, t: float) -> None:
        u, width = self.u, self.extra["width"]
        drift = self.sign * SPEED * t if self.verb == "drift" else 0.0
        x = self.extra["left"] + (self.x - self.extra["left"] + drift + 24 * u) % (width + 48 * u) - 24 * u
        for tone, drop in ((0.86, 1.6), (1.0, 0.0)):
            for dx, dy, radius in ((-10, 1, 6), (0, -2, 8), (10, 1, 6.5), (0, 3, 8)):
                brush.ellipse(
                    x + dx * u, self.y + (dy + drop) * u, 1.35 * radius * u, 0.7 * radius * u, shade(self.color, tone)
                )


class Banner(Thing):
    """Cloth only; (x, y) is the top of the pole, which stands still."""

    kind = "banners"

    def paint(self, brush: Brush, t: float) -> None:
        u, side = self.u, self.extra["side"]
        phase = t if self.verb == "wave" else 0.0
        along = np.linspace(0, 1, 8)
        heave = 4.5 * u * along * np.sin(2 * math.pi * (0.9 * along - phase / PERIOD * 1.0 + self.extra["phase"]))
        xs = self.x + side * 24 * u * along
        for low, high, tone in ((0.0, 0.5, 1.0), (0.5, 1.0, 0.68)):
            upper = list(zip(xs, self.y + heave + 13 * u * low * (1 - 0.35 * along)))
            lower = list(zip(xs, self.y + heave + 13 * u * high * (1 - 0.35 * along)))
            brush.polygon(upper + lower[::-1], shade(self.color, tone))


class Smoke(Thing):
    kind = "smoke"

    def paint(self, brush: Brush, t: float) -> None:
        age_0 = t / PERIOD / 2 if self.verb == "rises" else 0.0
        for index in range(5):
            age = (age_0 + index / 5 + self.extra["phase"]) % 1.0
            radius = 6.5 * self.u * math.sin(math.pi * (0.12 + 0.8 * age))
            brush.ellipse(
                self.x + 2.5 * self.u * math.sin(7 * age),
                self.y - 34 * self.u * age,
                radius,
                radius,
                shade(self.color, 1.0 - 0.18 * age),
            )


MOVERS: dict[str, type[Thing]] = {cls.kind: cls for cls in (River, Cloud, Smoke, Banner, Tree, Boat, Figure, Angel)}


def paint_sun(brush: Brush, box: Box) -> None:
    """A face in a golden ring with rays, as large as `box` allows."""
    x, y, u = box[0] + box[2] / 2, box[1] + box[3] / 2, min(box[2:]) / 40
    for index in range(12):
        angle, reach = math.pi * index / 6, (18.5 if index % 2 else 15.5) * u
        tip = (x + reach * math.cos(angle), y + reach * math.sin(angle))
        sides = [(x + 11 * u * math.cos(angle + d), y + 11 * u * math.sin(angle + d)) for d in (-0.24, 0.24)]
        brush.polygon([*sides, tip], PALETTE["gold"] if index % 2 else PALETTE["cream"])
    brush.ellipse(x, y, 11 * u, 11 * u, PALETTE["gold"])
    brush.ellipse(x, y, 9.5 * u, 9.5 * u, PALETTE["cream"])
    _paint_face(brush, x, y, u)


def paint_moon(brush: Brush, box: Box) -> None:
    """A crescent with a face, and stars, as large as `box` allows; its ground must be umber, as what it lacks is."""
    x, y, u = box[0] + box[2] / 2, box[1] + box[3] / 2, min(box[2:]) / 40
    brush.ellipse(x, y, 14 * u, 14 * u, PALETTE["sky"])
    brush.ellipse(x + 7 * u, y, 11 * u, 12 * u, PALETTE["umber"])
    _paint_face(brush, x - 6 * u, y, 0.6 * u)
    for dx, dy in ((6, -7), (11, 3), (4, 6), (-16, -14), (-15, 15), (16, -14), (15, 14)):
        star_x, star_y = x + dx * u, y + dy * u
        for across, down in ((1.6, 0.5), (0.5, 1.6)):
            brush.ellipse(star_x, star_y, across * u, down * u, PALETTE["cream"])


def _paint_face(brush: Brush, x: float, y: float, u: float) -> None:
    for side in (-1, 1):
        brush.ellipse(x + side * 3.4 * u, y - 2 * u, 1.1 * u, 1.1 * u, PALETTE["umber"])
        brush.ellipse(x + side * 5 * u, y + 2 * u, 1.6 * u, 1.3 * u, PALETTE["rose"])
    brush.ellipse(x, y + 4 * u, 2.4 * u, 0.8 * u, PALETTE["wine"])


def paint_tower(brush: Brush, x: float, y: float, u: float, height: float, color: Color) -> None:
    """Static building, foot at (x, y)."""
    half, top = 10 * u, y - height
    brush.polygon([(x - half, y), (x + half, y), (x + half, top), (x - half, top)], color)
    brush.polygon([(x + half * 0.35, y), (x + half, y), (x + half, top), (x + half * 0.35, top)], shade(color, 0.8))
    for index in range(3):
        left = x - half - u + index * 8.3 * u
        brush.polygon(
            [(left, top), (left + 5 * u, top), (left + 5 * u, top - 4 * u), (left, top - 4 * u)], shade(color, 0.92)
        )
    for level in range(int(height // (16 * u))):
        cy = top + (9 + 15 * level) * u
        brush.ellipse(x - 2 * u, cy - 2.5 * u, 2.3 * u, 2.3 * u, PALETTE["umber"])
        brush.polygon(
            [
                (x - 4.3 * u, cy - 2.5 * u),
                (x + 0.3 * u, cy - 2.5 * u),
                (x + 0.3 * u, cy + 3 * u),
                (x - 4.3 * u, cy + 3 * u),
            ],
            PALETTE["umber"],
        )


def paint_house(brush: Brush, x: float, y: float, u: float, color: Color) -> None:
    brush.polygon([(x - 13 * u, y), (x + 13 * u, y), (x + 13 * u, y - 17 * u), (x - 13 * u, y - 17 * u)], color)
    brush.polygon(
        [(x - 16 * u, y - 16 * u), (x + 16 * u, y - 16 * u), (x + 8 * u, y - 27 * u), (x - 8 * u, y - 27 * u)],
        PALETTE["terracotta"],
    )
    brush.polygon(
        [(x - 3.5 * u, y), (x + 3.5 * u, y), (x + 3.5 * u, y - 10 * u), (x - 3.5 * u, y - 10 * u)], PALETTE["umber"]
    )
    brush.polygon(
        [(x + 3 * u, y - 25 * u), (x + 8 * u, y - 25 * u), (x + 8 * u, y - 33 * u), (x + 3 * u, y - 33 * u)],
        shade(color, 0.8),
    )
