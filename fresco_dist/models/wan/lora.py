"""Low-rank weights (LoRA) from safetensors files: added to a transformer's weights, or kept beside them as adapters.

Fused, they cost nothing per forward, but are rounded together with the weights; adapters, in the model's precision,
cost two thin matrix products per layer. Differences, and pairs for what is no linear layer, are always added to the
weights, since no adapter can hold them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fresco_dist.config import InputError, LoraConfig, expanded
from fresco_dist.models.wan.lora_file import LoraFile, Pair, read_lora
from fresco_dist.models.weights import Tensor

if TYPE_CHECKING:  # planning checks the files and loads neither
    from diffusers import WanTransformer3DModel
    from torch import Tensor as Values


def check_loras(
    loras: Sequence[LoraConfig], experts: Sequence[Mapping[str, Tensor]], *, fuse: bool = True
) -> tuple[list[int], list[str]]:
    """How many numbers adapters add to each expert, of which the tensors are given; and what there is to say.

    Raises InputError, naming the file, unless each can be read, fits and has its expert.
    """
    num_adapted, notes = [0] * len(experts), []
    for lora in loras:
        if lora.expert is not None and len(experts) == 1:
            raise InputError(
                f"model.loras: expert must stay unset for a model with one transformer; got {lora.expert.value}."
            )
        for stage, tensors in enumerate(experts):
            if not _is_for(lora, stage):
                continue
            file = read_lora(expanded(lora.path), tensors)
            notes.append(file.note)
            if fuse:
                continue
            adapted = {name: pair for name, pair in file.pairs.items() if _takes_adapter(tensors[name].shape)}
            num_adapted[stage] += sum(pair.rank * sum(tensors[name].shape) for name, pair in adapted.items())
            if num_added := len({*file.pairs, *file.differences} - adapted.keys()):
                notes.append(
                    f"model.loras: {file.path}: {num_added} tensors are changed as no adapter can, so these changes are"
                    " added to the weights also with model.fuse_loras=false"
                )
    return num_adapted, list(dict.fromkeys(filter(None, notes)))


def _is_for(lora: LoraConfig, stage: int) -> bool:
    return lora.expert is None or lora.expert.stage == stage


def _takes_adapter(shape: Sequence[int]) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    return len(shape) == 2


def load_loras_(
    transformer: "WanTransformer3DModel", loras: Sequence[LoraConfig], stage: int, *, fuse: bool = True
) -> None:
    """Give a transformer the low-rank weights that are for the expert of `stage` (0 high noise, 1 low noise), in place.

    Fused: W <- W + sum of weight * alpha / rank * up @ down, in float32, rounded once. Else adapters add the same to
    what each linear layer gives. Raises InputError for weights that do not fit the transformer.
    """
    import torch
    from safetensors import safe_open

    chosen = [lora for lora in loras if _is_for(lora, stage)]
    parameters = dict(transformer.named_parameters())
    tensors = {name: Tensor("F32", tuple(parameter.shape)) for name, parameter in parameters.items()}
    files = [read_lora(expanded(lora.path), tensors) for lora in chosen]
    with ExitStack() as stack, torch.no_grad():
        opened = [stack.enter_context(safe_open(file.path, framework="pt")) for file in files]
        for name in sorted(set().union(*(file.pairs.keys() | file.differences.keys() for file in files))):
            parameter, total = parameters[name], None
            for lora, file, values in zip(chosen, files, opened):
                read = _reader(values, parameter.device)
                for change in _changes(file, name, read, with_pair=fuse or not _takes_adapter(parameter.shape)):
                    total = parameter.float() if total is None else total
                    total = total + lora.weight * change.reshape(parameter.shape)
            if total is not None:
                parameter.copy_(total)
        if not fuse:
            _add_adapters(transformer, chosen, files, opened)


def _reader(values: Any, device: Any) -> "Callable[[str], Values]":
    return lambda name: values.get_tensor(name).to(device).float()


def _changes(file: LoraFile, name: str, read: "Callable[[str], Values]", *, with_pair: bool) -> "Iterator[Values]":
    """What a file adds to a tensor at weight 1, float32."""
    if with_pair and (pair := file.pairs.get(name)):
        yield _scale(pair, read) * (read(pair.up).flatten(1) @ read(pair.down).flatten(1))
    for difference, pair in file.differences.get(name, ()):
        yield read(difference) if pair is None else _scale(pair, read) * read(difference)


def _scale(pair: Pair, read: "Callable[[str], Values]") -> float:
    return pair.scale(None if pair.alpha is None else read(pair.alpha).item())


def _add_adapters(
    transformer: "WanTransformer3DModel", loras: Sequence[LoraConfig], files: Sequence[LoraFile], opened: Sequence[Any]
) -> None:
    """Adapters for the pairs of linear layers, a file each; the factor goes into `up`."""
    weights: dict[str, float] = {}
    for i, (lora, file, values) in enumerate(zip(loras, files, opened)):
        read = _reader(values, "cpu")
        tensors = {}
        for name, pair in file.pairs.items():
            if _takes_adapter(transformer.get_parameter(name).shape):
                layer = name.removesuffix(".weight")
                tensors[f"{layer}.lora_A.weight"] = read(pair.down).flatten(1)
                tensors[f"{layer}.lora_B.weight"] = _scale(pair, read) * read(pair.up).flatten(1)
        if tensors:
            transformer.load_lora_adapter(tensors, prefix=None, adapter_name=f"lora_{i}")
            weights[f"lora_{i}"] = lora.weight
    if weights:
        transformer.set_adapters(list(weights), list(weights.values()))
