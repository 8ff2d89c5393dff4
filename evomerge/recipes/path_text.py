"""Paths of layers in words: ``math 0–3, japanese 2–5 (×0.9 each): 8 layers; embeddings and head: math``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import PathStep, path_of

NO_NAMES: Mapping[str, str] = MappingProxyType({})


class PathRun(NamedTuple):
    """Steps of a path through layers of one model of which each follows the one before.

    The steps are all unscaled, all scaled by positive numbers or all by negative ones: ``scales`` has one for each.
    """

    model: str
    first: int
    scales: tuple[float, ...]

    @property
    def last(self) -> int:
        """The last layer, which belongs to the run."""
        return self.first + len(self.scales) - 1


def runs_of(path: Sequence[PathStep]) -> tuple[PathRun, ...]:
    """Return the path as runs, as few as can be; in their order they hold every step once."""
    runs: list[PathRun] = []
    for step in path:
        if runs and _goes_on(runs[-1], step):
            runs[-1] = runs[-1]._replace(scales=(*runs[-1].scales, step.scale))
        else:
            runs.append(PathRun(step.model, step.layer, (step.scale,)))
    return tuple(runs)


def path_in_words(recipe: Recipe, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """Return where the hidden states of a routed recipe go, without a full stop; None for other recipes.

    Args:
        names: reference → what to call that model instead.
    """
    path = path_of(recipe)
    if path is None:
        return None
    route = ", ".join(_run_in_words(run, names) for run in runs_of(path))
    layers = "1 layer" if len(path) == 1 else f"{len(path)} layers"
    return f"{route}: {layers}; {outside_in_words(recipe, names)}"


def outside_in_words(recipe: Recipe, names: Mapping[str, str] = NO_NAMES) -> str:
    """Return what gives a routed recipe its embeddings and its head, with the final norm before it.

    Raises:
        ValueError: the recipe has no path.
    """
    path = path_of(recipe)
    if path is None:
        raise ValueError("the recipe has no path")
    if recipe.outer is not None:
        return f"embeddings and head: {recipe_in_words(recipe.outer, names)}"
    first, last = (names.get(step.model, step.model) for step in (path[0], path[-1]))
    return f"embeddings and head: {first}" if first == last else f"embeddings: {first}, head: {last}"


def recipe_in_words(recipe: Recipe, names: Mapping[str, str] = NO_NAMES) -> str:
    """Return a recipe in one phrase: its path, the only model it takes, or ``ties of math and japanese``."""
    if (path := path_in_words(recipe, names)) is not None:
        return path
    *others, last = (names.get(reference, reference) for reference in recipe.parents())
    if recipe.merge_method == "passthrough" and not others:
        return last
    return f"{recipe.merge_method} of {', '.join(others)} and {last}" if others else f"{recipe.merge_method} of {last}"


def scale_in_words(scale: float) -> str:
    """Return a scale with three digits: ``×0.9``, ``×−1.13``."""
    return f"×{scale:.3g}".replace("-", "−")


def _goes_on(run: PathRun, step: PathStep) -> bool:
    follows = (run.model, run.last + 1) == (step.model, step.layer)
    return follows and _kind(run.scales[-1]) == _kind(step.scale)


def _kind(scale: float) -> str:
    return "unscaled" if scale == 1 else "positive" if scale > 0 else "negative"


def _run_in_words(run: PathRun, names: Mapping[str, str]) -> str:
    layers = f"{run.first}–{run.last}" if run.last > run.first else f"{run.first}"
    return f"{names.get(run.model, run.model)} {layers}{_scales_in_words(run.scales)}"


def _scales_in_words(scales: Sequence[float]) -> str:
    if scales[0] == 1:
        return ""
    low, high = scale_in_words(min(scales)), scale_in_words(max(scales))
    if low != high:
        return f" ({low} to {high})"
    return f" ({low} each)" if len(scales) > 1 else f" ({low})"
