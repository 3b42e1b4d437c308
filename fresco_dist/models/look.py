"""A look at latents without the decoder: the colour of a latent cell as a linear map of its channels.

    rgb = c + W z,   (c, W) = argmin mean |c + W z - rgb|^2 + RIDGE var |W|^2

over the cells of one small picture that stands still, as the model's own VAE encodes it, with `var` the mean variance
of its channels. The second term holds a VAE of many channels to what a small picture can tell of them.
C channels, T latent frames, H, W latent cells.
"""

import numpy as np
import torch
from PIL import Image

from fresco_dist.media.pictures import resize_image
from fresco_dist.models.backbone import Backbone

NUM_CELLS = 400  # of the small picture
NUM_FRAMES = 5  # of its clip, if the run's is not shorter: later latent frames are not like the first
RIDGE = 0.01
TINY = 1e-8  # of latents that do not vary at all


class Look:
    """The map of one model."""

    def __init__(self, backbone: Backbone, picture_HW3: np.ndarray, num_frames: int, spatial_factor: int) -> None:
        """Fit it on a picture, uint8, as a clip of at most `num_frames`; raises whatever the VAE does."""
        height, width = picture_HW3.shape[:2]
        side = (NUM_CELLS / (height * width)) ** 0.5
        cells = max(1, round(width * side)), max(1, round(height * side))
        image = Image.fromarray(picture_HW3)
        small_HW3 = torch.tensor(resize_image(image, tuple(cell * spatial_factor for cell in cells)))
        clip_FHW3 = small_HW3.expand(min(num_frames, NUM_FRAMES), -1, -1, -1)
        z_CTHW = backbone.normalise(backbone.encode_clip(clip_FHW3))
        device, z_CTHW = z_CTHW.device, z_CTHW.float().cpu()  # solvers for a GPU take a second to load
        rgb_HW3 = torch.tensor(resize_image(image, cells)).float()
        rgb_N3 = rgb_HW3.expand(z_CTHW.shape[1], -1, -1, -1).reshape(-1, 3)
        z_NC = z_CTHW.flatten(1).T
        mean_C, mean_3 = z_NC.mean(0), rgb_N3.mean(0)
        z_NC = z_NC - mean_C
        cov_CC = z_NC.T @ z_NC / len(z_NC)
        cov_CC += (RIDGE * cov_CC.diagonal().mean() + TINY) * torch.eye(len(mean_C))
        W_C3 = torch.linalg.solve(cov_CC, z_NC.T @ (rgb_N3 - mean_3) / len(z_NC))
        self._W_3C, self._c_31 = W_C3.T.contiguous().to(device), (mean_3 - mean_C @ W_C3)[:, None].to(device)

    def __call__(self, z_CTHW: torch.Tensor) -> np.ndarray:
        """uint8 (T, H, W, 3) of normalised latents."""
        rgb_3N = torch.addmm(self._c_31, self._W_3C, z_CTHW.flatten(1)).clamp_(0.0, 255.0).round_().byte()
        return np.ascontiguousarray(rgb_3N.T.cpu().numpy()).reshape(*z_CTHW.shape[1:], 3)
