"""Sums over the entries of models' task vectors, from which their kinship follows (`evomerge.kinship`).

One pass over the weights, tensor by tensor, for all pairs of models. Differences from the base are taken and summed in
float64: summed in float32, the correlation of two models of the zoo is wrong in the fifth digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np
import torch

from evomerge.checkpoints import all_finite
from evomerge.errors import CheckpointError, ConfigError, Problem
from evomerge.kinship import Products
from evomerge.merging.checks import check_recipe
from evomerge.merging.chunks import over_chunks
from evomerge.merging.compatibility import tokenizer_problems
from evomerge.merging.parents import Parents, Step
from evomerge.recipes import Recipe


def kinship_recipe(models: Sequence[str], base: str, parents: Parents, fields: Mapping[str, object]) -> Recipe:
    """Return the recipe that sees the models as kinship compares them: as a merge of them would.

    Models with other vocabularies are compared on the base's tokens, unless ``fields`` say otherwise.

    Args:
        models: references.
        base: reference of the model that they were fine-tuned from.
        parents: all of these, opened.
        fields: of a recipe, such as ``tokenizer_source`` and ``align``.

    Raises:
        ConfigError: the models do not fit together; lists every reason.
    """
    references = list(dict.fromkeys(models))
    chosen = dict(fields)
    if chosen.keys().isdisjoint(("tokenizer", "tokenizer_source")):
        opened = [parents[reference] for reference in dict.fromkeys([base, *references])]
        chosen |= {"tokenizer_source": "base"} if tokenizer_problems(opened) else {}
    recipe = Recipe.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": reference, "parameters": {"weight": 1.0}} for reference in references],
            **chosen,
        }
    )
    if problems := check_recipe(recipe, parents):
        raise ConfigError(problems)
    return recipe


def task_vector_products(
    models: Sequence[str],
    recipe: Recipe,
    parents: Parents,
    *,
    part_of: Callable[[str], str] = lambda tensor: "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Products]:
    """Return the products of the models' task vectors, part by part, from one pass over their weights.

    Memory does not grow with the models' size. Tensors that are no floats, or that one of the models lacks, are left
    out.

    Args:
        models: references, in the order that the products are to have.
        recipe: from `kinship_recipe`.
        parents: the models and the base, opened.
        part_of: tensor → the part of the model that it is counted to.
        report: told the tensors done and the tensors in all, after each.

    Raises:
        CheckpointError: a tensor holds NaN or Inf; says which, of which model.
        ConfigError: the models have no tensors in common.
    """
    seen = parents.viewed(recipe)
    base = str(recipe.base_model)
    steps = [step for step in seen.plan(recipe) if step.dtype.is_floating_point and {base, *models} <= set(step.inputs)]
    found: dict[str, Products] = {}
    for number, step in enumerate(steps):
        products = _of_tensor(models, base, step, seen)
        part = part_of(step.name)
        found[part] = found[part] + products if part in found else products
        seen.release()
        report(number + 1, len(steps))
    if not found:
        raise ConfigError(Problem("the models have no tensors in common with their base", base))
    return found


def total(parts: Mapping[str, Products]) -> Products:
    """Return the products of whole models from those of their parts."""
    return reduce(add, parts.values())


def _of_tensor(models: Sequence[str], base: str, step: Step, parents: Parents) -> Products:
    """Return the products of one tensor's task vectors."""
    tensors = {model: parents.tensor(model, step.inputs[model]).reshape(-1) for model in (base, *models)}
    rows, start = [tensors[model] for model in models], tensors[base]
    parts = over_chunks(
        lambda first, last: _of_entries(rows, start, first, last), start.numel(), start.device, entries=len(rows)
    )
    products = reduce(add, parts)
    if not np.isfinite(products.gram).all():
        model = next(model for model, tensor in tensors.items() if not all_finite(tensor))
        raise CheckpointError(f"{model}: tensor {step.name} holds NaN or Inf; use another copy of this model")
    return products


def _of_entries(rows: Sequence[torch.Tensor], base: torch.Tensor, start: int, stop: int) -> Products:
    beginning = base[start:stop].double()
    vectors = torch.empty(len(rows), stop - start, dtype=torch.float64, device=base.device)
    for vector, row in zip(vectors, rows, strict=True):
        vector.copy_(row[start:stop]).sub_(beginning)
    squares = np.zeros((len(rows), len(rows)))
    squares[np.triu_indices(len(rows), 1)] = torch.pdist(vectors).square_().numpy()
    return Products(
        entries=stop - start,
        sums=vectors.sum(1).numpy(),
        gram=(vectors @ vectors.T).numpy(),
        squares=squares + squares.T,
    )
