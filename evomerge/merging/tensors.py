"""From a recipe and its parents to merged tensors: the one place where merging happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import METHODS, MergeMethod, Parameter
from evomerge.merging.parents import Parents
from evomerge.merging.preparations import Preparations
from evomerge.recipes import PlannedTensor, Recipe, plan, resolve_parameter

_UNSET = object()


def merge_tensors(
    recipe: Recipe, parents: Parents, *, preparations: Preparations | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, merged tensor), one at a time, in the dtype that the recipe asks for.

    The merge is computed for ``dtype`` (the widest dtype of the inputs if the recipe has none): inputs are rounded to
    it first, sums are float32, the result is rounded to it and then to ``out_dtype``, if given. Tensors that are not
    floating point are copied from the base, or the first model.

    A yielded tensor may be a view of a parent's file: copy it, do not write into it.

    Args:
        preparations: what earlier merges of the same parents prepared; kept up to date.

    Raises:
        MergeError: a tensor cannot be merged; says which and why.
        ConfigError: the recipe does not fit the parents' layers.
    """
    method = METHODS[recipe.merge_method]
    for planned in planned_tensors(recipe, parents):
        yield planned.name, merge_tensor(recipe, method, planned, parents, preparations or Preparations(0))


def planned_tensors(recipe: Recipe, parents: Parents) -> tuple[PlannedTensor, ...]:
    """Return every tensor of the merged model and what it is made of.

    Raises:
        ConfigError: the recipe does not fit the parents' layers.
    """
    return plan(recipe, parents.tensor_names(recipe.parents()))


def merge_tensor(
    recipe: Recipe, method: MergeMethod, planned: PlannedTensor, parents: Parents, preparations: Preparations
) -> torch.Tensor:
    """Return one merged tensor in the dtype that the recipe asks for.

    Raises:
        MergeError: the base lacks the tensor, a parameter is missing, or the method refuses its numbers.
    """
    inputs = present_inputs(planned, parents)
    dtype, out_dtype = merge_dtypes(recipe, planned, parents)
    tensors = {model: parents.tensor(model, name) for model, name in inputs.items()}
    base = _base(method, planned, tensors)
    if not dtype.is_floating_point:
        return tensors[planned.base if planned.base in tensors else next(iter(tensors))]
    tensors = {model: tensor.to(dtype) for model, tensor in tensors.items()}
    others = {model: tensors[model] for model in tensors if model != base}
    if not others or (len(tensors) == 1 and method.min_models > 1):
        return next(iter(tensors.values())).to(out_dtype)
    values = _values(recipe, method, planned, {model: inputs[model] for model in others})
    seeds = [seed_of(recipe.seed or 0, planned.name, model) for model in others] if method.randomised else None
    start = tensors[base] if base is not None else None
    arguments = (list(others.values()), start, seeds)
    key = (method.prepare, planned.name, dtype, base, tuple(inputs.items()), tuple(seeds or ()))
    ready = preparations.get(key, lambda: method.prepared_for(*arguments)) if method.prepare else None
    try:
        merged = method(arguments[0], start, seeds=seeds, prepared=ready, **values)
    except MergeError as error:
        raise MergeError(f"tensor {planned.name}: {error}") from error
    return merged.to(dtype).to(out_dtype)


def present_inputs(planned: PlannedTensor, parents: Parents) -> dict[str, str]:
    """Return model → its tensor, for the models that have it."""
    return {entry.model: entry.tensor for entry in planned.inputs if parents.info(entry.model, entry.tensor)}


def merge_dtypes(recipe: Recipe, planned: PlannedTensor, parents: Parents) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype that a tensor is merged for and the dtype that it comes out in."""
    stored = [info.dtype for e in planned.inputs if (info := parents.info(e.model, e.tensor)) is not None]
    widest = reduce(torch.promote_types, stored)
    if not widest.is_floating_point:
        return widest, widest
    work = getattr(torch, recipe.dtype) if recipe.dtype else widest
    return work, getattr(torch, recipe.out_dtype) if recipe.out_dtype else work


def seed_of(seed: int, tensor: str, reference: str) -> int:
    """Return the seed of one model's random draws for one tensor: 63 bits of a SHA-256 of these three and no more."""
    digest = hashlib.sha256(f"{seed}\0{tensor}\0{reference}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _base(method: MergeMethod, planned: PlannedTensor, tensors: dict[str, torch.Tensor]) -> str | None:
    if not method.needs_base:
        return None
    if planned.base is None or planned.base not in tensors:
        having = ", ".join(tensors)
        raise MergeError(f"tensor {planned.name}: {method.name} needs it in the base {planned.base!r}; only {having} has it")
    return planned.base


def _values(
    recipe: Recipe, method: MergeMethod, planned: PlannedTensor, inputs: dict[str, str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in method.parameters:
        if parameter.per_model:
            values[parameter.name] = [
                _value(recipe, parameter, planned, name, model) for model, name in inputs.items()
            ]
        else:
            values[parameter.name] = _value(recipe, parameter, planned, planned.name, None)
    return values


def _value(recipe: Recipe, parameter: Parameter, planned: PlannedTensor, tensor: str, model: str | None) -> Any:
    value = resolve_parameter(
        recipe,
        parameter.name,
        tensor=tensor,
        depth=planned.depth,
        model=model,
        default=_UNSET if parameter.required else parameter.default,
        slice_index=planned.slice_index,
    )
    if value is _UNSET:
        whose = f" of {model}" if model else ""
        raise MergeError(f"tensor {planned.name}: no value for the parameter {parameter.name!r}{whose}; add one")
    return bool(value) if parameter.kind == "bool" else float(value)


def missing_parameters(
    recipe: Recipe, method: MergeMethod, planned: Sequence[PlannedTensor]
) -> dict[tuple[str, str | None], list[str]]:
    """Return (parameter, model) → tensors for which a required parameter has no value."""
    missing: dict[tuple[str, str | None], list[str]] = {}
    for tensor in planned:
        models = {e.model: e.tensor for e in tensor.inputs if not (method.needs_base and e.model == tensor.base)}
        for parameter in method.parameters:
            whose: dict[str | None, str] = {**models} if parameter.per_model else {None: tensor.name}
            for model, name in whose.items() if parameter.required else ():
                try:
                    _value(recipe, parameter, tensor, name, model)
                except MergeError:
                    missing.setdefault((parameter.name, model), []).append(tensor.name)
    return missing
