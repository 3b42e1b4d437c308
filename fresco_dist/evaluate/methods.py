"""A comparison: methods by name, each the overrides that make it, and the one that others are compared with.

`conf/comparison/NAME.yaml`, or one of the user's own in a folder that `--config-dir` names. Composes configurations;
runs nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fresco_dist.config import InputError, require
from fresco_dist.method.recipes import RECIPES
from fresco_dist.settings.overrides import for_hydra
from fresco_dist.settings.schema import as_config, checked_config

FOLDER_NAME = re.compile(r"[^\W_][\w.+-]*")
TAKEN = ("report", "store")  # folders beside those of the methods
OF_ALL = ("plan_only", "metrics", "sampler.stop_after")  # what all methods have alike, and groups of that
GROUPS_OF_ALL = ("cluster", "store", "dispatch", "hydra", "hydra/launcher")
EXAMPLE = "Try methods: {fresco: [fusion=fresco], mine: [fusion=fresco, fusion.cutoff=1]}."
MAP = "fusion.activity_map"
KEYS = {"dataset": None, "compare": "table2", "reference": None}  # of the command, beside those of a run


@dataclass(frozen=True)
class Methods:
    """What is compared: the overrides of each method, by its name."""

    overrides: dict[str, list[str]]
    reference: str


def read_methods(name: str, reference: str | None) -> Methods:
    """The comparison of that name, with another reference if one is given; raises InputError."""
    known = GlobalHydra.instance().config_loader().get_group_options("comparison")
    remedy = "One of your own is comparison/NAME.yaml in a folder that --config-dir names."
    require(name in known, "compare", name, f"one of {', '.join(known)}", remedy)
    try:
        given = OmegaConf.to_container(hydra.compose(f"comparison/{name}").comparison)
    except (yaml.YAMLError, OmegaConfBaseException, HydraException, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"comparison/{name}.yaml cannot be read: {reason}. {EXAMPLE}") from None
    require(isinstance(given, dict), f"comparison/{name}.yaml", given, "methods and a reference", EXAMPLE)
    key = f"comparison/{name}.yaml: methods"
    methods = given.pop("methods", None)
    require(isinstance(methods, dict) and bool(methods), key, methods, "a list of overrides for each name", EXAMPLE)
    for method, overrides in methods.items():
        fits = isinstance(method, str) and FOLDER_NAME.fullmatch(method) and method.lower() not in TAKEN
        allowed = f"named by letters, digits and _.+- alone, and not {' or '.join(TAKEN)}"
        require(bool(fits), key, method, allowed, "The name is a folder's, too.")
        is_list = isinstance(overrides, list) and all(isinstance(override, str) for override in overrides)
        require(is_list, f"{key}.{method}", overrides, "a list of overrides, as on the command line", EXAMPLE)
        for override in overrides:
            changed = _key_of(override)
            may_differ = changed not in OF_ALL and changed.partition(".")[0] not in (*KEYS, *GROUPS_OF_ALL)
            remedy = f"Give {changed} to the command, for all methods."
            require(may_differ, f"{key}.{method}", override, "an override in which methods may differ", remedy)
    own = given.pop("reference", None)
    require(not given, f"comparison/{name}.yaml", ", ".join(given), "methods and reference alone", "Remove the rest.")
    chosen = reference or own or next(iter(methods))
    allowed = f"one of {', '.join(methods)}"
    require(chosen in methods, "reference", chosen, allowed, "Differences are to that method.")
    return Methods(methods, chosen)


def compose_methods(methods: Methods, common: Sequence[str]) -> dict[str, DictConfig]:
    """The configuration of each method: its own overrides come after those that all have in common.

    Raises InputError for what no picture can mend, or what Hydra complains of.
    """
    found = {}
    for method, overrides in methods.overrides.items():
        found[method] = hydra.compose("config", [*common, *map(for_hydra, overrides)])
        with open_dict(found[method]):
            for key in KEYS:
                del found[method][key]
        OmegaConf.to_object(checked_config(found[method])[0])
    return found


def on_picture(method: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A method's configuration with what a picture sets; its activity map, if anything is to be made of that."""
    cfg = method.copy()
    for key, value in settings.items():
        if key != MAP or takes_map(cfg) or cfg.metrics:
            OmegaConf.update(cfg, key, as_config(value))
        if key == MAP:  # in place of one that would be made
            cfg.sam3.path = None
    return cfg


def keys_compared(methods: Methods) -> set[str]:
    """The keys that overrides of methods set: what is compared, and no picture may set."""
    typed = {_key_of(override) for overrides in methods.overrides.values() for override in overrides}
    return {"fusion.method" if key == "fusion" else key for key in typed} - {MAP}


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def takes_map(method: DictConfig) -> bool:
    """Whether a method has strengths that differ by the activity map."""
    recipe = RECIPES.get(method.fusion.method)
    return recipe is not None and recipe.takes_activity_map
