"""Recipes in and out of YAML: one to a file, or several stages of which later ones merge what earlier ones made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge import library
from evomerge.errors import ConfigError, Problem
from evomerge.recipes import yaml
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.references import as_text, spelled_out, walk

_NAME = re.compile(r"(trial:)?\w[\w.-]*(/\w[\w.-]*)*")
STAGE_BREAK = "---\n"


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe in a file of several stages.

    Args:
        recipe: what is merged; its models may be names of other stages.
        name: what other stages call the merged model; None for the file's result.
        uses: the names of the stages that it merges.
        where: ``file:line`` of its document.
        lines: reference → ``file:line: field`` where the recipe first names it.
    """

    recipe: Recipe
    name: str | None = None
    uses: tuple[str, ...] = ()
    where: str = ""
    lines: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages call the stage."""
        return f"stage {self.name!r}" if self.name else "the last stage"


def read_recipe(path_or_name: str | Path) -> Recipe:
    """Return the recipe in a file, or the library's recipe of that name.

    Raises:
        UnknownNameError: there is no such file and no such name.
        ConfigError: the file is no recipe, or has several stages; lists every problem with its line.
    """
    return _recipe(yaml.load(library.find("recipes", str(path_or_name)).path))


def parse_recipe(text: str, source: str = "<string>") -> Recipe:
    """Return the recipe written in ``text``; ``source`` names it in messages.

    Raises:
        ConfigError: the text is no recipe, or has several stages; lists every problem with its line.
    """
    return _recipe(yaml.loads(text, source))


def read_recipes(path_or_name: str | Path) -> tuple[NamedRecipe, ...]:
    """Return the stages in a file, or of the library's recipe of that name; see `parse_recipes`.

    Raises:
        UnknownNameError: there is no such file and no such name.
        ConfigError: as `parse_recipes`, or the file cannot be read.
    """
    path = library.find("recipes", str(path_or_name)).path
    return parse_recipes(yaml.read(path), str(path))


def parse_recipes(text: str, source: str = "<string>") -> tuple[NamedRecipe, ...]:
    """Return the stages in ``text``, each before those that use it; a plain recipe is a file of one stage.

    Raises:
        ConfigError: a document is no recipe; two have the same name, or none; stages need each other in a circle.
            Lists every problem with its line.
    """
    documents = yaml.loads_all(text, source)
    stages: list[NamedRecipe] = []
    problems: list[Problem] = []
    for document in documents:
        try:
            stages.append(_stage(document))
        except ConfigError as error:
            problems += error.problems
    if problems := [*problems, *_name_problems(stages)]:
        raise ConfigError(problems)
    return _in_order(_linked(stages))


def write_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that mergekit reads too and that reads back exactly, floats included."""
    return yaml.dumps(plain_data(recipe))


def pack_recipe(recipe: Recipe) -> str:
    """Return the recipe as JSON for ``unpack_recipe``: written and read much faster than YAML, but not for people."""
    return recipe.model_dump_json(exclude_defaults=True)


def unpack_recipe(text: str) -> Recipe:
    """Return the recipe that ``pack_recipe`` wrote; YAML is read as well.

    Raises:
        ConfigError: the YAML is no recipe.
    """
    return Recipe.model_validate_json(text) if text.startswith("{") else parse_recipe(text)


def write_recipes(stages: Sequence[NamedRecipe]) -> str:
    """Return the stages as YAML that `parse_recipes` reads back, and mergekit's multi-stage tool reads too."""
    named = [{"name": stage.name} if stage.name else {} for stage in stages]
    return STAGE_BREAK.join(
        yaml.dumps({**name, **plain_data(stage.recipe)}) for name, stage in zip(named, stages, strict=True)
    )


def plain_data(recipe: Recipe, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the recipe as plain data in mergekit's fields.

    Args:
        names: reference → what to call that model instead.
    """
    data: dict[str, Any] = recipe.model_dump(exclude_defaults=True)
    architectures = data.pop("override_architecture", {})
    data = spelled_out(_mutable(data), architectures)
    for place, reference in list(walk(data)):
        if isinstance(reference, str) and reference in (names or {}):
            holder: Any = data
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = (names or {})[reference]
    return data


def _mutable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mutable(inner) for key, inner in value.items()}
    return [_mutable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _recipe(document: yaml.Document) -> Recipe:
    """Return the recipe in a document, whether or not it has a name for others."""
    data = document.data
    fields = {key: value for key, value in data.items() if key != "name"} if isinstance(data, Mapping) else data
    return yaml.validate(Recipe, document, fields)


def _stage(document: yaml.Document) -> NamedRecipe:
    data = document.data
    name = data.get("name") if isinstance(data, Mapping) else None
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        what = f"{name!r} cannot be the name of a stage: letters, digits, '-', '_' and '.', as in a folder's name"
        raise ConfigError(Problem(what, document.where(("name",))))
    recipe = _recipe(document)
    lines: dict[str, str] = {}
    for place, reference in walk(data):
        lines.setdefault(str(as_text(reference)).strip(), document.where(place))
    return NamedRecipe(recipe, name, where=document.where(), lines=lines)


def _name_problems(stages: Sequence[NamedRecipe]) -> list[Problem]:
    first: dict[str | None, NamedRecipe] = {}
    problems = []
    for stage in stages:
        if stage.name not in first:
            first[stage.name] = stage
        elif stage.name is None:
            what = f"two stages without a name, here and in {first[None].where}; only the result has none"
            problems.append(Problem(what, stage.where, "give one a name, and use it in the other"))
        else:
            what = f"two stages are called {stage.name!r}, here and in {first[stage.name].where}"
            problems.append(Problem(what, stage.where, "give each a name of its own"))
    return problems


def _linked(stages: Sequence[NamedRecipe]) -> list[NamedRecipe]:
    """Return the stages with what they use. A stage goes before a folder or Hub model of the same name."""
    names = {stage.name for stage in stages}
    linked, problems = [], []
    for stage in stages:
        used = {parent: stage_of(parent) for parent in stage.recipe.parents() if stage_of(parent) in names}
        for parent, name in used.items():
            if "@" in parent.partition("+")[0]:
                what = f"{name!r} is a stage of this file and has no revisions"
                problems.append(Problem(what, stage.lines.get(parent, stage.where), f"write {name!r}"))
        linked.append(
            NamedRecipe(stage.recipe, stage.name, tuple(dict.fromkeys(used.values())), stage.where, stage.lines)
        )
    if problems:
        raise ConfigError(problems)
    return linked


def stage_of(reference: str) -> str:
    """Return what a reference names apart from its revision and adapter: the stage, if it is one's name."""
    return reference.partition("+")[0].partition("@")[0]


def _in_order(stages: Sequence[NamedRecipe]) -> tuple[NamedRecipe, ...]:
    """Return every stage after those it uses, else in the file's order, the result last."""
    waiting = sorted(stages, key=lambda stage: stage.name is None)
    done: dict[str | None, NamedRecipe] = {}
    while waiting:
        ready = next((stage for stage in waiting if all(name in done for name in stage.uses)), None)
        if ready is None:
            raise ConfigError(_circle(waiting))
        waiting.remove(ready)
        done[ready.name] = ready
    return tuple(done.values())


def _circle(waiting: Sequence[NamedRecipe]) -> Problem:
    """Return what to say of stages of which each waits for another."""
    by_name = {stage.name: stage for stage in waiting}
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(by_name[name] for name in path[-1].uses if name in by_name))
    circle = path[path.index(path[-1]) :]
    told = " → ".join(str(stage.name) for stage in circle)
    where = circle[0].lines.get(str(circle[1].name), circle[0].where)
    return Problem(f"stages need each other in a circle: {told}", where, "let one of them use another model")
