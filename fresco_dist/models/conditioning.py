"""What a model is given beside the noisy latents and the prompt.

A canvas-shaped part, which is cut with the window, and image embeddings, which are not. Shapes: C channels, T latent
frames, H, W latent cells.
"""

from dataclasses import dataclass

import torch

from fresco_dist.method.grid import Window


@dataclass(frozen=True)
class Conditioning:
    """Made by a backbone, cut by `crop`, given back to the backbone's `predict` and `finish`.

    `canvas_CTHW` may have other channels and fewer frames than the latents. `image_embeds` holds one tensor for all
    windows, one per window, or none.
    """

    canvas_CTHW: torch.Tensor
    image_embeds: tuple[torch.Tensor, ...] = ()

    def crop(self, window: Window, index: int = 0) -> "Conditioning":
        """The part inside `window`, the canvas' window number `index`.

        Any rectangle can be cut for `finish`, which takes no embeddings; `index` then does not matter.
        """
        embeds = self.image_embeds if len(self.image_embeds) <= 1 else (self.image_embeds[index],)
        return Conditioning(self.canvas_CTHW[(..., *window.slices)], embeds)
