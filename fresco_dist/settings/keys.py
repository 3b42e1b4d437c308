"""Every key of a run's configuration by its name."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from fresco_dist.config import Config
from fresco_dist.method.recipes import RECIPES


def keys() -> list[str]:
    """Every key of the configuration, dotted, those of all recipes included."""

    def of(schema: Any, prefix: str) -> Iterator[str]:
        for key in fields(schema):
            yield prefix + key.name
            if is_dataclass(key.type):
                yield from of(key.type, f"{prefix}{key.name}.")

    of_recipes = (key for recipe in RECIPES.values() for key in of(recipe, "fusion."))
    return list(dict.fromkeys([*of(Config, ""), *of_recipes]))


def names(schema: type) -> set[str]:
    """The fields of a schema."""
    return {key.name for key in fields(schema)}


def names_of_recipes() -> set[str]:
    """The keys of all recipes."""
    return set().union(*map(names, RECIPES.values()))
