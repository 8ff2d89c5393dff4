"""SCE: select the entries in which the models differ most, calculate a weight for each model, erase minority signs.

Wan et al. 2024, "FuseChat: knowledge fusion of chat models", https://arxiv.org/abs/2408.07990, Section 3.3; as in
mergekit's `sce`: by tensor; a share of the entries whose variance is not zero is selected; a model's weight is the
mean square of what is selected of its task vector.

Weights that sum to less than 10⁻⁶, which task vectors of fine-tuning at low rates do, count as equal: mergekit's bound.

Like signs, variances are compared after rounding to the dtype that the merge is computed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging import magnitudes
from evomerge.merging.chunks import over_chunks
from evomerge.merging.magnitudes import First, Order, Trim, Values, largest, order_of, trimmed
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.state import PerEntry, state_class
from evomerge.merging.task_vectors import elected_sign, required, task_vectors

NO_WEIGHT = 1e-6  # mergekit's bounds: for the sum of weights, and for a divisor

SELECT_TOPK = Parameter(
    "select_topk",
    default=1.0,
    low=0.05,
    high=1.0,
    per_model=False,
    searchable=True,
    description="share of the entries that are merged, those in which the models' task vectors vary most",
    minimum=0.0,
    maximum=1.0,
)


@state_class
class Variances(NamedTuple):
    """The order of the variances, None for tensors so short that they are selected from directly; how many are not 0.

    ``squares`` has the mean square of each task vector.
    """

    order: Order | None
    nonzero: int
    squares: list[float]


@state_class
class Selection(NamedTuple):
    """Which variances are selected (None for all), and each model's weight; no weights if nothing is selected."""

    trim: Trim
    weights: list[float]


def variances(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> Variances:
    """Return how the variances are distributed, and the task vectors' mean squares."""
    start, size, device = required(base), tensors[0].numel(), tensors[0].device
    squares = _mean_squares(tensors, start, None)
    if size <= magnitudes.SHORT:
        return Variances(None, int(_variance_as_torch_has_it(task_vectors(tensors, start)).count_nonzero()), squares)
    values = _variances(tensors, start)
    counts = over_chunks(lambda first, last: int(values(first, last).count_nonzero()), size, device)
    return Variances(order_of(values, size, device), sum(counts), squares)


def selection(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, prepared: Variances, select_topk: float
) -> Selection:
    """Return which entries are merged, and with which weights."""
    if select_topk >= 1:
        return Selection(None, _weights(prepared.squares))
    start, size, device = required(base), tensors[0].numel(), tensors[0].device
    kept = int(torch.tensor(prepared.nonzero) * select_topk)  # a product of float32, as mergekit's
    if kept == 0:
        return Selection(None, [])
    values = _variances(tensors, start)
    if prepared.order is None:
        trim: Trim = _first(task_vectors(tensors, start), kept)
    else:
        trim = largest(values, size, device, prepared.order, kept)
    return Selection(trim, _weights(_mean_squares(tensors, start, trim)))


@merge_method(
    "sce",
    parameters=(SELECT_TOPK,),
    summary="averages the entries of majority sign in which models vary most, weighted by the task vectors' squares",
    paper="Wan et al. 2024, https://arxiv.org/abs/2408.07990",
    formula="θ₀ + Σ_{i∈A} wᵢ δ̂ᵢ / Σ_{i∈A} wᵢ,  δ̂ = δ where varᵢ(δᵢ) is largest,  wᵢ ∝ mean(δ̂ᵢ²),  A as in ties",
    needs_base=True,
    kind="elementwise",
    prepare=variances,
    reduce=selection,
    cost="one pass over the parents, two or three more to select",
    ignored=("int8_mask",),
)
def sce(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, reduced: Selection, select_topk: float
) -> torch.Tensor:
    """Return the base plus the weighted mean of the selected entries of majority sign, float32."""
    start = required(base)
    if not reduced.weights:
        return start
    terms = [vector.float() for vector in _selected(tensors, start, reduced.trim)]
    winner = elected_sign(terms, start.dtype)
    mixed, divisor = torch.zeros_like(winner), torch.zeros_like(winner)
    for term, weight in zip(terms, reduced.weights, strict=True):
        agreeing = term.mul_(winner).relu_()
        mixed.add_(agreeing, alpha=weight)
        divisor.add_(agreeing.sign_(), alpha=weight)
    return mixed.div_(divisor.clamp_(min=NO_WEIGHT)).mul_(winner).add_(start)


def _variances(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> Values:
    def values(start: int, stop: int) -> torch.Tensor:
        return _variance(task_vectors([tensor[start:stop] for tensor in tensors], base[start:stop]))

    return values


def _variance(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance over the vectors at each entry, computed in float32 and rounded to their dtype."""
    mean = torch.zeros_like(vectors[0], dtype=torch.float32)
    for vector in vectors:
        mean.add_(vector, alpha=1 / len(vectors))
    squares = torch.zeros_like(mean)
    for vector in vectors:
        distance = vector - mean
        squares.addcmul_(distance, distance, value=1 / len(vectors))
    return squares.to(vectors[0].dtype)


def _variance_as_torch_has_it(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the same, bit for bit as mergekit computes it, which takes five times as long."""
    return torch.stack(list(vectors)).var(dim=0, unbiased=False) if vectors[0].numel() else vectors[0]


def _first(vectors: Sequence[torch.Tensor], kept: int) -> First:
    """Return the selection of the ``kept`` largest variances: as mergekit has it, of equal ones too."""
    variances = _variance_as_torch_has_it(vectors)
    rank = torch.ones(variances.shape, dtype=torch.int32, device=variances.device)
    rank[variances.topk(kept).indices] = 0
    return First(PerEntry(rank), 1)


def _selected(tensors: Sequence[torch.Tensor], base: torch.Tensor, trim: Trim) -> list[torch.Tensor]:
    """Return the task vectors, zero where the variance is not selected."""
    vectors = task_vectors(tensors, base)
    if trim is None:
        return vectors
    chosen_by = torch.ones_like(base) if isinstance(trim, First) else _variance(vectors)
    mask = trimmed(chosen_by, trim).sign_()
    return [vector.mul_(mask) for vector in vectors]


def _mean_squares(tensors: Sequence[torch.Tensor], base: torch.Tensor, trim: Trim) -> list[float]:
    size = max(1, tensors[0].numel())

    def squares(start: int, stop: int) -> torch.Tensor:
        part = None if trim is None else trim.cut(start, stop)
        vectors = _selected([tensor[start:stop] for tensor in tensors], base[start:stop], part)
        return torch.stack([vector.double().square().sum() for vector in vectors])

    sums = torch.stack(over_chunks(squares, tensors[0].numel(), tensors[0].device)).sum(0)
    return [float(f"{total / size:.12g}") for total in sums.tolist()]  # not to depend on the number of threads


def _weights(squares: Sequence[float]) -> list[float]:
    total = sum(squares)
    return [1 / len(squares)] * len(squares) if total < NO_WEIGHT else [square / total for square in squares]
