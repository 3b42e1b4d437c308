"""The contact sheets of all points in one picture, side by side, each under its label."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from fresco_dist.report.points import Point

CELL_PX, LABEL_PX, GAP = 640, 18, 8  # a cell is at most CELL_PX wide


def write_sheets(path: Path, points: Sequence[Point]) -> None:
    """A near-square grid in the order of the points; no file if no point has a contact sheet."""
    path.unlink(missing_ok=True)
    sources = [(point.label, point.folder / "contact_sheet.png") for point in points]
    cells = []
    for label, source in sources:
        if source.is_file():
            with Image.open(source) as sheet:
                cell = sheet.convert("RGB")
            cell.thumbnail((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            cells.append((label, cell))
    if not cells:
        return
    columns = math.ceil(math.sqrt(len(cells)))
    width = max(cell.width for _, cell in cells) + GAP
    height = max(cell.height for _, cell in cells) + LABEL_PX + GAP
    picture = Image.new("RGB", (columns * width, math.ceil(len(cells) / columns) * height), "white")
    draw = ImageDraw.Draw(picture)
    for i, (label, cell) in enumerate(cells):
        left, top = i % columns * width, i // columns * height
        draw.text((left + 2, top + 3), _fitting(draw, label, width - GAP), fill="black")
        picture.paste(cell, (left, top + LABEL_PX))
    picture.save(path)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text in a line, or as much of its beginning as fits."""
    text = " ".join(text.split())
    if draw.textlength(text) <= width:
        return text
    length = next(n for n in range(len(text), -1, -1) if draw.textlength(text[:n] + "...") <= width or not n)
    return text[:length] + "..."
