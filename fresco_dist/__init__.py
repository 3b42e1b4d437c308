"""A distributed multi-GPU tile scheduler that animates images at 4K (FrescoDiffusion, arXiv 2603.17555)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fresco_dist.api.animation import Animation
    from fresco_dist.api.animator import Animator
    from fresco_dist.config import InputError
    from fresco_dist.jobs.folder import WriteError
    from fresco_dist.jobs.progress import Progress
    from fresco_dist.schedule.execute import WorkerError

__version__ = "0.1.0"
__all__ = ["Animation", "Animator", "InputError", "Progress", "WorkerError", "WriteError"]

_HOMES = {
    "Animation": "api.animation",
    "Animator": "api.animator",
    "InputError": "config",
    "Progress": "jobs.progress",
    "WorkerError": "schedule.execute",
    "WriteError": "jobs.folder",
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for, so that a command that needs none of it starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
