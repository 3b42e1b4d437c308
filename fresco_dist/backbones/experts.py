"""The transformers of one replica: loaded, with low-rank weights, quantised, and placed where memory allows.

A model has one transformer or two, the second for low noise. With `swap` only the one in use is on the device; with
`group` every transformer stays in host memory and its blocks follow each other through the device.
"""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from fresco_dist.backbones.checkpoint import load_component
from fresco_dist.backbones.lora import load_loras_
from fresco_dist.backbones.wan_spec import EXPERTS
from fresco_dist.config import ExpertOffload, InputError, ModelConfig, Offload, Quantization

FP8_CAPABILITY = (8, 9)  # Ada and Hopper are the first with float8 matrix products


class Experts:
    """See above. `at(stage)` is the transformer for a stage, ready on the device."""

    def __init__(self, path: Path, num_experts: int, model: ModelConfig, device: torch.device) -> None:
        check_device(model, device)
        dtype = getattr(torch, model.dtype.value)
        swaps = model.expert_offload is ExpertOffload.swap
        self.all: list[WanTransformer3DModel] = []
        for stage, name in enumerate(EXPERTS[:num_experts]):
            transformer = load_component(WanTransformer3DModel, path / name, torch_dtype=dtype)
            if not swaps and model.offload is None:
                transformer.to(device)
            load_loras_(transformer, model.loras, stage, fuse=model.fuse_loras)
            if model.quantization is Quantization.fp8:
                quantize_fp8_(transformer)
            if model.offload is Offload.group:
                offload_blocks_(transformer, device)
            self.all.append(transformer)
        self._swap = Swap(self.all, device) if swaps and model.offload is None else None

    def at(self, stage: int) -> WanTransformer3DModel:
        """The transformer of a stage: 0 the only one or high noise, 1 low noise."""
        if self._swap is not None:
            self._swap.activate(stage)
        return self.all[stage]


class Swap:
    """Modules of which one at a time is on the device; all have their weights in pinned host memory."""

    def __init__(self, modules: list, device: torch.device) -> None:
        self._device = device
        self._tensors = [[*module.parameters(), *module.buffers()] for module in modules]
        self._host = [[self._pinned(tensor) for tensor in tensors] for tensors in self._tensors]
        self._active: int | None = None

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        host = tensor.detach().cpu()
        return host.pin_memory() if self._device.type == "cuda" else host

    def activate(self, index: int) -> None:
        """Bring module `index` to the device, after the one that was there has left it. Weights are never written."""
        if index == self._active:
            return
        if self._active is not None:
            for tensor, host in zip(self._tensors[self._active], self._host[self._active]):
                tensor.data = host
        for tensor, host in zip(self._tensors[index], self._host[index]):
            tensor.data = self._on_device(host)
        self._active = index

    def _on_device(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self._device, non_blocking=True)


def check_device(model: ModelConfig, device: torch.device) -> None:
    """Raise InputError, before any weight is read, for what this device cannot do."""
    if model.offload is Offload.group and device.type != "cuda":
        raise InputError("model.offload must be null without a CUDA GPU; got group. Leave it out.")
    if model.quantization is Quantization.fp8:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if capability is None or capability < FP8_CAPABILITY:
            here = f"capability {capability[0]}.{capability[1]}" if capability else f"a {device.type}"
            raise InputError(
                f"model.quantization must be null without a CUDA GPU of compute capability 8.9 or more"
                f" (this is {here}); got fp8. Leave it out."
            )
        try:
            import torchao  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"model.quantization=fp8 needs torchao ({error}). Install it: pip install '.[fp8]'."
            ) from error


def quantize_fp8_(transformer: WanTransformer3DModel) -> None:
    """Float8 weights per row in the linear layers of the blocks; activations are quantised as they come (torchao).

    Adapters beside these layers keep their precision.
    """
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    def is_base(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and ".lora_" not in name

    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(transformer.blocks, config, filter_fn=is_base)


def offload_blocks_(transformer: WanTransformer3DModel, device: torch.device) -> None:
    """Keep weights in host memory; while a block computes, a second stream loads the next."""
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
