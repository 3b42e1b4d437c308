"""LoRA files as each tool writes them, for small transformers, and what they mean."""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from fresco_dist.models.weights import Tensor

RANK, ALPHA, NUM_BLOCKS = 4, 2.0, 2
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}  # diffusers' name: Wan's
LAYERS = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
# Prefix, whether layers have Wan's names, down and up, whether there is an alpha
LAYOUTS = {
    "diffusers": ("transformer.", False, ("lora_A", "lora_B"), False),
    "bare": ("", False, ("lora_A", "lora_B"), False),
    "peft": ("base_model.model.", False, ("lora_A.default", "lora_B.default"), False),
    "old diffusers": ("transformer.", False, ("lora.down", "lora.up"), False),
    "wan": ("diffusion_model.", True, ("lora_down", "lora_up"), True),
    "bare wan": ("", True, ("lora_A", "lora_B"), True),
    "kohya": ("lora_unet_", True, ("lora_down", "lora_up"), True),
    "two underscores": ("lora_unet__", True, ("lora_down", "lora_up"), True),
}
ATTENTIONS = "self_attn.q self_attn.k self_attn.v self_attn.o self_attn.norm_q! self_attn.norm_k!"
WITH_IMAGES = "cross_attn.k_img cross_attn.v_img cross_attn.norm_k_img!"
BLOCK = f"{ATTENTIONS} {ATTENTIONS.replace('self', 'cross')} {WITH_IMAGES} norm3 ffn.0 ffn.2 modulation?"
REST = (  # of Wan's layers; ! has no bias, ? is a parameter
    "patch_embedding text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2 time_projection.1 head.head"
    " head.modulation? img_emb.proj.0 img_emb.proj.1 img_emb.proj.3 img_emb.proj.4"
)


def load_transformer(path: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(path / "transformer").eval()


def tensors_of(transformer: WanTransformer3DModel) -> dict[str, Tensor]:
    return {name: Tensor("F32", tuple(tensor.shape)) for name, tensor in transformer.state_dict().items()}


def make_lora(
    transformer: WanTransformer3DModel, layout: str, path: Path, seed: int = 0, rank: int = RANK
) -> dict[str, torch.Tensor]:
    """Write random low-rank weights for every linear layer of the blocks; the deltas they mean, by layer."""
    prefix, has_wan_names, (down_name, up_name), has_alpha = LAYOUTS[layout]
    generator, tensors, deltas = torch.Generator().manual_seed(seed), {}, {}
    for block in range(NUM_BLOCKS):
        for ours, theirs in LAYERS.items():
            name = f"blocks.{block}.{ours}"
            out_features, in_features = transformer.get_submodule(name).weight.shape
            down = 0.3 * torch.randn(rank, in_features, generator=generator)
            up = 0.3 * torch.randn(out_features, rank, generator=generator)
            deltas[name] = up @ down
            key = f"blocks.{block}.{theirs}" if has_wan_names else name
            key = prefix + (key.replace(".", "_") if prefix.startswith("lora_unet") else key)
            tensors |= {f"{key}.{down_name}.weight": down, f"{key}.{up_name}.weight": up}
            if has_alpha:
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
                deltas[name] *= ALPHA / rank
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return deltas


def make_whole_lora(reference: WanTransformer3DModel, path: Path) -> dict[str, torch.Tensor]:
    """Write changes of every tensor of `reference`, as LightX2V does; what they add, by diffusers' names.

    Where a tensor of Wan's is in diffusers' model, its own converter for checkpoints says.
    """
    layers = [f"blocks.{block}.{layer}" for block in range(NUM_BLOCKS) for layer in BLOCK.split()] + REST.split()
    names = [name for layer in layers for name in _tensors_of_layer(layer)]
    ours_of = {theirs: ours for ours, theirs in convert_wan_transformer_to_diffusers({n: n for n in names}).items()}
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert set(ours_of.values()) == set(shapes)
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for theirs, ours in ours_of.items():
        layer, _, kind = theirs.rpartition(".")
        key, shape = f"diffusion_model.{layer}", shapes[ours]
        if kind == "weight" and len(shape) > 1:
            down = 0.2 * torch.randn(RANK, *shape[1:], generator=generator)
            up = 0.2 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            deltas[ours] = torch.einsum("or,r...->o...", up.flatten(1), down) * ALPHA / RANK
            continue
        part = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[kind]
        deltas[ours] = tensors[f"{key}.{part}"] = 0.2 * torch.randn(shape, generator=generator)
    save_file(tensors, path)
    return deltas


def _tensors_of_layer(layer: str) -> list[str]:
    name = layer.rstrip("!?")
    kinds = {"!": [".weight"], "?": [""]}.get(layer[-1], [".weight", ".bias"])
    return [name + kind for kind in kinds]


def assert_changed_by(transformer: torch.nn.Module, before: dict, deltas: dict, weight: float = 1.0) -> None:
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        delta = deltas.get(name, deltas.get(name.removesuffix(".weight"), torch.zeros(1)))
        torch.testing.assert_close(tensor, before[name] + weight * delta, rtol=0, atol=1e-6)


def state_of(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


def output_of(transformer: WanTransformer3DModel) -> torch.Tensor:
    """What it makes of fixed inputs."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)
    hidden = torch.randn(1, config.in_channels, 2, 8, 8, generator=generator)
    embeds = torch.randn(1, 512, config.text_dim, generator=generator)
    images = config.image_dim and torch.randn(1, 257, config.image_dim, generator=generator)
    with torch.inference_mode():
        return transformer(hidden, torch.tensor([500]), embeds, images, return_dict=False)[0]
