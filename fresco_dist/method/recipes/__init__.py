"""Published methods, one file each: a recipe says which levels a run consists of. Numbers and names, no tensor.

The name of a recipe is that of its file, and `conf/fusion/NAME.yaml` holds the values of its parameters.
"""

from importlib import import_module
from pkgutil import iter_modules

from fresco_dist.method.recipes.base import Recipe


def _find() -> dict[str, type[Recipe]]:
    found = {}
    for name in sorted(module.name for module in iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        for kind in vars(module).values():
            is_recipe = isinstance(kind, type) and issubclass(kind, Recipe) and kind is not Recipe
            if is_recipe and kind.__module__ == module.__name__:
                found[name] = kind
    return found


RECIPES = _find()
