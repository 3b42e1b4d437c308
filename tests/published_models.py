"""Small random models in the layout of the published Wan checkpoints.

`published/NAME.json` holds the configuration files of one checkpoint as diffusers' conversion writes them; here the
number of layers and the widths are reduced and nothing else.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from conftest import WORDS
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers

FOLDER = Path(__file__).parent / "published"
HEADS, HEAD_DIM, TEXT_DIM, IMAGE_DIM = 2, 12, 16, 16


def published(name: str) -> dict[str, dict]:
    """Configuration files of a published checkpoint, by their path in its directory."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def small_transformer(config: dict, seed: int, head_dim: int = HEAD_DIM) -> WanTransformer3DModel:
    """The published transformer with two narrow layers and weights that make prompt and timestep matter."""
    torch.manual_seed(seed)
    small: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "attention_head_dim": head_dim,
        "num_layers": 2,
        "ffn_dim": 32,
        "text_dim": TEXT_DIM,
        "freq_dim": 16,
    }
    if config["image_dim"] is not None:
        small |= {"image_dim": IMAGE_DIM, "added_kv_proj_dim": HEADS * head_dim}
    transformer = WanTransformer3DModel.from_config(config | small)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transformer


def make_text_encoder() -> tuple[transformers.PreTrainedTokenizerFast, transformers.UMT5EncoderModel]:
    """A tokenizer of a few words, and a text encoder for it."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = transformers.UMT5Config(
        vocab_size=len(vocabulary), d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    return fast, transformers.UMT5EncoderModel(config)


def make_published(name: str, path: Path, head_dim: int = HEAD_DIM) -> Path:
    """Save the small model of a published checkpoint at `path`."""
    files = published(name)
    index = files["model_index.json"]
    torch.manual_seed(0)
    tokenizer, text_encoder = make_text_encoder()
    narrow = {"base_dim": 4, "num_res_blocks": 1}
    if files["vae/config.json"].get("decoder_base_dim"):
        narrow["decoder_base_dim"] = 4
    image_encoder = image_processor = None
    if "image_encoder/config.json" in files:
        small = {"hidden_size": IMAGE_DIM, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        config = transformers.CLIPVisionConfig(**files["image_encoder/config.json"] | small)
        image_encoder, image_processor = transformers.CLIPVisionModel(config), transformers.CLIPImageProcessor()
    second = files.get("transformer_2/config.json")
    scheduler = files["scheduler/scheduler_config.json"]
    WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderKLWan.from_config(files["vae/config.json"] | narrow),
        scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
        image_processor=image_processor,
        image_encoder=image_encoder,
        transformer=small_transformer(files["transformer/config.json"], 1, head_dim),
        transformer_2=None if second is None else small_transformer(second, 2, head_dim),
        boundary_ratio=index["boundary_ratio"],
        expand_timesteps=index["expand_timesteps"],
    ).save_pretrained(path, safe_serialization=True)
    written = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(written | {"_class_name": index["_class_name"]}))
    return path
