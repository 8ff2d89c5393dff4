"""From a recipe and its parents to merged tensors: the one place where merging happens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch

from evomerge.checkpoints import StoredFactors
from evomerge.errors import MergeError
from evomerge.merging.chunks import over_chunks
from evomerge.merging.folding import Factor, factors
from evomerge.merging.fused import pays
from evomerge.merging.method import METHODS, MergeMethod, Parameter, Place
from evomerge.merging.parents import Parents, Step
from evomerge.merging.preparations import Preparations
from evomerge.recipes import Recipe, path_of, resolve_parameter

Fetch = Callable[[str, str], torch.Tensor]
Pieces = Callable[[int, int], torch.Tensor]
Sums: TypeAlias = dict[tuple[str, ...], tuple[float, ...]]

_UNSET = object()


@dataclass(frozen=True)
class Numbers:
    """What one tensor is merged from and with: as long as this is equal, so is the merged tensor.

    Args:
        method: the merge method's name.
        base: the base, for methods that take one.
        inputs: (model, its tensor) for each model, the base included.
        values: (parameter, value); values of models as a tuple, in the order of the inputs without the base.
        seeds: of randomised methods, one for each model.
        dtype: what the merge is computed for.
        out_dtype: what the merged tensor comes out in.
        statistics: the folder of statistics, where they are needed.
        omega: of the relaxation towards the base's activations, if there is to be one.
        factor: of the merged tensor.
        sums: what the method's ``summed`` says of the whole model, for methods that take it as one long vector.
    """

    method: str
    base: str | None
    inputs: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, Any], ...]
    seeds: tuple[int, ...] | None
    dtype: torch.dtype
    out_dtype: torch.dtype
    statistics: str | None = None
    omega: float | None = None
    factor: Factor | None = None
    sums: tuple[float, ...] | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose tensors the method combines: all, or all but the base."""
        return tuple(model for model, _ in self.inputs if model != self.base)


def merge_tensors(
    recipe: Recipe, parents: Parents, *, preparations: Preparations | None = None, skip: Collection[str] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, merged tensor), one at a time, in the dtype that the recipe asks for.

    The merge is computed for ``dtype`` (the widest dtype of the inputs if the recipe has none): inputs are
    rounded to it first, sums are float32, the result is rounded to it and then to ``out_dtype``, if given.
    Tensors that are not floating point are copied from the base, or the first model.

    A yielded tensor may be a view of a parent's file: copy it, do not write into it.

    Args:
        preparations: what earlier merges of the same parents prepared; kept up to date.
        skip: names of tensors to leave out.

    Raises:
        MergeError: a tensor cannot be merged; says which and why.
        ConfigError: the recipe does not fit the parents' layers.
    """
    parents = parents.viewed(recipe)
    folded = folding(recipe, parents)
    sums = model_sums(recipe, parents)
    for step in parents.plan(recipe):
        if step.name not in skip:
            chosen = numbers(recipe, step, folded.get(step.name), sums)
            yield step.name, merge_tensor(chosen, step, parents, preparations or Preparations())


def folding(recipe: Recipe, parents: Parents) -> dict[str, Factor]:
    """Return merged tensor → the factor that folds a path's scales into it.

    Raises:
        ConfigError: no scales can be folded into models of this architecture.
    """
    path = path_of(recipe)
    if path is None or all(step.scale == 1 for step in path):
        return {}
    donor = recipe.base_model or recipe.parents()[0]
    names = [step.name for step in parents.plan(recipe)]
    tied = bool(parents.tied[donor]) and not parents.untied(recipe.parents())
    return factors(parents[donor].config, [step.scale for step in path], names, tied=tied)


def numbers(recipe: Recipe, step: Step, factor: Factor | None = None, sums: Sums | None = None) -> Numbers:
    """Return the numbers with which the recipe merges one tensor.

    Args:
        factor: of the merged tensor, where scales of a path are folded into it.
        sums: from `model_sums`.

    Raises:
        MergeError: the base lacks the tensor, or a parameter is missing.
    """
    recipe = recipe_of(recipe, step)
    method = METHODS[recipe.merge_method]
    base = _base(method, step)
    out = absentees(recipe, method, step)
    if misfits := [model for model in step.misfits if model not in out]:
        raise MergeError(f"tensor {step.name}: in {', '.join(misfits)} it does not have the shape {step.shape}")
    inputs = {model: name for model, name in step.inputs.items() if model not in out}
    models = [model for model in inputs if model != base]
    dtype, out_dtype = merge_dtypes(recipe, step)
    return Numbers(
        method=method.name,
        base=base,
        inputs=tuple(inputs.items()),
        values=tuple((p.name, _of_models(recipe, p, step, models)) for p in method.parameters),
        seeds=tuple(seed_of(recipe.seed or 0, step.name, model) for model in models) if method.randomised else None,
        dtype=dtype,
        out_dtype=out_dtype,
        statistics=recipe.statistics if method.statistics or recipe.aim else None,
        omega=recipe.aim.omega if recipe.aim else None,
        factor=factor,
        sums=None if method.summed is None or sums is None else sums.get(tuple(inputs)),
    )


def model_sums(recipe: Recipe, parents: Parents, fetch: Fetch | None = None) -> Sums:
    """Return (the models that are merged) → what the method's ``summed`` says of them, added up over all tensors.

    Empty, and nothing is read, for methods that look at one tensor after the other.

    Args:
        recipe: what is merged.
        parents: as the recipe sees them.
        fetch: as for `merge_tensor`.
    """
    fetch = fetch or parents.tensor
    found: Sums = {}
    if all(METHODS[part.merge_method].summed is None for part in (recipe, recipe.outer) if part is not None):
        return found
    for step in parents.plan(recipe):
        chosen = numbers(recipe, step)
        summed = METHODS[chosen.method].summed
        models = tuple(model for model, _ in chosen.inputs)
        if summed is None or not chosen.dtype.is_floating_point or len(models) < 2:
            continue
        tensors = {model: fetch(model, name).to(chosen.dtype).reshape(-1) for model, name in chosen.inputs}
        base = tensors.pop(chosen.base) if chosen.base is not None else None
        added = summed(list(tensors.values()), base)
        found[models] = tuple(map(sum, zip(found.get(models, [0.0] * len(added)), added, strict=True)))
    return found


def recipe_of(recipe: Recipe, step: Step) -> Recipe:
    """Return the recipe that a tensor is merged by: what the recipe says is outside its layers has one of its own."""
    return recipe.outer if recipe.outer is not None and step.planned.layer is None else recipe


def absentees(recipe: Recipe, method: MergeMethod, step: Step) -> frozenset[str]:
    """Return the models that take no part in this tensor: it has another shape there, and their weight for it is 0."""
    weights = [parameter for parameter in method.parameters if parameter.name == "weight" and parameter.per_model]
    return frozenset(model for model in step.misfits for each in weights if _value(recipe, each, step, model) == 0)


def merge_tensor(
    chosen: Numbers,
    step: Step,
    parents: Parents,
    preparations: Preparations,
    out: torch.Tensor | None = None,
    fetch: Fetch | None = None,
) -> torch.Tensor:
    """Return one merged tensor in ``chosen.out_dtype``, or rounded further into ``out``.

    Args:
        out: where to put the result, contiguous; the merge runs on its device.
        fetch: (model, tensor) → the parent's tensor on that device; read from its file by default.

    Raises:
        MergeError: the method refuses its numbers; says for which tensor.
    """
    fetch = fetch or parents.tensor
    names = dict(chosen.inputs)
    if not chosen.dtype.is_floating_point:
        copied = step.planned.base if step.planned.base in names else next(iter(names))
        return _put(fetch(str(copied), names[str(copied)]), out)
    method = METHODS[chosen.method]
    factors = stored_factors(chosen.base, names, parents) if method.factored else {}
    tensors = {model: fetch(model, name).to(chosen.dtype) for model, name in chosen.inputs if model not in factors}
    if factors:
        tensors |= dict.fromkeys(factors, tensors[str(chosen.base)])
        tensors = {model: tensors[model] for model in names}
    base = tensors.pop(chosen.base) if chosen.base is not None else None
    if not tensors or (base is None and (method.needs_base or len(tensors) < method.min_models)):
        only = next(iter(tensors.values())) if base is None else base
        return _put((only if chosen.factor is None else chosen.factor.apply(only)).to(chosen.out_dtype), out)
    given: dict[str, Any] = {
        "seeds": chosen.seeds,
        "place": Place(step.name, step.planned.layer, step.num_layers, step.planned.depth, step.offset, step.entries),
        "statistics": _statistics(chosen, method, parents) if method.statistics else None,
    }
    others = list(tensors.values())
    if method.summed is not None:
        given["sums"] = method.summed(others, base) if chosen.sums is None else chosen.sums
    result = torch.empty(step.shape, dtype=chosen.out_dtype) if out is None else out
    if method.factored:
        found = [factors.get(model) for model in tensors]
        given["factors"] = [None if each is None else each.on(result.device) for each in found]
    try:
        if method.prepare is not None:
            given["prepared"] = preparations.get(
                (method.prepare, step.name, chosen.base, chosen.inputs, chosen.dtype, chosen.seeds, chosen.statistics),
                lambda: [*(parents[model].fingerprint for model in names), *_fingerprints(chosen.statistics)],
                lambda: method.prepared_for(others, base, **given),
                result.device,
            )
        merged = _pieces(method, others, base, {**method.arguments(dict(chosen.values), len(others)), **given})
        if chosen.omega is not None:
            merged = _relaxed(merged, chosen, step, parents, fetch)
    except MergeError as error:
        raise MergeError(f"tensor {step.name}: {error}") from error

    flat = result.view(-1)
    # Each dtype that the numbers are rounded to, the last by copying.
    before = [dtype for dtype, after in pairwise((chosen.dtype, chosen.out_dtype, flat.dtype)) if dtype != after]

    def write(start: int, stop: int) -> None:
        piece = merged(start, stop)
        if chosen.factor is not None:
            piece = chosen.factor.apply(piece)
        for dtype in before:
            piece = piece.to(dtype)
        flat[start:stop].copy_(piece)

    over_chunks(write, flat.numel(), flat.device, fused=method.fused and pays(flat.numel(), flat.device.type))
    return result


def stored_factors(base: str | None, inputs: Mapping[str, str], parents: Parents) -> dict[str, StoredFactors]:
    """Return, for each model that is the base with an adapter, the adapter's change to one tensor.

    Args:
        base: the model that changes start from; without one there are none.
        inputs: model → its tensor, the base's among them.
        parents: the opened models.
    """
    if base is None or base not in inputs:
        return {}
    start = parents.info(base, inputs[base])
    found = {model: parents.factors(model, name) for model, name in inputs.items() if model != base}
    return {model: each for model, each in found.items() if each is not None and each.changes(start)}


def merge_dtypes(recipe: Recipe, step: Step) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype that a tensor is merged for and the dtype that it comes out in."""
    if not step.dtype.is_floating_point:
        return step.dtype, step.dtype
    work = getattr(torch, recipe.dtype) if recipe.dtype else step.dtype
    return work, getattr(torch, recipe.out_dtype) if recipe.out_dtype else work


def _pieces(
    method: MergeMethod, tensors: Sequence[torch.Tensor], base: torch.Tensor | None, arguments: Mapping[str, Any]
) -> Pieces:
    """Return (start, stop) → those entries of the merged tensor, flat."""
    if method.kind == "elementwise":
        return method.elementwise(
            [tensor.reshape(-1) for tensor in tensors], None if base is None else base.reshape(-1), arguments
        )
    whole = method.whole(tensors, base, arguments).reshape(-1)
    return lambda start, stop: whole[start:stop]


def _relaxed(merged: Pieces, chosen: Numbers, step: Step, parents: Parents, fetch: Fetch) -> Pieces:
    """Return the merged tensor drawn back towards the base where that has large activations."""
    model = step.planned.base
    if model is None or model not in step.inputs or chosen.omega is None:
        return merged
    from evomerge.merging.aim import relax

    base = fetch(model, step.inputs[model]).to(chosen.dtype)
    scale = _statistic(chosen, parents, model, step.inputs[model], "scale")
    whole = torch.cat(over_chunks(merged, base.numel(), base.device)).float().reshape(base.shape)
    relaxed = relax(whole, base.float(), None if scale is None else scale.to(base.device), chosen.omega).reshape(-1)
    return lambda start, stop: relaxed[start:stop]


def _statistics(chosen: Numbers, method: MergeMethod, parents: Parents) -> list[dict[str, torch.Tensor]]:
    """Return kind → tensor for each model, as far as they were gathered."""
    names = dict(chosen.inputs)
    found = [
        {kind: _statistic(chosen, parents, model, names[model], kind) for kind in method.statistics}
        for model in chosen.models
    ]
    return [{kind: value for kind, value in each.items() if value is not None} for each in found]


def _statistic(chosen: Numbers, parents: Parents, model: str, tensor: str, kind: str) -> torch.Tensor | None:
    from evomerge.merging.statistics import Statistics

    if chosen.statistics is None:
        return None
    opened = Statistics.open(Path(chosen.statistics)).matched(parents.checkpoints)
    return opened.tensor(model, kind, tensor)


def _fingerprints(folder: str | None) -> list[str]:
    from evomerge.merging.statistics import Statistics

    return [] if folder is None else [Statistics.open(folder).fingerprint]


def _put(tensor: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return tensor if out is None else out.copy_(tensor)


def seed_of(seed: int, tensor: str, reference: str) -> int:
    """Return the seed of one model's draws for one tensor: 63 bits of a SHA-256 of these three alone."""
    digest = hashlib.sha256(f"{seed}\0{tensor}\0{reference}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _base(method: MergeMethod, step: Step) -> str | None:
    base = step.planned.base
    if not method.takes_base or (base is None and method.optional_base):
        return None
    if base is not None and len(step.inputs) == 1:
        return base if base in step.inputs else None  # the only one that has it is copied
    if base is None or base not in step.inputs:
        having = ", ".join(step.inputs)
        raise MergeError(f"tensor {step.name}: {method.name} needs it in the base {base!r}; only {having} has it")
    return base


def _of_models(recipe: Recipe, parameter: Parameter, step: Step, models: Sequence[str]) -> Any:
    if parameter.per_model:
        return tuple(_value(recipe, parameter, step, model) for model in models)
    return _value(recipe, parameter, step, None)


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
        models = [m for m in step.inputs if not (method.takes_base and m == step.planned.base)]
        for parameter in required:
            whose: list[str | None] = [*models] if parameter.per_model else [None]
            for model in whose:
                try:
                    _value(recipe, parameter, step, model)
                except MergeError:
                    missing.setdefault((parameter.name, model), []).append(step.name)
    return missing
