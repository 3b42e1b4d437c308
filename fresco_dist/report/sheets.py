"""The contact sheets of all points in one picture, side by side, each under its number and label."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from fresco_dist.report.lettering import Lettering
from fresco_dist.report.points import Point, shorten

CELL_PX, LABEL_PX, GAP = 640, 18, 8  # a cell is at most CELL_PX wide
BASE_PX = 13  # of LABEL_PX above the base line of the label


def write_sheets(path: Path, points: Sequence[Point]) -> None:
    """A near-square grid in the order of the points; no file if no point has a contact sheet."""
    path.unlink(missing_ok=True)
    lettering = Lettering(point.label for point in points)
    cells = []
    for point in points:
        source = point.folder / "contact_sheet.png"
        if source.is_file():
            with Image.open(source) as sheet:
                cell = sheet.convert("RGB")
            cell.thumbnail((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            cells.append((point, cell))
    if not cells:
        return
    columns = math.ceil(math.sqrt(len(cells)))
    width = max(cell.width for _, cell in cells) + GAP
    height = max(cell.height for _, cell in cells) + LABEL_PX + GAP
    picture = Image.new("RGB", (columns * width, math.ceil(len(cells) / columns) * height), "white")
    draw = ImageDraw.Draw(picture)
    for i, (point, cell) in enumerate(cells):
        left, top = i % columns * width, i // columns * height
        number, label = f"{point.number}: ", lettering.shown(point.label)
        room = width - GAP - lettering.width_px(number)
        label = shorten(label, partial(_fits, lettering, room))
        lettering.draw(draw, left + 2, top + BASE_PX, number + label)
        picture.paste(cell, (left, top + LABEL_PX))
    picture.save(path)


def _fits(lettering: Lettering, room_px: float, text: str) -> bool:
    return lettering.width_px(text) <= room_px
