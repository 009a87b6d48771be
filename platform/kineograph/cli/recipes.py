"""Where each pipeline's recipes are, and reading one by path or by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pipelines
from kineograph.config import Config, find_recipe, load_recipe

C = TypeVar("C", bound=Config)


def recipe_path(kind: str, recipe: str) -> Path:
    """The file of ``recipe``: a path, or the name of one that ships with pipelines/``kind``."""
    return find_recipe(recipe, Path(pipelines.__path__[0]) / kind)


def read_recipe(kind: str, recipe: str, model: type[C], overrides: Iterable[str] = ()) -> C:
    """The config in ``recipe`` with ``overrides`` applied. Raises RecipeError."""
    return load_recipe(recipe_path(kind, recipe), model, overrides)
