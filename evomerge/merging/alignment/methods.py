"""The ways to find which neurons of two models correspond, and what a recipe may say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Problem, suggest
from evomerge.recipes import Recipe

SWEEPS = 50  # of weight matching, at most; it stops when nothing gets better, usually after a few


@dataclass(frozen=True)
class Setting:
    """A parameter of an alignment method: its default, and its range or its choices."""

    default: float | str
    minimum: float = 0.0
    whole: bool = True
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class AlignmentMethod:
    """A way to find which neurons correspond.

    Args:
        summary: one line.
        paper: author, year and link.
        parameters: name → setting.
        samples: whether it needs samples of activations; a parameter's value may ask for them too.
    """

    summary: str
    paper: str
    parameters: Mapping[str, Setting]
    samples: bool = False


_REBASIN = "Ainsworth, Hayase & Srinivasa 2023, https://arxiv.org/abs/2209.04836"
_SEED = Setting(0)
ALIGNMENTS: dict[str, AlignmentMethod] = {
    "weight_matching": AlignmentMethod(
        "permutations that bring the weights closest", _REBASIN, {"seed": _SEED, "sweeps": Setting(SWEEPS, minimum=1)}
    ),
    "activation_matching": AlignmentMethod(
        "permutations that bring neurons together that fire together", _REBASIN, {"seed": _SEED}, samples=True
    ),
    "pleas": AlignmentMethod(
        "the permutations of PLeaS at the models' own width, without its least squares",
        "Nasery et al. 2025, https://arxiv.org/abs/2407.02447",
        {"seed": _SEED},
        samples=True,
    ),
    "ot_fusion": AlignmentMethod(
        "optimal transport of neurons, exact or softened; parents may have wider MLPs",
        "Singh & Jaggi 2020, https://arxiv.org/abs/1910.05653",
        {"metric": Setting("wts", choices=("wts", "acts")), "regularisation": Setting(0.0, whole=False)},
    ),
}


def settings_problems(recipe: Recipe) -> list[Problem]:
    """Return what is wrong with a recipe's ``align``, told from the recipe alone."""
    if recipe.align is None:
        return []
    method = ALIGNMENTS.get(recipe.align.method)
    if method is None:
        hint = suggest(recipe.align.method, ALIGNMENTS)
        return [Problem(f"unknown alignment method {recipe.align.method!r}", "align.method", hint)]
    found: list[Problem] = []
    if recipe.align.to is not None and recipe.align.to not in recipe.parents():
        hint = suggest(recipe.align.to, recipe.parents())
        found.append(Problem(f"{recipe.align.to!r} is none of the recipe's models", "align.to", hint))
    for name, value in recipe.align.parameters.items():
        where = f"align.parameters.{name}"
        if name not in method.parameters:
            what = f"{recipe.align.method} has no parameter {name!r}"
            found.append(Problem(what, where, suggest(name, method.parameters)))
        elif what := _value_problem(method.parameters[name], value):
            found.append(Problem(f"{name} {what}, found {value!r}", where))
    if needs_samples(recipe) and recipe.statistics is None:
        what = f"{recipe.align.method} needs samples of the models' activations"
        hint = "gather them with `evomerge statistics --kinds sample` and write `statistics: FOLDER` into the recipe"
        found.append(Problem(what, "statistics", hint))
    return found


def needs_samples(recipe: Recipe) -> bool:
    """Whether a recipe's alignment needs statistics of the kind "sample"."""
    if recipe.align is None or recipe.align.method not in ALIGNMENTS:
        return False
    return ALIGNMENTS[recipe.align.method].samples or recipe.align.parameters.get("metric") == "acts"


def _value_problem(setting: Setting, value: Any) -> str:
    """Return what a parameter must be, if ``value`` is not that."""
    if setting.choices:
        return "" if value in setting.choices else f"is one of {', '.join(setting.choices)}"
    kind = "whole number" if setting.whole else "number"
    if isinstance(value, (bool, str)) or value < setting.minimum or (setting.whole and value != int(value)):
        return f"is a {kind}, at least {setting.minimum:g}"
    return ""
