"""Labels in pictures, in whatever script: lines of text, and fonts of this machine that have their letters.

DejaVu Sans, which matplotlib brings, comes first. A letter that no font has is a box.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from unicodedata import category

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

SIZE_PX = 11
BOX = "\u25a1"
INVISIBLE = ("Cc", "Cf", "Mn")  # nothing is missed without them
USUAL = ("Regular", "Book", "Medium", "Roman")


class Lettering:
    """For texts that are known beforehand."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Choose as few fonts as have all letters that any font has."""
        self._letters = {path: letters for path, letters, _ in [_read(_default())]}
        lacking = {ord(letter) for text in texts for letter in line(text)} - self._letters[_default()]
        while lacking:
            found = max(_system_fonts(), key=lambda font: (len(font[1] & lacking), font[2]), default=None)
            if found is None or not found[1] & lacking:
                break
            path, letters, _ = found
            self._letters[path], lacking = letters, lacking - letters
        self._fonts = {path: ImageFont.truetype(path, SIZE_PX) for path in self._letters}

    def shown(self, text: str) -> str:
        """A text in one line, with boxes for letters that no font has."""
        return "".join(letter if self._font_of(letter) else _in_place_of(letter) for letter in line(text))

    def for_figures(self) -> AbstractContextManager:
        """While it lasts, matplotlib writes texts with these fonts and takes no part of them for a formula."""
        known = font_manager.fontManager.ttflist
        for path in self._letters:
            entry = font_manager.ttfFontProperty(FT2Font(str(path)))
            entry = replace(entry, name=str(path), style="normal", weight=400, stretch="normal")  # taken as it is
            known += [entry] * (entry not in known)
        names = list(map(str, self._letters))
        return matplotlib.rc_context({"font.family": names, "text.parse_math": False})

    def width_px(self, text: str) -> float:
        """Of a text that is `shown`."""
        return sum(self._fonts[path].getlength(part) for path, part in self._parts(text))

    def draw(self, draw: ImageDraw.ImageDraw, left: float, base: float, text: str) -> None:
        """A text that is `shown`, in black, from the left end of its base line on."""
        for path, part in self._parts(text):
            draw.text((left, base), part, font=self._fonts[path], fill="black", anchor="ls")
            left += self._fonts[path].getlength(part)

    def _font_of(self, letter: str) -> Path | None:
        return next((path for path, letters in self._letters.items() if ord(letter) in letters), None)

    def _parts(self, text: str) -> list[tuple[Path, str]]:
        """Each as long as one font has its letters."""
        parts = groupby(text, key=lambda letter: self._font_of(letter) or _default())
        return [(path, "".join(letters)) for path, letters in parts]


def line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def ranges(numbers: Sequence[str]) -> str:
    """Of points, in their order: "0-2, 5"."""
    ordered = sorted({int(number) for number in numbers if number})
    runs = [[n for _, n in run] for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _in_place_of(letter: str) -> str:
    return "" if category(letter) in INVISIBLE else BOX


@cache
def _default() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _system_fonts() -> list[tuple[Path, frozenset[int], bool]]:
    """Those of any size. A list that matplotlib keeps would not have those that are new."""
    found = []
    for path in sorted(font_manager.findSystemFonts()):
        with suppress(RuntimeError, OSError):  # not all that lies there can be read
            if FT2Font(path).scalable:
                found.append(_read(Path(path)))
    return found


def _read(path: Path) -> tuple[Path, frozenset[int], bool]:
    """A font, the code points that it has, and whether it is neither bold nor italic."""
    font = FT2Font(str(path))
    return path, frozenset(font.get_charmap()), font.style_name in USUAL
