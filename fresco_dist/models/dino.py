"""A DINOv3 encoder from a directory of the user's: one frame to its class token (the paper's C.1.3).

Loads transformers' DINOv3ViTModel from local safetensors; nothing is downloaded. Every complaint names `dino_path`.
"""

import json
from pathlib import Path

import numpy as np

from fresco_dist.config import InputError, require

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the LVD-1689M weights


def check_dino(path: Path) -> None:
    """Raise InputError unless `path` is a directory that names itself a DINOv3 encoder and has weights."""
    kind = _read_json(path / "config.json").get("model_type") if (path / "config.json").is_file() else None
    complete = kind == "dinov3_vit" and any(path.glob("*.safetensors"))
    allowed = "a directory with config.json (model_type dinov3_vit) and .safetensors weights"
    require(complete, "dino_path", path, allowed, "Save one with transformers' DINOv3ViTModel.")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"dino_path: {path} cannot be read as JSON ({error}). Copy the encoder again.") from None
    return value if isinstance(value, dict) else {}


class DinoEncoder:
    """The encoder on a device of torch's; pixels are normalised as the directory's preprocessor says."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        check_dino(path)
        import torch
        import transformers

        self._device = torch.device(device)
        try:
            model, info = transformers.DINOv3ViTModel.from_pretrained(
                path, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"dino_path: {path} cannot be loaded: {' '.join(str(error).split())}") from error
        if info["missing_keys"] or info["mismatched_keys"]:
            raise InputError(f"dino_path: {path} lacks tensors of the encoder. Copy it again.")
        self._model = model.eval().to(self._device)
        preprocessor = path / "preprocessor_config.json"
        values = _read_json(preprocessor) if preprocessor.is_file() else {}
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
