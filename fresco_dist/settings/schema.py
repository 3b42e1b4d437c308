"""The schema that Hydra composes by, and what it has composed as the types of a run's configuration."""

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from enum import Enum
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
import numpy as np
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fresco_dist.config import Config, InputError, RegionConfig, expanded, require
from fresco_dist.method.recipes import RECIPES
from fresco_dist.settings.files import read_yaml, use_files
from fresco_dist.settings.keys import names, names_of_recipes
from fresco_dist.settings.texts import literal
from fresco_dist.settings.wording import explain

CONFIG_FOLDER = str(files("fresco_dist.conf"))


def register(more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Tell Hydra of the configuration's schema, in which `fusion` has the keys of all recipes and `regions` any value.

    So one command line may choose among them; see `checked_config`. `more` are keys of another command, with values.
    """
    fusion = make_dataclass("Fusion", [(name, Any, None) for name in sorted(names_of_recipes())])
    others = [(name, Any, field(default=value)) for name, value in more.items()]
    schema = make_dataclass("Schema", [("fusion", fusion), ("regions", Any), *others], bases=(Config,))
    ConfigStore.instance().store(name="config_schema", node=schema)
    use_files()


def checked_config(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """What Hydra has composed, with the types of the chosen recipe and of that the keys alone; and what is left out.

    Raises InputError or what OmegaConf complains of: also for keys that were added with +.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    given = {name: value for name, value in plain["fusion"].items() if value is not None}
    method: Any = given.get("method")
    known = isinstance(method, str) and method in RECIPES
    require(known, "fusion.method", method, f"one of {', '.join(RECIPES)}", "Use fusion=NAME.")
    others = names_of_recipes() - names(RECIPES[method])
    idle = [f"fusion.{name} has no effect with fusion={method}" for name in given if name in others]
    schema = OmegaConf.structured(Config)
    schema.fusion = RECIPES[method]
    plain["fusion"] = {name: value for name, value in given.items() if name not in others}
    plain["regions"] = _read_regions(plain["regions"])
    return OmegaConf.merge(schema, as_config(plain)), idle


def plain_values(checked: DictConfig) -> dict[str, Any]:
    """As run.json has them."""
    return OmegaConf.to_container(checked, resolve=True, enum_to_str=True)


def as_config(value: Any) -> Any:
    """A value as a configuration holds it: numbers, lists, dicts, and texts in which OmegaConf finds nothing."""
    if isinstance(value, Mapping):
        return {name: as_config(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_config(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    return literal(str(value)) if isinstance(value, (str, Path, Fraction)) else value


def compose_config(*overrides: str) -> Config:
    """The configuration of a command line with these overrides; raises InputError, or what Hydra complains of."""
    register()
    with hydra.initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        checked, _ = checked_config(hydra.compose("config", list(overrides)))
    return OmegaConf.to_object(checked)


def _read_regions(given: Any) -> list[dict[str, Any]]:
    """The list that is given, or that a YAML file holds, whose masks lie relative to it; raises InputError."""
    regions = _read_yaml("regions", expanded(given)) if isinstance(given, str) else given
    is_list = isinstance(regions, list) and all(isinstance(region, dict) for region in regions)
    allowed = "a list of {prompt: TEXT, mask: FILE} and {prompt: TEXT, box: [left, top, right, bottom]}"
    require(is_list, "regions", given, f"{allowed}, or a YAML file with one", "[] is one prompt for all.")
    if isinstance(given, str):
        folder = expanded(given).absolute().parent
        for region in (region for region in regions if isinstance(region.get("mask"), str) and region["mask"]):
            region["mask"] = str(folder / expanded(region["mask"]))
    for i, region in enumerate(regions):
        try:
            OmegaConf.merge(OmegaConf.structured(RegionConfig), as_config(region))
        except OmegaConfBaseException as error:  # it does not know where in the list it is
            raise InputError(f"regions[{i}].{explain(error)}") from None
    return regions


def _read_yaml(key: str, path: Path) -> Any:
    """What a YAML file holds; raises InputError."""
    try:
        return read_yaml(path, key)
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be read: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, ValueError) as error:  # of a date that is none, or of what is no text
        raise InputError(f"{key}: {path} is not YAML: {error}. Try '- {{prompt: TEXT, mask: FILE}}'.") from None
