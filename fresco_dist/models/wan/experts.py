"""The transformers of one replica: loaded, with low-rank weights, quantised, and placed where memory allows.

A model has one transformer or two, the second for low noise. With `swap` only the one in use is on the device; with
`ahead` the second is copied there while the first still computes; with `group` every transformer stays in host memory
and its blocks follow each other through the device.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from fresco_dist.config import ExpertOffload, InputError, ModelConfig, Offload, Quantization
from fresco_dist.models.loading import load_component
from fresco_dist.models.places import WAN_TRANSFORMER
from fresco_dist.models.wan.lora import load_loras_
from fresco_dist.models.wan.spec import EXPERTS

FP8_CAPABILITY = (8, 9)  # Ada and Hopper are the first with float8 matrix products


class Experts:
    """See above. `at(stage)` is the transformer for a stage, ready on the device."""

    def __init__(self, path: Path, num_experts: int, model: ModelConfig, device: torch.device) -> None:
        check_device(model, device)
        dtype = getattr(torch, model.dtype.value)
        holds = model.expert_offload is ExpertOffload.hold
        self.all: list[WanTransformer3DModel] = []
        for stage, name in enumerate(EXPERTS[:num_experts]):
            transformer = load_component(WanTransformer3DModel, path / name, WAN_TRANSFORMER, torch_dtype=dtype)
            if holds and model.offload is None:
                transformer.to(device)
            load_loras_(transformer, model.loras, stage, fuse=model.fuse_loras)
            if model.quantization is Quantization.fp8:
                quantize_fp8_(transformer)
            if model.offload is Offload.group:
                offload_blocks_(transformer, device)
            self.all.append(transformer)
        self._loads_ahead = model.expert_offload is ExpertOffload.ahead
        self._swap = None if holds else Swap(self.all, device, capacity=2 if self._loads_ahead else 1)

    def at(self, stage: int) -> WanTransformer3DModel:
        """The transformer of a stage: 0 the only one or high noise, 1 low noise."""
        if self._swap is not None:
            self._swap.activate(stage)
        return self.all[stage]

    def load_ahead(self, stage: int) -> None:
        """The transformer of a stage is wanted soon: with `ahead` its weights come while the other one computes."""
        if self._swap is not None and self._loads_ahead:
            self._swap.fetch(stage)

    def make_room(self) -> None:
        """Something else needs the device: with `ahead` the transformer last used stays there alone."""
        if self._swap is not None and self._loads_ahead:
            self._swap.shrink(1)


class Swap:
    """Modules whose weights stay in pinned host memory; copies of `capacity` of them at most are on the device."""

    def __init__(self, modules: Sequence[torch.nn.Module], device: torch.device, capacity: int = 1) -> None:
        self._device, self._capacity = device, capacity
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tensors = [[*module.parameters(), *module.buffers()] for module in modules]
        self._host = [[self._pinned(tensor) for tensor in tensors] for tensors in self._tensors]
        self._resident: list[int] = []  # the one last used is last
        self._copied: dict[int, torch.cuda.Event] = {}

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        host = tensor.detach().cpu()
        return host if self._stream is None else host.pin_memory()

    def activate(self, index: int) -> None:
        """Have module `index` on the device for what is computed next."""
        self.fetch(index)
        self._resident.remove(index)
        self._resident.append(index)
        self._wait_for(index)

    def fetch(self, index: int) -> None:
        """Begin to copy module `index` to the device, beside what is computed next."""
        if index not in self._resident:
            self.shrink(self._capacity - 1)
            for tensor, copied in zip(self._tensors[index], self._on_device(self._host[index])):
                tensor.data = copied
            self._resident.insert(0, index)
            if self._stream is not None:
                self._copied[index] = self._stream.record_event()

    def shrink(self, num_modules: int) -> None:
        """Leave so many modules on the device, those last used. Weights are never written, so none goes back."""
        while len(self._resident) > num_modules:
            index = self._resident.pop(0)
            self._wait_for(index)  # its memory may be used for something else at once
            for tensor, host in zip(self._tensors[index], self._host[index]):
                tensor.data = host

    def _wait_for(self, index: int) -> None:
        """Have what is computed next come after the copy of module `index`."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied[index])

    def _on_device(self, host: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._stream is None:
            return [tensor.to(self._device) for tensor in host]
        # Allocated on the stream that computes: what is freed there may be written here once it has come so far
        copies = [torch.empty_like(tensor, device=self._device) for tensor in host]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for copied, tensor in zip(copies, host):
                copied.copy_(tensor, non_blocking=True)
        return copies


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
