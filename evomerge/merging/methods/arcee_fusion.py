"""Arcee Fusion: take from the other model the entries whose change matters most, leave the rest at the base.

Arcee AI 2024, mergekit's `arcee_fusion`, https://arcee.ai. An entry's importance is how far it moved times how much its
row, as the distribution softmax(row), diverges from the base's row (Kullback-Leibler); entries from the threshold
median + 1.5 · (third − first quartile) on are taken. Rows run along the last dimension; a vector is one row.

Importance is computed in the dtype that the merge is computed for, step by step as in mergekit, because which entries
are taken is all that the method decides. In half precision a row's divergence is little more than rounding noise:
set ``dtype: float32`` for one that means what the formula says.

Of tensors of more than a million entries the quartiles are those of a million entries drawn, with repetition, by a
fixed seed; mergekit draws other ones each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.chunks import over_chunks
from evomerge.merging.inner_products import ROWS, PerLine, per_line
from evomerge.merging.method import merge_method
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import required

SAMPLED = 1_000_000  # entries that quartiles are taken of
EPS = 1e-8  # added to probabilities


@state_class
class Importance(NamedTuple):
    """How much each row diverges from the base's, and the importance from which on entries are taken."""

    divergence: PerLine
    threshold: float


def importance(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, shape: Sequence[int]) -> Importance:
    """Return what decides which entries are taken."""
    start, tensor = required(base), tensors[0]
    size, length = tensor.numel(), shape[-1] if shape else 1
    if size == 0:
        return Importance(PerLine(tensor, 1), 0.0)
    rows, beginnings = tensor.view(-1, length), start.view(-1, length)
    parts = over_chunks(
        lambda first, last: divergence(rows[first:last], beginnings[first:last]),
        len(rows),
        tensor.device,
        entries=length,
    )
    divergences = torch.cat(parts)
    if size > SAMPLED:
        generator = torch.Generator().manual_seed(0)
        places = torch.randint(size, (SAMPLED,), generator=generator).to(tensor.device)
        scores = (tensor[places] - start[places]).abs_().mul_(divergences[places // length])
    else:
        scores = (rows - beginnings).abs_().mul_(divergences.unsqueeze(-1)).view(-1)
    return Importance(per_line(divergences, shape, ROWS), threshold(scores))


@merge_method(
    "arcee_fusion",
    parameters=(),
    summary="takes the entries of the other model whose change matters most",
    paper="Arcee AI 2024, mergekit's `arcee_fusion`, https://arcee.ai",
    formula="θ₀ + 1[s ≥ Q₂ + 1.5 (Q₃ − Q₁)] ⊙ δ,  s = |δ| · KL(softmax(row θ₁) ‖ softmax(row θ₀)),  Q quartiles of s",
    needs_base=True,
    kind="elementwise",
    min_models=2,
    max_models=2,
    prepare=importance,
    others="a vector is one row; rows of tensors of more dimensions run along the last",
)
def arcee_fusion(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, prepared: tuple[torch.Tensor, float]
) -> torch.Tensor:
    """Return the base with the important entries of the other model, float32."""
    start = required(base)
    divergences, threshold = prepared
    change = tensors[0] - start
    taken = change.abs().mul_(divergences) >= threshold
    return change.float().mul_(taken).add_(start)


def divergence(rows: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax(row) ‖ softmax(base row)) of each row, in the dtype of the rows."""
    first, second = (each.softmax(dim=-1).add_(EPS) for each in (rows, base))
    return (first * torch.log(first / second)).sum(-1)


def threshold(scores: torch.Tensor) -> float:
    """Return Q₂ + 1.5 (Q₃ − Q₁) of the scores, quartiles being scores (the lower one where one lies between two)."""
    rising = scores.sort().values
    places = (torch.tensor([0.25, 0.5, 0.75]) * (len(scores) - 1)).long().to(scores.device)
    first, median, third = rising[places]
    return float(median + 1.5 * (third - first))
