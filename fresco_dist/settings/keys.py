"""Every key of a run's configuration by its name, with its types, and which of them hold a text."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

from fresco_dist.config import Config
from fresco_dist.method.recipes import RECIPES

ANY = (int, float, str)  # of keys that the schema gives no type

CHOSEN = ("model", "fusion")  # groups that have a file by default


def keys() -> list[str]:
    """Every key of the configuration, dotted, those of all recipes included."""
    return [key for key in kinds() if "[" not in key]


@cache
def kinds() -> dict[str, bool | None]:
    """Of every key whether its value is a text, and of what lists hold as well: `regions[].mask`.

    None: it holds keys, and is chosen by the name of a file, if any. What may be a number is read as such.
    """
    return {key: str in types and float not in types if types else None for key, types in types_of_keys().items()}


@cache
def types_of_keys() -> dict[str, tuple[type, ...]]:
    """The types of the same, none of what holds keys. `regions` is a list, or the name of a file."""

    def of(schema: Any, prefix: str) -> Iterator[tuple[str, tuple[type, ...]]]:
        for field in fields(schema):
            yield from of_type(field.type, prefix + field.name)

    def of_type(kind: Any, key: str) -> Iterator[tuple[str, tuple[type, ...]]]:
        if is_dataclass(kind):
            yield key, ()
            yield from of(kind, f"{key}.")
            return
        options = ANY if kind is Any else get_args(kind) if isinstance(kind, UnionType) else (kind,)
        yield key, tuple(get_origin(option) or option for option in options)
        for entries in (option for option in options if get_origin(option) is list):
            yield from of_type(get_args(entries)[0], f"{key}[]")

    of_recipes = (pair for recipe in RECIPES.values() for pair in of(recipe, "fusion."))
    return dict([*of(Config, ""), *of_recipes]) | {"regions": (list, str)}


def names(schema: type) -> set[str]:
    """The fields of a schema."""
    return {key.name for key in fields(schema)}


def names_of_recipes() -> set[str]:
    """The keys of all recipes."""
    return set().union(*map(names, RECIPES.values()))
