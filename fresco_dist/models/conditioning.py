"""What a model is given beside the noisy latents and the prompt.

Something of the shape of a window or another part of the canvas, and image embeddings. Shapes: C channels, T latent
frames, H, W latent cells.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Conditioning:
    """Made by a backbone of a part of the canvas, given back to the backbone's `predict` and `finish`.

    `canvas_CTHW` may have other channels and fewer frames than the latents. `image_embeds` holds one tensor or none;
    `finish` takes none.
    """

    canvas_CTHW: torch.Tensor
    image_embeds: tuple[torch.Tensor, ...] = ()
