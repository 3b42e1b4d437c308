"""Low-rank weights (LoRA) from safetensors files, added to a transformer's weights once, when it is loaded.

The key layouts are those that diffusers converts: its own and PEFT's (`transformer.` prefix), the original Wan names
(`diffusion_model.`, ComfyUI and LightX2V) and musubi's (`lora_unet_`). Fusing costs nothing per forward.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

from fresco_dist.backbones.checkpoint import check_safetensors, safetensors_names
from fresco_dist.config import Expert, InputError, LoraConfig

PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_")
STAGES = {Expert.high_noise: 0, Expert.low_noise: 1}


def check_loras(loras: Sequence[LoraConfig], num_experts: int) -> None:
    """Raise InputError, naming the file, unless each can be read, is in a known layout and has its expert."""
    for lora in loras:
        if lora.expert is not None and num_experts == 1:
            raise InputError(
                f"model.loras: expert must stay unset for a model with one transformer; got {lora.expert.value}."
            )
        path = Path(lora.path).expanduser()
        check_safetensors(path, key="model.loras")
        names = safetensors_names(path)
        if not any(name.startswith(PREFIXES) for name in names) or not any("lora" in name for name in names):
            raise InputError(
                f"model.loras: {path} must have keys that start with {', '.join(PREFIXES)};"
                f" got {min(names, default='none')}. Convert it to one of these layouts."
            )


def fuse_loras_(transformer: WanTransformer3DModel, loras: Sequence[LoraConfig], stage: int) -> None:
    """Add the low-rank weights that are for the expert of `stage` (0 high noise, 1 low noise) to its weights, in place.

    W <- W + weight * alpha / rank * up @ down. Raises InputError for weights that do not fit the transformer.
    """
    chosen = [lora for lora in loras if lora.expert is None or STAGES[lora.expert] == stage]
    for i, lora in enumerate(chosen):
        path, name = Path(lora.path).expanduser(), f"lora_{i}"
        try:
            tensors, metadata = WanImageToVideoPipeline.lora_state_dict(
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
        with torch.no_grad():
            transformer.fuse_lora(lora_scale=lora.weight, adapter_names=[name])
        transformer.unload_lora()


def _check_targets(transformer: WanTransformer3DModel, tensors: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless every tensor is for a layer of this transformer: libraries would only warn."""
    layers = {name for name, _ in transformer.named_modules()}
    targets = {name.removeprefix("transformer.").partition(".lora_")[0] for name in tensors}
    unknown = sorted(targets - layers)
    if unknown or not targets:
        raise ValueError(f"it has no layer {unknown[0]}" if unknown else "the file holds no low-rank weights")
