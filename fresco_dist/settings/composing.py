"""A configuration from values by name, as Python has them: no text is parsed, so any text is a prompt or a path."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fresco_dist.config import InputError
from fresco_dist.settings.keys import CHOSEN
from fresco_dist.settings.schema import CONFIG_FOLDER, as_config, register
from fresco_dist.settings.texts import quoted
from fresco_dist.settings.wording import in_words

_one_at_a_time = Lock()  # Hydra's state is the process's


def compose_values(values: Mapping[str, Any], config_dir: Path | None = None) -> DictConfig:
    """What Hydra composes of these: a group's file by its name (`model="wan"`), other keys dotted or as mappings.

    `config_dir` has groups of the user's own, as `--config-dir` names one. Raises InputError.
    """
    with _one_at_a_time, _hydra_apart():
        try:
            register()
            with hydra.initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
                groups = {name: value for name, value in values.items() if _is_of_group(name, value, config_dir)}
                chosen = [f"{'' if name in CHOSEN else '+'}{name}={quoted(value)}" for name, value in groups.items()]
                if config_dir is not None:
                    chosen.append(f"hydra.searchpath=[{quoted(f'file://{config_dir.absolute()}')}]")
                cfg = hydra.compose("config", chosen)
            for key, value in flat({name: value for name, value in values.items() if name not in groups}):
                OmegaConf.update(cfg, key, as_config(value))
            return cfg
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(in_words(error)) from None


@contextmanager
def _hydra_apart() -> Iterator[None]:
    """Hydra as if nobody used it yet; then all that the program has of it is there again, and nothing else."""
    Plugins.instance()  # they register themselves once
    theirs, sources, store = Singleton._instances, SourcesRegistry.instance(), ConfigStore.instance()
    types, repo = sources.types, store.repo
    sources.types, store.repo = dict(types), dict(repo)
    Singleton._instances = {kind: theirs[kind] for kind in (Plugins, SourcesRegistry, ConfigStore)}
    try:
        yield
    finally:
        sources.types, store.repo = types, repo
        Singleton._instances = theirs


def _is_of_group(name: str, value: Any, config_dir: Path | None) -> bool:
    """Whether it names a file of a group, rather than the values themselves."""
    known = GlobalHydra.instance().config_loader().list_groups("")
    return isinstance(value, str) and (name in known or (config_dir is not None and (config_dir / name).is_dir()))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Mappings of sections as dotted keys; what lists hold stays as it is."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
