"""Low-rank weights (LoRA) from safetensors files: added to a transformer's weights, or kept beside them as adapters.

The key layouts are those that diffusers converts: its own and PEFT's (`transformer.` prefix), the original Wan names
(`diffusion_model.`, ComfyUI and LightX2V) and musubi's (`lora_unet_`). Fused, they cost nothing per forward, but are
rounded together with the weights; adapters, in the model's precision, cost two thin matrix products per layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_dist.config import Expert, InputError, LoraConfig
from fresco_dist.models.checkpoint import check_safetensors, safetensors_names

if TYPE_CHECKING:  # planning checks the files and loads neither
    from diffusers import WanTransformer3DModel
    from torch import Tensor

PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_")
STAGES = {Expert.high_noise: 0, Expert.low_noise: 1}


def check_loras(loras: Sequence[LoraConfig], num_experts: int) -> list[int]:
    """Number of low-rank weights for each expert.

    Raises InputError, naming the file, unless each can be read, is in a known layout and has its expert.
    """
    num_parameters = [0] * num_experts
    for lora in loras:
        if lora.expert is not None and num_experts == 1:
            raise InputError(
                f"model.loras: expert must stay unset for a model with one transformer; got {lora.expert.value}."
            )
        path = Path(lora.path).expanduser()
        size = check_safetensors(path, key="model.loras")
        names = safetensors_names(path)
        if not any(name.startswith(PREFIXES) for name in names) or not any("lora" in name for name in names):
            raise InputError(
                f"model.loras: {path} must have keys that start with {', '.join(PREFIXES)};"
                f" got {min(names, default='none')}. Convert it to one of these layouts."
            )
        for stage in range(num_experts):
            num_parameters[stage] += size if _is_for(lora, stage) else 0
    return num_parameters


def _is_for(lora: LoraConfig, stage: int) -> bool:
    return lora.expert is None or STAGES[lora.expert] == stage


def load_loras_(
    transformer: "WanTransformer3DModel", loras: Sequence[LoraConfig], stage: int, *, fuse: bool = True
) -> None:
    """Give a transformer the low-rank weights that are for the expert of `stage` (0 high noise, 1 low noise), in place.

    Fused: W <- W + weight * alpha / rank * up @ down. Else adapters add the same to what each layer gives.
    Raises InputError for weights that do not fit the transformer.
    """
    import torch
    from diffusers.loaders import WanLoraLoaderMixin

    chosen = {f"lora_{i}": lora for i, lora in enumerate(loras) if _is_for(lora, stage)}
    for name, lora in chosen.items():
        path = Path(lora.path).expanduser()
        try:
            tensors, metadata = WanLoraLoaderMixin.lora_state_dict(
                str(path.parent),
                weight_name=path.name,
                use_safetensors=True,
                local_files_only=True,
                return_lora_metadata=True,
            )
            _check_targets(transformer, tensors)
            transformer.load_lora_adapter(tensors, prefix="transformer", adapter_name=name, metadata=metadata)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"model.loras: {path} does not fit this model: {reason}.") from error
        if fuse:
            with torch.no_grad():
                transformer.fuse_lora(lora_scale=lora.weight, adapter_names=[name])
            transformer.unload_lora()
    if chosen and not fuse:
        transformer.set_adapters(list(chosen), [lora.weight for lora in chosen.values()])


def _check_targets(transformer: "WanTransformer3DModel", tensors: "dict[str, Tensor]") -> None:
    """Raise ValueError unless every tensor is for a layer of this transformer: libraries would only warn."""
    layers = {name for name, _ in transformer.named_modules()}
    targets = {name.removeprefix("transformer.").partition(".lora_")[0] for name in tensors}
    unknown = sorted(targets - layers)
    if unknown or not targets:
        raise ValueError(f"it has no layer {unknown[0]}" if unknown else "the file holds no low-rank weights")
