"""A small random SAM 3 of transformers' own class, in the layout of the published directory."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("person", "vegetation", "vehicles", "water")
OVERRIDES = (
    "sam3.score_threshold=0.08",
    "sam3.max_area=0.8",
    "sam3.max_border=1",
    "sam3.threshold=0.5",
)  # some are left


def make_sam3(path: Path, seed: int = 0) -> Path:
    """Save it: it sees 112 x 112 px, and has 8 masks of 32 x 32 for each prompt."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "num_attention_heads": 2}
    layers = {**small, "num_layers": 1, "intermediate_size": 32}
    image = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4, "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 8, "intermediate_size": 32, "projection_dim": 16,
        "num_hidden_layers": 1, "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0,
        **small,
    }  # fmt: skip
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": image,
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text,
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 8},
        mask_decoder_config=small,
    )
    model = transformers.Sam3Model(config)
    with torch.no_grad():  # the stock initialisation makes all masks and scores alike
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    return path
