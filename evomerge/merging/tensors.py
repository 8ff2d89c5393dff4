"""From a recipe and its parents to merged tensors: the one place where merging happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import METHODS, MergeMethod, Parameter
from evomerge.merging.parents import Parents, Step
from evomerge.merging.preparations import Preparations
from evomerge.recipes import Recipe, resolve_parameter

_UNSET = object()


def merge_tensors(
    recipe: Recipe, parents: Parents, *, preparations: Preparations | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, merged tensor), one at a time, in the dtype that the recipe asks for.

    The merge is computed for ``dtype`` (the widest dtype of the inputs if the recipe has none): inputs are
    rounded to it first, sums are float32, the result is rounded to it and then to ``out_dtype``, if given.
    Tensors that are not floating point are copied from the base, or the first model.

    A yielded tensor may be a view of a parent's file: copy it, do not write into it.

    Args:
        preparations: what earlier merges of the same parents prepared; kept up to date.

    Raises:
        MergeError: a tensor cannot be merged; says which and why.
        ConfigError: the recipe does not fit the parents' layers.
    """
    method = METHODS[recipe.merge_method]
    kept = Preparations(0) if preparations is None else preparations
    for step in parents.plan(recipe):
        yield step.name, merge_tensor(recipe, method, step, parents, kept)


def merge_tensor(
    recipe: Recipe, method: MergeMethod, step: Step, parents: Parents, preparations: Preparations
) -> torch.Tensor:
    """Return one merged tensor in the dtype that the recipe asks for.

    Raises:
        MergeError: the base lacks the tensor, a parameter is missing, or the method refuses its numbers.
    """
    dtype, out_dtype = merge_dtypes(recipe, step)
    base = _base(method, step)
    tensors = {model: parents.tensor(model, name) for model, name in step.inputs.items()}
    if not dtype.is_floating_point:
        return tensors.get(str(step.planned.base), next(iter(tensors.values())))
    tensors = {model: tensor.to(dtype) for model, tensor in tensors.items()}
    start = tensors.pop(base) if base is not None else None
    if not tensors or (start is None and len(tensors) < method.min_models):
        alone = start if start is not None else next(iter(tensors.values()))
        return alone.to(out_dtype)
    others = list(tensors.values())
    values = _values(recipe, method, step, list(tensors))
    seeds = _seeds(recipe, step, list(tensors)) if method.randomised else None
    ready = None
    if method.prepare is not None:
        key = (method.prepare, step.name, dtype, base, tuple(step.inputs.items()), seeds)
        ready = preparations.get(key, lambda: method.prepared_for(others, start, seeds))
    try:
        merged = method(others, start, seeds=seeds, prepared=ready, **values)
    except MergeError as error:
        raise MergeError(f"tensor {step.name}: {error}") from error
    return merged.to(dtype).to(out_dtype)


def merge_dtypes(recipe: Recipe, step: Step) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype that a tensor is merged for and the dtype that it comes out in."""
    if not step.dtype.is_floating_point:
        return step.dtype, step.dtype
    work = getattr(torch, recipe.dtype) if recipe.dtype else step.dtype
    return work, getattr(torch, recipe.out_dtype) if recipe.out_dtype else work


def _seeds(recipe: Recipe, step: Step, models: Sequence[str]) -> tuple[int, ...]:
    return tuple(seed_of(recipe.seed or 0, step.name, model) for model in models)


def seed_of(seed: int, tensor: str, reference: str) -> int:
    """Return the seed of one model's draws for one tensor: 63 bits of a SHA-256 of these three alone."""
    digest = hashlib.sha256(f"{seed}\0{tensor}\0{reference}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _base(method: MergeMethod, step: Step) -> str | None:
    base = step.planned.base
    if not method.needs_base:
        return None
    if base is None or base not in step.inputs:
        having = ", ".join(step.inputs)
        raise MergeError(f"tensor {step.name}: {method.name} needs it in the base {base!r}; only {having} has it")
    return base


def _values(recipe: Recipe, method: MergeMethod, step: Step, models: Sequence[str]) -> dict[str, Any]:
    return {
        parameter.name: [_value(recipe, parameter, step, model) for model in models]
        if parameter.per_model
        else _value(recipe, parameter, step, None)
        for parameter in method.parameters
    }


def _value(recipe: Recipe, parameter: Parameter, step: Step, model: str | None) -> Any:
    value = resolve_parameter(
        recipe,
        parameter.name,
        tensor=step.name if model is None else step.inputs[model],
        depth=step.planned.depth,
        model=model,
        default=_UNSET if parameter.required else parameter.default,
        slice_index=step.planned.slice_index,
    )
    if value is _UNSET:
        whose = f" of {model}" if model else ""
        raise MergeError(f"tensor {step.name}: no value for the parameter {parameter.name!r}{whose}; add one")
    return bool(value) if parameter.kind == "bool" else float(value)


def missing_parameters(
    recipe: Recipe, method: MergeMethod, steps: Sequence[Step]
) -> dict[tuple[str, str | None], list[str]]:
    """Return (parameter, model) → tensors for which a required parameter has no value."""
    missing: dict[tuple[str, str | None], list[str]] = {}
    required = [parameter for parameter in method.parameters if parameter.required]
    for step in steps:
        models = [m for m in step.inputs if not (method.needs_base and m == step.planned.base)]
        for parameter in required:
            whose: list[str | None] = [*models] if parameter.per_model else [None]
            for model in whose:
                try:
                    _value(recipe, parameter, step, model)
                except MergeError:
                    missing.setdefault((parameter.name, model), []).append(step.name)
    return missing
