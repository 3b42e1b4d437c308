"""Prompts to embeddings, as `WanImageToVideoPipeline.encode_prompt` does; importing it takes seconds."""

import html
from pathlib import Path

import torch

from fresco_dist.models.checkpoint import load_component

MAX_SEQUENCE_LENGTH = 512  # WanImageToVideoPipeline's default, and what its attention counts on


def encode_prompts(path: Path, prompts: list[str], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Embeddings (len(prompts), MAX_SEQUENCE_LENGTH, features), float32 on the CPU: zero after each prompt's end.

    `path` is the model's directory; `dtype` is what the text encoder computes in.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path / "tokenizer", trust_remote_code=False)
    encoder = load_component(transformers.UMT5EncoderModel, path / "text_encoder", dtype=dtype).to(device)
    tokens = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        max_length=MAX_SEQUENCE_LENGTH,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(device)
    embeds = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return embeds.where(tokens.attention_mask[..., None] > 0, 0.0).float().cpu()


def clean_prompt(prompt: str) -> str:
    """Broken Unicode mended, HTML entities resolved (also those escaped twice), white space collapsed."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
