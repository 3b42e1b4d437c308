"""SAM 3 from a directory of the user's: where in a picture motion is to be expected (the paper's C.4).

Loads transformers' Sam3Model and its tokenizer. Pictures are prepared and masks are read as Sam3Processor does, which
needs torchvision. Every complaint names `sam3.path`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fresco_dist.config import InputError, Sam3Config, require
from fresco_dist.method.activity import mean_support, support
from fresco_dist.models.pretrained import find_variant, has_weights_of, load_pretrained

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("sam3", "sam3_video")  # the published weights are of the second, which holds the first
PROMPT_TOKENS = 32
MEAN, STD = 0.5, 0.5  # of pixels in [0, 1]


def check_sam3(path: Path) -> None:
    """Raise InputError unless `path` is a directory that names itself SAM 3 and has weights and a tokenizer."""
    complete = has_weights_of(path, "sam3.path", *MODEL_TYPES) and any(path.glob("tokenizer*"))
    allowed = "a directory with config.json (model_type sam3 or sam3_video), a tokenizer and .safetensors weights"
    require(complete, "sam3.path", path, allowed, "Get facebook/sam3, whose licence must be accepted first.")
    find_variant(path, "sam3.path")


class Sam3:
    """The model on a device."""

    def __init__(self, path: Path, device: "torch.device") -> None:
        import transformers

        check_sam3(path)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(f"sam3.path: {path} cannot be loaded: {' '.join(str(error).split())}") from error
        self._model = load_pretrained("Sam3Model", path, "sam3.path").to(device)
        self._device = device

    def activity_map(self, picture_HW3: np.ndarray, config: Sam3Config) -> tuple[np.ndarray, dict[str, list[int]]]:
        """The share of the prompts that see what may move, float32 (h, w) in [0, 1], of a picture, uint8.

        It is no larger than what the model sees of the picture. And how many masks of each prompt have the score, and
        how many of these were kept.
        """
        import torch

        side = max(picture_HW3.shape[:2])
        scale = min(1.0, self._side / side)
        size = tuple(max(1, round(length * scale)) for length in picture_HW3.shape[:2])
        supports_hw, masks = [], {}
        with torch.inference_mode():
            features = self._model.get_vision_features(pixel_values=self._pixels(picture_HW3))
            for prompt in config.prompts:
                found = list(self._masks(features, prompt, config, size))
                covered_hw, num_kept = support(found, config, size)
                supports_hw.append(covered_hw)
                masks[prompt] = [len(found), num_kept]
        return mean_support(supports_hw), masks

    @property
    def _side(self) -> int:
        """Of the square that the model sees, in pixels."""
        side = self._model.config.vision_config.image_size
        return side if isinstance(side, int) else side[0]

    def _pixels(self, picture_HW3: np.ndarray) -> "torch.Tensor":
        import torch

        pixels_13HW = torch.tensor(picture_HW3, device=self._device).permute(2, 0, 1)[None].float()
        square = torch.nn.functional.interpolate(pixels_13HW, (self._side,) * 2, mode="bilinear", antialias=True)
        return (square.round().clamp(0, 255) / 255.0 - MEAN) / STD

    def _masks(self, features: Any, prompt: str, config: Sam3Config, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The masks of a prompt that have the score, bool (h, w): that of the mask times that of its presence."""
        from torch.nn.functional import interpolate

        text = self._tokenizer(
            prompt, return_tensors="pt", padding="max_length", truncation=True, max_length=PROMPT_TOKENS
        ).to(self._device)
        found = self._model(vision_embeds=features, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        scores = found.pred_logits[0].sigmoid() * found.presence_logits[0].sigmoid()
        for logits_hw in found.pred_masks[0][scores > config.score_threshold]:
            probabilities = interpolate(logits_hw.sigmoid()[None, None], size, mode="bilinear")[0, 0]
            yield (probabilities > config.mask_threshold).cpu().numpy()
