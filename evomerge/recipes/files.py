"""Recipes in and out of YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge import library
from evomerge.recipes import yaml
from evomerge.recipes.recipe import Recipe


def read_recipe(path_or_name: str | Path) -> Recipe:
    """Return the recipe in a file, or the library's recipe of that name.

    Raises:
        UnknownNameError: there is no such file and no such name.
        ConfigError: the file is no recipe; lists every problem with its line.
    """
    path = library.find("recipes", str(path_or_name)).path
    return yaml.validate(Recipe, yaml.load(path))


def parse_recipe(text: str, source: str = "<string>") -> Recipe:
    """Return the recipe written in ``text``; ``source`` names it in messages.

    Raises:
        ConfigError: the text is no recipe; lists every problem with its line.
    """
    return yaml.validate(Recipe, yaml.loads(text, source))


def write_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that mergekit reads too and that reads back exactly, floats included."""
    data: dict[str, Any] = recipe.model_dump(exclude_defaults=True)
    return yaml.dumps(data)
