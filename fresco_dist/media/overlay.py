"""A map to look at: the picture, with what is active in colour."""

import numpy as np
from PIL import Image

COLOUR = np.array([255, 120, 0], dtype=np.float32)
STRENGTH = 0.55  # of the colour where the map is active
DIMMED = 0.6  # what the rest keeps of its light


def draw_overlay(picture_HW3: np.ndarray, active_hw: np.ndarray) -> Image.Image:
    """The picture, uint8, in colour where a map, bool of any size, is true, and darker elsewhere."""
    height, width = picture_HW3.shape[:2]
    active = np.asarray(Image.fromarray(active_hw).resize((width, height), Image.Resampling.NEAREST))[..., None]
    picture = picture_HW3.astype(np.float32)
    mixed = np.where(active, (1 - STRENGTH) * picture + STRENGTH * COLOUR, DIMMED * picture)
    return Image.fromarray(mixed.round().astype(np.uint8))
