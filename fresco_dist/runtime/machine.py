"""What this machine has: CPUs, GPUs and their memory. Nothing is imported to hear that there is no GPU."""

import os
from pathlib import Path

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's driver, the same under WSL, AMD's


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
