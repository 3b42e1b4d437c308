"""Previews in a terminal that shows pictures, above the progress line. Where none is known to be shown, nothing is.

Which terminal it is the environment says; it is never asked, since an answer would come as if it had been typed.

    kitty   https://sw.kovidgoyal.net/kitty/graphics-protocol
    iTerm2  https://iterm2.com/documentation-images.html
"""

import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.segment import Segment

from fresco_dist.jobs.preview import encode_png, lay_out
from fresco_dist.jobs.progress import Listener, Progress, nobody

COLUMNS, ROWS = 72, 16  # at most
CELL_ASPECT = 2.0  # a terminal's cell is about that much higher than wide
CHUNK = 4096  # base64 characters of one of kitty's sequences

Encode = Callable[[bytes, int], str]  # a PNG, and the rows that it takes


def kitty(png: bytes, rows: int) -> str:
    """Transmit and show, without an answer (q=2), and leave the cursor (C=1)."""
    text = b64encode(png).decode()
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    first, more = f"a=T,f=100,C=1,q=2,r={rows},", len(chunks) - 1
    return "".join(f"\x1b_G{first * (i == 0)}m={int(i < more)};{chunk}\x1b\\" for i, chunk in enumerate(chunks))


def iterm2(png: bytes, rows: int) -> str:
    """An inline image."""
    size = f"size={len(png)};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File=inline=1;{size}:{b64encode(png).decode()}\x07"


def encoder_for(environment: Mapping[str, str]) -> Encode | None:
    """How the terminal is told of pictures; None if it shows none, or another program stands between."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("tmux", "screen")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return kitty
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    return None


def shows_previews(console: Console, environment: Mapping[str, str]) -> Listener:
    """Shows the previews of one run on a console; nothing on one that is no terminal."""
    encode = encoder_for(environment)
    if encode is None or not console.is_terminal or not console.file.isatty():
        return nobody

    def show(progress: Progress) -> None:
        if progress.preview is not None:
            frames_FHW3 = progress.preview
            image = lay_out(frames_FHW3, frames_FHW3.shape[2:0:-1])
            columns = min(COLUMNS, console.width)
            rows = max(1, min(ROWS, math.floor(columns * image.height / image.width / CELL_ASPECT)))
            console.print(_Room(encode(encode_png(image), rows), rows), end="", crop=False)

    return show


class _Room:
    """Some rows, and a sequence that fills them; to rich it takes no width, so that its live line stays below."""

    def __init__(self, sequence: str, rows: int) -> None:
        self._sequence, self._rows = sequence, rows

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        yield from [Segment.line()] * self._rows  # first: no terminal scrolls under a picture then
        back_and_forth = f"\x1b[{self._rows}A\x1b7{self._sequence}\x1b8\x1b[{self._rows}B"
        yield Segment(back_and_forth, control=[])
