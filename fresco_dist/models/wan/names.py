"""Names of the tensors of a Wan transformer: diffusers' and Wan's own, which ComfyUI and LightX2V write, too."""

import re

WAN_NAMES = {  # of diffusers' names, in this order; norm2 and modulations apart
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_q": ".q",
    ".to_k": ".k",
    ".to_v": ".v",
    ".to_out.0": ".o",
    ".add_k_proj": ".k_img",
    ".add_v_proj": ".v_img",
    ".norm_added_k": ".norm_k_img",
    ".ffn.net.0.proj": ".ffn.0",
    ".ffn.net.2": ".ffn.2",
}
PREFIX = re.compile(  # what tools put before a name
    r"(?:(?:base_model|model|diffusion_model|transformer|pipe|dit)\.|(?:lora_unet|lora_transformer|lycoris)_+)*"
)


def wan_name(name: str) -> str:
    """Wan's own name of a tensor of diffusers' transformer."""
    for ours, theirs in WAN_NAMES.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"^(blocks\.\d+)\.norm2\.", r"\1.norm3.", name)
    return re.sub(
        r"(^|\.)scale_shift_table$", lambda match: f"{match[1]}modulation" if match[1] else "head.modulation", name
    )


def diffusers_name(name: str) -> str:
    """The name that diffusers has for a tensor of Wan's, or of its own, without what tools put before it."""
    name = PREFIX.sub("", name, count=1)
    for ours, theirs in WAN_NAMES.items():
        whole = re.escape(theirs.removesuffix("."))
        name = re.sub(rf"{whole}(?=\.|$)", ours.removesuffix("."), name)
    name = re.sub(r"^(blocks\.\d+)\.norm3\.", r"\1.norm2.", name)
    return re.sub(r"^(?:head\.|(blocks\.\d+\.))modulation$", r"\1scale_shift_table", name)
