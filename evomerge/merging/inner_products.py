"""Scalar products between models: of tensors taken as one long vector, or line by line (rows, or columns).

Methods that work with angles and lengths need nothing else of the parents. Their weighted sums of N models have
coefficients that follow from the N × N products, so a merge is one pass over the parents whatever the method does
with the angles.

Products are summed in float64; what is one number for a tensor is rounded to 12 digits, so that the number of threads
cannot change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.chunks import over_chunks
from evomerge.merging.state import state_class
from evomerge.merging.sums import weighted

DIGITS = 12
ROWS, COLUMNS = -1, 0  # the dimension along which a line runs


@state_class
class PerLine(NamedTuple):
    """One number for each line of a tensor; cut into one for each entry.

    Entry e is in line number ``e // run % len(values)``: ``run`` entries of a line follow each other.
    """

    values: torch.Tensor
    run: int

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Return the numbers of the lines in which the flat entries [start, stop) are."""
        if start >= stop:
            return self.values[:0]
        first = start // self.run
        lines = torch.arange(first, (stop - 1) // self.run + 1, device=self.values.device)
        numbers = self.values[lines.remainder_(len(self.values))]
        if self.run > 1:
            numbers = numbers.repeat_interleave(self.run)
        return numbers[start - first * self.run :][: stop - start]


def per_line(values: torch.Tensor, shape: Sequence[int], dimension: int) -> PerLine:
    """Return one value for each line of a tensor of ``shape`` that runs along ``dimension`` (first or last)."""
    return PerLine(values, shape[-1] if dimension == ROWS and shape else 1)


def products(tensors: Sequence[torch.Tensor], base: torch.Tensor | None = None) -> list[list[float]]:
    """Return ⟨θᵢ, θⱼ⟩ of all pairs of flat tensors; of their differences from ``base``, if there is one."""
    parts = over_chunks(lambda start, stop: _pairs(tensors, base, start, stop), tensors[0].numel(), tensors[0].device)
    sums = iter(torch.stack(parts).sum(0).tolist())
    matrix = [[0.0] * len(tensors) for _ in tensors]
    for i in range(len(tensors)):
        for j in range(i + 1):
            matrix[i][j] = matrix[j][i] = _settled(next(sums))
    return matrix


def line_products(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, shape: Sequence[int], dimension: int
) -> torch.Tensor:
    """Return ⟨θᵢ, θⱼ⟩ for each line: (lines, pairs), float64; of differences from ``base``, if there is one.

    Args:
        tensors: flat.
        base: flat.
        shape: of the tensors before they were made flat; less than two dimensions are one line.
        dimension: ROWS for lines along the last dimension, COLUMNS for lines along the first.

    Returns:
        One column for each pair (i, j), j ≤ i, in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
    """
    if tensors[0].numel() == 0:
        return torch.zeros(0, len(tensors) * (len(tensors) + 1) // 2, dtype=torch.float64)
    length = 1 if not shape else shape[dimension]
    if dimension == ROWS:
        views, start = [t.view(-1, length) for t in tensors], None if base is None else base.view(-1, length)
    else:
        views, start = [t.view(length, -1).T for t in tensors], None if base is None else base.view(length, -1).T
    return torch.cat(
        over_chunks(
            lambda first, last: _pairs(views, start, first, last),
            tensors[0].numel() // length,
            tensors[0].device,
            entries=length,
        )
    )


def norm(square: float) -> float:
    """Return the length of a vector from its product with itself."""
    return math.sqrt(max(0.0, square))


def combined(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, shares: Sequence[float]) -> torch.Tensor:
    """Return Σ sᵢ θᵢ in float32; with a base θ₀ + Σ sᵢ (θᵢ − θ₀)."""
    return weighted(tensors, shares) if base is None else weighted([base, *tensors], [1 - sum(shares), *shares])


def _pairs(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    beginning = None if base is None else base[start:stop].double()
    vectors = [tensor[start:stop].double() for tensor in tensors]
    if beginning is not None:
        vectors = [vector.sub_(beginning) for vector in vectors]
    sums = [(vectors[i] * vectors[j]).sum(-1) for i in range(len(vectors)) for j in range(i + 1)]
    return torch.stack(sums, -1)


def _settled(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
