"""A DINOv3 encoder from a directory of the user's: one frame to its class token (the paper's C.1.3).

Loads transformers' DINOv3ViTModel from local safetensors; nothing is downloaded. Every complaint names `dino_path`.
"""

from pathlib import Path

import numpy as np

from fresco_dist.config import require
from fresco_dist.models.checkpoint import read_json
from fresco_dist.models.pretrained import find_variant, has_weights_of, load_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the LVD-1689M weights


def check_dino(path: Path) -> None:
    """Raise InputError unless `path` is a directory that names itself a DINOv3 encoder and has weights."""
    complete = has_weights_of(path, "dino_path", "dinov3_vit")
    allowed = "a directory with config.json (model_type dinov3_vit) and .safetensors weights"
    require(complete, "dino_path", path, allowed, "Save one with transformers' DINOv3ViTModel.")
    find_variant(path, "dino_path")


class DinoEncoder:
    """The encoder on a device of torch's; pixels are normalised as the directory's preprocessor says."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        check_dino(path)
        import torch

        self._device = torch.device(device)
        self._model = load_pretrained("DINOv3ViTModel", path, "dino_path").to(self._device)
        values = read_json(path / "preprocessor_config.json", key="dino_path", missing_ok=True)
        shape = (3, 1, 1)
        self._mean = torch.tensor(values.get("image_mean", IMAGENET_MEAN), device=self._device).view(shape)
        self._std = torch.tensor(values.get("image_std", IMAGENET_STD), device=self._device).view(shape)

    def __call__(self, frame_HW3: np.ndarray) -> np.ndarray:
        """Class token, float32 (D,), of a uint8 frame at its own size; a rest of less than a patch is left out."""
        import torch

        pixels_3HW = torch.tensor(frame_HW3, device=self._device).permute(2, 0, 1) / 255.0
        with torch.inference_mode():
            found = self._model(((pixels_3HW - self._mean) / self._std)[None])
        return found.pooler_output[0].float().cpu().numpy()
