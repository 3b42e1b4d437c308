"""What is animated, in which windows, and what holds them together."""

from dataclasses import dataclass
from typing import ClassVar

from fresco_dist.config.checks import require
from fresco_dist.config.choices import Border


@dataclass
class RegionConfig:
    """A part of the picture with a prompt of its own: where the mask, a picture, is light, or inside a box.

    `box` is [left, top, right, bottom] in shares of the picture.
    """

    prompt: str = ""
    mask: str | None = None
    box: list[float] | None = None

    def check(self, key: str) -> None:
        """Raise InputError, with the key of this entry, if it makes no sense."""
        require(self.prompt.strip() != "", f"{key}.prompt", '""', "a text", "Say what happens there.")
        given = [name for name in ("mask", "box") if getattr(self, name) is not None]
        allowed, remedy = "given a mask or a box", "Add one of mask: FILE and box: [left, top, right, bottom]."
        require(len(given) == 1, key, " and ".join(given) or "neither", allowed, remedy)
        require(self.mask != "", f"{key}.mask", '""', "a picture's file", "Give the file's path.")
        if self.box is not None:
            in_order = len(self.box) == 4 and all(0 <= a < b <= 1 for a, b in zip(self.box[:2], self.box[2:]))
            allowed = "[left, top, right, bottom] in shares of the picture, 0 to 1, left < right, top < bottom"
            require(in_order, f"{key}.box", self.box, allowed, "The left half is [0, 0, 0.5, 1].")


@dataclass
class TilesConfig:
    """Windows: [height, width] in pixels, overlap as a share of the window, smallest blending weight at an edge.

    `fit` lets the planner raise the overlap a little, so that the windows fill the workers; `batch` is the number of
    windows per forward, null what the planner takes for the GPU. What it chooses is recorded. Where windows lie side by
    side on a grid that is shifted at each step, they overlap in the first `overlap_steps` steps nevertheless.
    """

    window: list[int]
    overlap: float
    min_weight: float
    fit: bool
    batch: int | None
    overlap_steps: int
    border: Border

    def __post_init__(self) -> None:
        require(
            len(self.window) == 2 and min(self.window) >= 1,
            "tiles.window",
            self.window,
            "[height, width] in pixels, each at least 1",
            "Try the model's native size.",
        )
        require(0.0 <= self.overlap < 1.0, "tiles.overlap", self.overlap, "in [0, 1)", "Try 0.5.")
        require(0.0 < self.min_weight <= 1.0, "tiles.min_weight", self.min_weight, "in (0, 1]", "Try 0.05.")
        batch = self.batch
        require(batch is None or 1 <= batch <= 64, "tiles.batch", batch, "in [1, 64], or null", "Try 1.")
        require(self.overlap_steps >= 0, "tiles.overlap_steps", self.overlap_steps, "at least 0", "Try 1.")


@dataclass(kw_only=True)
class FusionConfig:
    """What holds the tiles together: a recipe by its name, and what all recipes have; see `method.recipes`."""

    method: str
    activity_map: str | None = None

    moves: ClassVar[bool] = False
    takes_levels: ClassVar[bool] = False
    takes_activity_map: ClassVar[bool] = False
    detail_map: ClassVar[str | None] = None  # of recipes that have such a key


@dataclass
class Sam3Config:
    """The activity map that SAM 3 makes of a picture (the paper's C.4), with `fusion.activity_map=sam3`.

    Of each prompt, masks with a score above `score_threshold` are kept, each where its probability is above
    `mask_threshold`, unless it covers more than `max_area` of the picture, or more than `max_border` of it lies within
    `border` of the picture's edge; then it grows by `dilation` on all sides. `border` and `dilation` are shares of the
    picture's shorter side. What a prompt's masks cover counts once; a latent cell is active where the mean over the
    prompts is above `threshold`.
    """

    path: str | None
    prompts: list[str]
    score_threshold: float
    mask_threshold: float
    max_area: float
    border: float
    max_border: float
    dilation: float
    threshold: float

    def __post_init__(self) -> None:
        prompts, allowed = self.prompts, "at least one text, none of them empty"
        named = bool(prompts) and all(prompt.strip() for prompt in prompts)
        require(named, "sam3.prompts", prompts, allowed, "Try [person,vegetation,vehicles].")
        require(self.path != "", "sam3.path", '""', "a directory or null", "Give the directory's path.")
        for name in ("score_threshold", "mask_threshold", "max_area", "border", "max_border", "dilation", "threshold"):
            share = getattr(self, name)
            require(0.0 <= share <= 1.0, f"sam3.{name}", share, "in [0, 1]", "See conf/config.yaml.")
