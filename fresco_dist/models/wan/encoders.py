"""Texts and pictures to embeddings, as `WanImageToVideoPipeline` makes them.

Making an encoder loads it; whoever holds it decides how long it stays. Importing transformers takes seconds, so it is
left until then.
"""

import html
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fresco_dist.models.loading import load_component, loading
from fresco_dist.models.places import CLIP_VISION, UMT5

MAX_SEQUENCE_LENGTH = 512  # WanImageToVideoPipeline's default, and what its attention counts on


class TextEncoder:
    """UMT5 and its tokenizer, of the model at `path`; it computes in `dtype`."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        import transformers

        self._device = device
        with loading(path / "tokenizer"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                path / "tokenizer", local_files_only=True, trust_remote_code=False
            )
        encoder = load_component(transformers.UMT5EncoderModel, path / "text_encoder", UMT5, dtype=dtype)
        self._encoder = encoder.to(device)

    def encode(self, text: str) -> torch.Tensor:
        """Embeddings (MAX_SEQUENCE_LENGTH, features), float32 on the CPU: zero after the text's end."""
        tokens = self._tokenizer(
            [clean_prompt(text)],
            padding="max_length",
            max_length=MAX_SEQUENCE_LENGTH,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._device)
        (embeds,) = self._encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return embeds.where(tokens.attention_mask[0, :, None] > 0, 0.0).float().cpu()


class ImageEncoder:
    """CLIP and its image processor, of the model at `path`; it computes in float32, as the pipeline's."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import transformers

        self._device = device
        with loading(path / "image_processor"):
            self._processor = transformers.CLIPImageProcessor.from_pretrained(
                path / "image_processor", local_files_only=True
            )
        encoder = load_component(transformers.CLIPVisionModel, path / "image_encoder", CLIP_VISION, dtype=torch.float32)
        self._encoder = encoder.to(device)

    def embed(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """The last hidden state but one (pictures, tokens, features), float32 on the CPU, of uint8 (H, W, 3)."""
        images = [Image.fromarray(picture_HW3.cpu().numpy()) for picture_HW3 in pictures]
        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        return self._encoder(**inputs, output_hidden_states=True).hidden_states[-2].float().cpu()


def clean_prompt(prompt: str) -> str:
    """Broken Unicode mended, HTML entities resolved (also those escaped twice), white space collapsed."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
