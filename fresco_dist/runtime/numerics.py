"""What decides the bits of a result beside model and inputs: versions, device, kernels, threads of a worker."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from fresco_dist.config import Config

PACKAGES = ("fresco_dist", "torch", "diffusers", "transformers", "numpy", "peft")
KERNEL_PACKAGES = ("xformers", "flash_attn", "sageattention", "torchao")  # that need not be there


def numerics(config: Config, device: torch.device) -> dict[str, str]:
    """Library versions, kind of device, attention; on a CPU also its vector instructions and the threads of a worker.

    `model.attention=auto` takes the first kernel that runs: the same wherever all this and the windows are the same.
    """
    facts = {name: version(name) for name in PACKAGES} | {"attention": config.model.attention.value}
    for name in KERNEL_PACKAGES:
        with suppress(PackageNotFoundError):
            facts[name] = version(name)
    if device.type == "cuda":
        cuda, cudnn = torch.version.cuda or torch.version.hip, torch.backends.cudnn.version()
        return facts | {"device": torch.cuda.get_device_name(device), "cuda": str(cuda), "cudnn": str(cudnn)}
    capability = torch.backends.cpu.get_cpu_capability()
    return facts | {"device": f"{platform.machine()} {capability}", "threads": str(config.cluster.num_threads)}
