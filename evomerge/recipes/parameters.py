"""What value a parameter has for one tensor: mergekit's rules of precedence, filters and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.recipes.recipe import FilteredValue, Module, ParameterSetting, Recipe

SNAP = 1e-9


def resolve_parameter(
    recipe: Recipe,
    name: str,
    *,
    tensor: str,
    depth: float,
    model: str | None,
    default: Any,
    slice_index: int | None = None,
) -> Any:
    """Return the value of parameter ``name`` for one tensor.

    The first of these that gives a value wins: the model's own parameters (its entry under ``models``, or
    its source in the slice), the slice's, the module's, the recipe's, ``default``. A list of filtered values
    of which none matches gives no value.

    Args:
        tensor: for a parameter of a model, the tensor's name *in that model*; for one of the merge as a
            whole, the output tensor's name (they differ where slices renumber layers).
        depth: position in [0, 1] of the tensor's layer in its slice, where gradients are read (see `plan`).
        model: whose parameter; None for parameters of the merge as a whole, which models cannot set.
        default: what to return when the recipe says nothing. If it is a bool, gradients choose and do not
            interpolate.
        slice_index: which of the recipe's slices, counted through all modules; may be left out if there are none
            or just one.
    """
    for parameters in _scopes(recipe, model, slice_index):
        if name in parameters:
            value = evaluate_setting(parameters[name], tensor, depth, interpolate=not isinstance(default, bool))
            if value is not None:
                return value
    return default


def _scopes(recipe: Recipe, model: str | None, slice_index: int | None) -> Iterator[Mapping[str, ParameterSetting]]:
    part, index = _part(recipe, slice_index)
    for entry in part.models or ():
        if entry.model == model:
            yield entry.parameters
    if part.slices and (index is not None or len(part.slices) == 1):
        chosen = part.slices[index or 0]
        for source in chosen.sources:
            if source.model == model:
                yield source.parameters
        yield chosen.parameters
    if part is not recipe:
        yield part.parameters
    yield recipe.parameters


def _part(recipe: Recipe, slice_index: int | None) -> tuple[Recipe | Module, int | None]:
    """Return the module that a slice is part of, and which of its slices it is; slices are counted through."""
    rest = slice_index
    for _, part in recipe.parts():
        count = len(part.slices or (part,))
        if rest is None or rest < count:
            return part, rest
        rest -= count
    raise IndexError(f"the recipe has no slice {slice_index}")


def evaluate_setting(setting: ParameterSetting, tensor: str, depth: float, *, interpolate: bool = True) -> Any:
    """Return what ``setting`` says for a tensor at ``depth``; None if no filter matches its name.

    Args:
        interpolate: whether the parameter is a number, so that gradients are interpolated (true and false as 1 and
            0); those of switches and of words are not: they give the point at or before ``depth``.
    """
    if not isinstance(setting, tuple):
        return setting
    if not isinstance(setting[0], FilteredValue):
        numbers = interpolate and not any(isinstance(point, str) for point in setting)
        return _interpolate(setting, depth) if numbers else _choose(setting, depth)
    for item in setting:
        if item.filter is None or item.filter in tensor:
            return evaluate_setting(item.value, tensor, depth, interpolate=interpolate)
    return None


def _position(points: tuple[Any, ...], depth: float) -> float:
    """Return ``depth`` counted in points, exactly i where it is i/(n-1) up to rounding.

    mergekit does not round, so at such a depth it can be one rounding error off the i-th point.
    """
    position = depth * (len(points) - 1)
    nearest = round(position)
    return nearest if abs(position - nearest) < SNAP else position


def _choose(points: tuple[Any, ...], depth: float) -> Any:
    return points[int(_position(points, depth))]


def _interpolate(points: tuple[Any, ...], depth: float) -> float:
    """Return the piecewise linear function through equally spaced ``points`` at ``depth``."""
    position = _position(points, depth)
    left = int(position)
    share = position - left
    if share == 0:
        return float(points[left])
    return (1 - share) * points[left] + share * points[left + 1]
