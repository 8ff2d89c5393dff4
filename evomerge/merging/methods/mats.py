"""MaTS: merging as a linear system in each matrix's task subspace, solved by conjugate gradients.

Tam et al. 2024, "Merging by matching models in task parameter subspaces", https://arxiv.org/abs/2312.04339. Few
iterations from a good start often merge better than the exact solution, so both are parameters.

Legend: Wᵢ weight of model i as (inputs, outputs), Gᵢ = XᵢᵀXᵢ of its inputs, Hᵢ = the same of the gradients of log p at
its outputs, λᵢ weight of the model, δᵢ task vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.methods.linear import normalised
from evomerge.merging.methods.regmean import ALPHA, WEIGHT, average, damped, grams_of, inputs_first
from evomerge.merging.task_vectors import required

ITERATIONS = Parameter(
    "iterations",
    default=20.0,
    low=1.0,
    high=100.0,
    per_model=False,
    searchable=True,
    description="steps of conjugate gradients, rounded; 0 leaves the start",
    minimum=0.0,
)
START = Parameter(
    "start",
    default=1.0,
    low=0.0,
    high=2.0,
    per_model=False,
    searchable=True,
    description="where the iterations begin: base + start · weighted mean of the task vectors; 0 base, 1 average",
)
NORMALIZE = switch(
    "normalize", False, "divide each model's gradient matrix by its trace, so that none outweighs the rest"
)
CONVERGED = 1e-10  # a residual this small, relative to the right-hand side, is rounding
Apply = Callable[[torch.Tensor], torch.Tensor]


def conjugate_gradients(apply: Apply, right: torch.Tensor, start: torch.Tensor, iterations: int) -> torch.Tensor:
    """Return the iterate after ``iterations`` steps towards A X = B, or fewer if the residual is gone.

    Hestenes and Stiefel 1952, with X and B as matrices and ⟨X, Y⟩ = Σ XY: one system, not one for each column.

    Args:
        apply: X → A X, A symmetric and positive semidefinite.
        right: B.
        start: the first X, of B's shape and dtype.
        iterations: at most.
    """
    solution, residual = start.clone(), right - apply(start)
    direction, squares = residual.clone(), float(residual.square().sum())
    enough = CONVERGED**2 * float(right.square().sum())
    for _ in range(iterations):
        if squares <= enough:
            break
        image = apply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:  # the rest of the residual lies where no model has an opinion
            break
        step = squares / curvature
        solution.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        before, squares = squares, float(residual.square().sum())
        direction.mul_(squares / before).add_(residual)
    return solution


def _started(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, weight: Sequence[float], start: float
) -> torch.Tensor:
    """Return the base plus ``start`` times the weighted mean of the task vectors, float64."""
    beginning = required(base).double()
    return beginning + (average(tensors, normalised(weight), torch.float64) - beginning) * start


@merge_method(
    "mats",
    parameters=(WEIGHT, ALPHA, ITERATIONS, START),
    summary="RegMean's objective, approached by conjugate gradients from a task-arithmetic merge",
    paper="Tam et al. 2024, https://arxiv.org/abs/2312.04339",
    formula="conjugate gradients on Σ λᵢ G̃ᵢ W = Σ λᵢ G̃ᵢ Wᵢ,  G̃ᵢ = α Gᵢ + (1 − α) diag Gᵢ,  from θ₀ + s · mean δᵢ",
    needs_base=True,
    kind="matrix",
    statistics=("gram", "axis"),
    others="vectors, embeddings (tied heads too), convolutions and other tensors without a Gram matrix become "
    "θ₀ + s · mean δᵢ, the start",
    cost="for each matrix and step one product of (inputs, inputs) and (inputs, outputs) in float64; "
    "the right-hand side costs one for each model",
)
def mats(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
    weight: Sequence[float],
    alpha: float,
    iterations: float,
    start: float,
) -> torch.Tensor:
    """Return the merged tensor after the given iterations, float32, computed in float64."""
    beginning = _started(tensors, base, weight, start)
    found = grams_of(tensors, statistics)
    if found is None:
        return beginning.float()
    grams, axis = found
    shares = normalised(weight)
    scaled = [damped(gram.double(), alpha) * share for gram, share in zip(grams, shares, strict=True)]
    system = sum(scaled[1:], scaled[0])
    right = _sum(gram @ inputs_first(t, axis).double() for gram, t in zip(scaled, tensors, strict=True))
    solution = conjugate_gradients(lambda x: system @ x, right, inputs_first(beginning, axis), round(iterations))
    return inputs_first(solution, axis).float().contiguous()


@merge_method(
    "mats_fisher",
    parameters=(WEIGHT, ALPHA, ITERATIONS, START, NORMALIZE),
    summary="matching in the subspace of each model's block-wise (K-FAC) Fisher information, by conjugate gradients",
    paper="Tam et al. 2024, https://arxiv.org/abs/2312.04339",
    formula="conjugate gradients on Σ λᵢ G̃ᵢ W H̃ᵢ = Σ λᵢ G̃ᵢ Wᵢ H̃ᵢ,  G̃ᵢ, H̃ᵢ damped by α,  from θ₀ + s · mean δᵢ",
    needs_base=True,
    kind="matrix",
    statistics=("gram", "gradient", "axis"),
    others="as mats; also heads, whose gradients have too many outputs to keep",
    cost="for each matrix, step and model two products with (inputs, inputs) and (outputs, outputs) in float64",
)
def mats_fisher(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
    weight: Sequence[float],
    alpha: float,
    iterations: float,
    start: float,
    normalize: bool,
) -> torch.Tensor:
    """Return the merged tensor after the given iterations, float32, computed in float64."""
    beginning = _started(tensors, base, weight, start)
    found = grams_of(tensors, statistics)
    if found is None or not all("gradient" in each for each in statistics or ()):
        return beginning.float()
    grams, axis = found
    outputs = [each["gradient"].to(gram.device).double() for gram, each in zip(grams, statistics or (), strict=True)]
    if normalize:
        outputs = [matrix / float(matrix.trace()) if matrix.trace() > 0 else matrix for matrix in outputs]
    blocks = [
        (damped(gram.double(), alpha) * share, damped(matrix, alpha))
        for gram, matrix, share in zip(grams, outputs, normalised(weight), strict=True)
    ]
    right = _sum(g @ inputs_first(t, axis).double() @ h for (g, h), t in zip(blocks, tensors, strict=True))
    solution = conjugate_gradients(
        lambda x: _sum(g @ x @ h for g, h in blocks), right, inputs_first(beginning, axis), round(iterations)
    )
    return inputs_first(solution, axis).float().contiguous()


def _sum(terms: Any) -> torch.Tensor:
    first, *rest = terms
    for term in rest:
        first = first.add_(term)
    return first
