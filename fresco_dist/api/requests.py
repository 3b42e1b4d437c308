"""From what Hydra has composed to a run that is asked for; what is heavy loads when that is in order."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fresco_dist.config import Config, ExecutorKind, InputError
from fresco_dist.runtime.environment import RAY, admit, set_defaults
from fresco_dist.runtime.ray_folder import choose_ray_folder
from fresco_dist.settings.schema import checked_config, plain_values


def request_of(cfg: DictConfig, folder: Path, home: Path | None, note: Callable[[str], object], **options: Any) -> Any:
    """A `jobs.job.Request`; `options` are further fields of it. Raises InputError or what OmegaConf complains of.

    `note` takes what has no effect, and where Ray's sockets are if TMPDIR is of no use for them.
    """
    checked, idle = checked_config(cfg)
    config, plain = OmegaConf.to_object(checked), plain_values(checked)
    if config.cluster.executor is ExecutorKind.ray:
        idle += filter(None, [_prepare_ray(config)])
    for text in idle:
        note(text)
    from fresco_dist.jobs.run import Request  # pictures and Ray load only when the configuration is in order

    return Request(config, plain, folder, home, **options)


def _prepare_ray(config: Config) -> str | None:
    """What Ray reads of the environment when it is imported, and what there is to say of it.

    Raises InputError where it has been imported without token authentication: it cannot start it then.
    """
    ray = sys.modules.get("ray")
    is_open = ray is not None and not ray.is_initialized() and os.environ.get("RAY_AUTH_MODE") != RAY["RAY_AUTH_MODE"]
    if is_open and config.plan_only and config.cluster.address is None:  # nothing is started
        return None
    if is_open:
        raise InputError(
            f"RAY_AUTH_MODE must be {RAY['RAY_AUTH_MODE']} when ray is imported, which has been done without it."
            " Call the Animator first, or set it at the beginning of the program."
        )
    set_defaults(os.environ, RAY)
    admit(os.environ, config.cluster)
    return choose_ray_folder(os.environ) if config.cluster.address is None and not config.plan_only else None
