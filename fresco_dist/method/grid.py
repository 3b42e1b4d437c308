"""Where windows and VAE tiles lie on a canvas: integer arithmetic only (METHOD 2, after A.1 of the paper).

All bounds are in the unit of the arguments (latent cells for windows). Nothing here knows a model or a tensor.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, combinations_with_replacement, pairwise

Tiles = Sequence[Sequence["Window"]]  # rows of VAE tiles


@dataclass(frozen=True)
class Window:
    """Integer bounds on a canvas: rows top..top+height, columns left..left+width."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the last two (H, W) dimensions of a canvas tensor."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def scaled(self, factor: int) -> "Window":
        """The same window in a unit `factor` times finer (latent cells to pixels)."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def intersection(self, other: "Window") -> "Window":
        """What both have in common; height or width is 0 or less if that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Window(top, left, bottom - top, right - left)

    def overlaps(self, other: "Window") -> bool:
        """Whether both have cells in common."""
        common = self.intersection(other)
        return common.height > 0 and common.width > 0

    def within(self, outer: "Window") -> "Window":
        """The same bounds, counted from the corner of `outer`."""
        return Window(self.top - outer.top, self.left - outer.left, self.height, self.width)


class _Spans:
    """Half-open intervals, each with a name, in the order of their starts."""

    def __init__(self, spans: Iterable[tuple[int, int, int]]) -> None:
        self._spans = sorted(spans)  # start, end, name
        self._starts = [start for start, _, _ in self._spans]
        self._reach = list(accumulate((end for _, end, _ in self._spans), max))  # the farthest end so far

    def overlapping(self, start: int, end: int) -> list[int]:
        """The names of those that overlap start..end: of intervals that do not lie in each other, no other is read."""
        first, last = bisect_right(self._reach, start), bisect_left(self._starts, end)
        return [name for _, until, name in self._spans[first:last] if until > start]


class WindowIndex:
    """Finds the windows that overlap another, row by row, without a look at the others.

    For any windows; quick where many have their rows in common.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        rows: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for i, window in enumerate(windows):
            row = rows.setdefault((window.top, window.top + window.height), [])
            row.append((window.left, window.left + window.width, i))
        self._rows = _Spans((top, bottom, i) for i, (top, bottom) in enumerate(rows))
        self._columns = [_Spans(columns) for columns in rows.values()]

    def overlapping(self, window: Window) -> list[int]:
        """Which windows overlap this one, in order."""
        rows = self._rows.overlapping(window.top, window.top + window.height)
        columns = (window.left, window.left + window.width)
        return sorted(i for row in rows for i in self._columns[row].overlapping(*columns))


def snap_down(size: int, multiple: int) -> int:
    """Largest multiple of `multiple` not above `size`, and at least one multiple."""
    return max(multiple, size // multiple * multiple)


def fit_cap(image_px: tuple[int, int], max_size: list[int]) -> tuple[int, int]:
    """(width, height) in pixels of the image, reduced to the cap keeping its shape; the cap is turned for portraits."""
    width, height = image_px
    scale = min(1.0, max(max_size) / max(width, height), min(max_size) / min(width, height))
    return round(width * scale), round(height * scale)


def fit_area(image_px: tuple[int, int], area: int, grid_px: int) -> tuple[int, int]:
    """(width, height) of about `area` pixels at the image's aspect ratio, snapped down to the grid (METHOD 3)."""
    width, height = image_px
    scale = math.sqrt(area / (width * height))
    # 1e-9: a side that is a multiple already must not fall to the next one through rounding
    return (
        snap_down(int(width * scale + 1e-9), grid_px),
        snap_down(int(height * scale + 1e-9), grid_px),
    )


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Starts of windows along one axis: every `stride`, and a last one flush with the end so that all is covered.

    A canvas smaller than a window gets one window of canvas size, starting at 0.
    """
    if size <= window:
        return [0]
    starts = list(range(0, size - window + 1, stride))
    if starts[-1] != size - window:
        starts.append(size - window)
    return starts


def place_windows(canvas: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Windows (row-major) that cover `canvas` (height, width) exactly; none leaves it."""
    height, width = (min(c, w) for c, w in zip(canvas, window))
    return [
        Window(top, left, height, width)
        for top in window_starts(canvas[0], window[0], stride[0])
        for left in window_starts(canvas[1], window[1], stride[1])
    ]


def cut_windows(canvas: tuple[int, int], window: tuple[int, int]) -> list[Window]:
    """Windows side by side, row-major, the last ones cut at the border."""
    (height, width), (rows, columns) = canvas, window
    return [
        Window(top, left, min(rows, height - top), min(columns, width - left))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


@cache
def seam_offsets(size: int, window: int, multiple: int) -> tuple[int, ...]:
    """Along one axis, the few lengths, 0 to `window` - 1, that a first window may be cut to, so that others follow.

    Neither it nor what is left for the last one is shorter than a quarter of a window, but for 0. Where seams lie with
    one of these lengths and with another, they are at least a quarter apart, or as far as windows of few cells allow.
    With a length belongs that of the last window, so that few different ones occur. Both are multiples of `multiple`,
    as `size` and `window` are.
    """
    rest = size % window
    if size <= window:
        return (0,)

    def worth(offsets: Collection[int]) -> tuple[int, ...]:
        """Several before one alone; of those far enough apart the most, of the others the farthest."""
        ordered = sorted(offsets)
        distance = min(later - one for one, later in pairwise([*ordered, ordered[0] + window]))
        if len(offsets) == 1:
            return (0,)
        return (2, len(offsets), distance) if 4 * distance >= window else (1, distance)

    allowed = [0, *range(-(-window // (4 * multiple)) * multiple, window, multiple)]
    pairs = {frozenset({first, (rest - first) % window}) for first in allowed if (rest - first) % window in allowed}
    ordered = sorted(map(sorted, pairs))
    sets = [set(chain(*some)) for some in combinations_with_replacement(ordered, 3)]
    best = max(sets, key=worth)
    return tuple(sorted(best))


def shifted_windows(
    canvas: tuple[int, int], window: tuple[int, int], offsets: tuple[int, int], *, inside: bool
) -> list[Window]:
    """Windows side by side, row-major, the first ones `offsets` (height, width) long, 0: not cut, the last ones cut.

    With `inside` those that would be cut are moved inside instead, where they overlap others.
    """
    axes = []
    for size, side, offset in zip(canvas, window, offsets):
        edges = [0, *range(offset or side, size, side), size]
        spans = [(start, end - start) for start, end in pairwise(edges)]
        length = min(side, size)
        axes.append([(min(start, size - length), length) for start, _ in spans] if inside else spans)
    return [Window(top, left, height, width) for top, height in axes[0] for left, width in axes[1]]


def rolled_windows(
    canvas: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], offsets: tuple[int, int]
) -> list[Window]:
    """Full windows, row-major, one every `stride` (height, width) from `offsets` on, before it and after.

    Those that would leave the canvas are moved inside, once.
    """
    axes = []
    for size, side, step, offset in zip(canvas, window, stride, offsets):
        last = max(0, size - side)
        starts = range(offset % step - step, last + step, step)
        axes.append([(start, min(side, size)) for start in dict.fromkeys(min(max(0, s), last) for s in starts)])
    return [Window(top, left, height, width) for top, height in axes[0] for left, width in axes[1]]


def place_cells(canvas: tuple[int, int], windows: Sequence[Window]) -> list[Window]:
    """The canvas (height, width) cut along the top and left edges of its windows, row-major: as many cells as windows.

    Cell i begins where window i does and ends where the next windows begin. Cutting along the bottom and right edges
    too would gain nothing: the cells inside a window need the same windows either way, those that overlap it.
    """
    tops, lefts = sorted({w.top for w in windows}), sorted({w.left for w in windows})
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in zip(tops, [*tops[1:], canvas[0]], strict=True)
        for left, right in zip(lefts, [*lefts[1:], canvas[1]], strict=True)
    ]


def place_fine_cells(canvas: tuple[int, int], windows: Sequence[Window]) -> list[Window]:
    """The canvas (height, width) cut along all edges of its windows: each covers a cell wholly, or nothing of it."""
    rows = sorted({0, canvas[0], *(w.top for w in windows), *(w.top + w.height for w in windows)})
    columns = sorted({0, canvas[1], *(w.left for w in windows), *(w.left + w.width for w in windows)})
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def window_and_stride(window_px: int, overlap: float, spatial_factor: int, patch: int) -> tuple[int, int]:
    """Window and nominal stride in latent cells; the window is a multiple of `patch`, snapped down, at least one.

    Stride = window x (1 - overlap), rounded, at least one cell. It needs no multiple of `patch`: a crop may start
    anywhere.
    """
    window = snap_down(window_px // spatial_factor, patch)
    return window, max(1, int(window * (1.0 - overlap) + 0.5))


def vae_tiles(size: tuple[int, int], tile: int, stride: int) -> tuple[tuple[Window, ...], ...]:
    """Rows of VAE tiles as diffusers lays them: a start every `stride`, the last ones cut at the border.

    A canvas that fits into one tile is one tile: diffusers does not tile it either.
    """
    height, width = size
    if height <= tile and width <= tile:
        return ((Window(0, 0, height, width),),)
    return tuple(
        tuple(Window(top, left, min(tile, height - top), min(tile, width - left)) for left in range(0, width, stride))
        for top in range(0, height, stride)
    )


def flat(tiles: Tiles) -> list[Window]:
    """VAE tiles, row by row."""
    return [tile for row in tiles for tile in row]


def tiles_over(tiles: Tiles, part: Window) -> Tiles:
    """The rectangle of VAE tiles that `part` has cells in common with: what is blended there comes from no other."""
    rows = [row for row in tiles if row[0].top < part.top + part.height and row[0].top + row[0].height > part.top]
    return [
        [tile for tile in row if tile.left < part.left + part.width and tile.left + tile.width > part.left]
        for row in rows
    ]


def core_size(tiles: Tiles, i: int, j: int) -> tuple[int, int]:
    """(height, width) of the part of VAE tile (i, j) that is kept: up to where the next tile starts."""
    tile = tiles[i][j]
    height = tiles[i + 1][j].top - tile.top if i + 1 < len(tiles) else tile.height
    width = tiles[i][j + 1].left - tile.left if j + 1 < len(tiles[i]) else tile.width
    return height, width


def tile_cores(tiles: Tiles) -> list[Window]:
    """The parts of VAE tiles that are kept, row by row: a partition."""
    return [
        Window(tile.top, tile.left, *core_size(tiles, i, j))
        for i, row in enumerate(tiles)
        for j, tile in enumerate(row)
    ]
