"""What this machine has: CPUs, GPUs and their memory. Nothing is imported to hear that there is no GPU."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NUMERIC_PACKAGES = ("fresco_dist", "torch", "diffusers", "transformers", "numpy", "peft", "pillow")
KERNEL_PACKAGES = ("xformers", "flash_attn", "sageattention", "torchao")  # that need not be there

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's driver, the same under WSL, AMD's


@dataclass(frozen=True)
class Loaded:
    """What a worker tells of its replica: seconds of compilation, and what decides bits beside model and inputs."""

    worker: int
    attention_backend: str
    compile_s: float
    numerics: Mapping[str, str]


def numerics(device: "torch.device", attention_backend: str) -> dict[str, str]:
    """Library versions, kind of device, attention kernel; on a CPU also its vector instructions and the threads."""
    import torch

    facts = {name: version(name) for name in NUMERIC_PACKAGES} | {"attention": attention_backend}
    for name in KERNEL_PACKAGES:
        with suppress(PackageNotFoundError):
            facts[name] = version(name)
    if device.type == "cuda":
        cuda, cudnn = torch.version.cuda or torch.version.hip, torch.backends.cudnn.version()
        return facts | {"device": torch.cuda.get_device_name(device), "cuda": str(cuda), "cudnn": str(cudnn)}
    capability = torch.backends.cpu.get_cpu_capability()
    return facts | {"device": f"{platform.machine()} {capability}", "threads": str(torch.get_num_threads())}


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that torch can use; importing it takes seconds, and is left out where there is no driver."""
    if os.name == "posix" and not any(map(os.path.exists, GPU_DEVICES)):
        return 0
    import torch

    return torch.cuda.device_count()


def gpu_memory_gb() -> float | None:
    """Memory of the smallest GPU; None if there is none."""
    devices = range(num_gpus())
    if not devices:
        return None
    import torch

    return min(torch.cuda.get_device_properties(device).total_memory for device in devices) / 1e9


def read_gb() -> float | None:
    """What this process has had read from storage so far; what others have brought to the page cache is not in it."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:  # not Linux, or hidden
        return None
    return int(dict(line.split(": ") for line in lines)["read_bytes"]) / 1e9
