"""What an adapter does to one tensor of its base.

For a weight W of shape (out, in), A of shape (r, in) and B of shape (out, r), LoRA's weight is

    W + s·B·A,  s = α / r, or α / √r (rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)

(Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3), and with a magnitude m of shape (out,) it is

    m · (W + s·B·A) / ‖W + s·B·A‖

with the norm of each row (DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5). Sums are float32 and rounded
once, to the base's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.checkpoints.headers import TensorInfo

PART_BYTES = 1 << 26  # of float32, of a weight that is changed at once
Read = Callable[[TensorInfo], torch.Tensor]


class Change(Protocol):
    """What an adapter does to one tensor of its base."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can be done to a tensor of this shape."""

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """Return the changed tensor, in the dtype of ``tensor``, which is not written to."""


@dataclass(frozen=True)
class Replaced:
    """A tensor trained as a whole: a module to save, or a bias."""

    info: TensorInfo

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.info.shape == shape

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        return read(self.info).to(tensor.dtype)


@dataclass(frozen=True)
class NewRows:
    """Some rows trained as a whole: the embeddings of some tokens."""

    info: TensorInfo
    rows: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        inside = all(0 <= row < shape[0] for row in self.rows)
        return inside and self.info.shape == (len(self.rows), *shape[1:])

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        changed = tensor.clone()
        changed[list(self.rows)] = read(self.info).to(tensor.dtype)
        return changed


@dataclass(frozen=True)
class AddedBias:
    """The bias of B, which is added to the base's, scaled."""

    info: TensorInfo
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.info.shape == shape

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        return (tensor.float() + self.scale * read(self.info).float()).to(tensor.dtype)


@dataclass(frozen=True)
class LowRank:
    """A product of two thin matrices, added to a weight.

    Args:
        first: A, of shape (r, in); (r, in, *kernel) for convolutions, (r, tokens) for embeddings.
        second: B, of shape (out, r); (out, r, 1, ...) for convolutions, (dimensions, r) for embeddings.
        scale: s.
        transposed: whether the weight is stored as (in, out), as embeddings and GPT-2's layers are.
        magnitude: m of DoRA, as many numbers as ``out``.
    """

    first: TensorInfo
    second: TensorInfo
    scale: float
    transposed: bool
    magnitude: TensorInfo | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        (rank, columns, *kernel), (rows, *_) = self.first.shape, self.second.shape
        expected = (columns, rows) if self.transposed else (rows, columns, *kernel)
        agree = self.second.shape == (rows, rank, *(1 for _ in kernel))
        return agree and shape == expected and (self.magnitude is None or math.prod(self.magnitude.shape) == rows)

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        left, right = self._factors(read)
        weight = tensor.reshape(len(left), -1)
        rows = max(1, PART_BYTES // (4 * weight.shape[1]))
        changed = torch.empty_like(weight)
        factor = self._column_factor(weight, left, right, rows, read)
        for start in range(0, len(left), rows):
            part = slice(start, start + rows)
            new = torch.addmm(weight[part].float(), left[part], right)
            if self.magnitude is not None and not self.transposed:
                magnitude = read(self.magnitude).float().flatten()[part]
                new *= (magnitude / torch.linalg.vector_norm(new, dim=1)).unsqueeze(1)
            changed[part] = new if factor is None else new * factor
        return changed.reshape(tensor.shape)

    def pair(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (r, in·kernel) and s·B (out, r), float32."""
        first, second = read(self.first).float(), read(self.second).float()
        rank = len(first)
        return first.reshape(rank, -1), second.reshape(-1, rank) * self.scale

    def _factors(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return L (rows, r) and R (r, columns); L·R is s·B·A, laid out as the weight is."""
        first, second = self.pair(read)
        return (first.T.contiguous(), second.T.contiguous()) if self.transposed else (second, first)

    def _column_factor(
        self, weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, rows: int, read: Read
    ) -> torch.Tensor | None:
        """Return DoRA's factor for each column of a transposed weight: its norms need all rows before any is made."""
        if self.magnitude is None or not self.transposed:
            return None
        squares = torch.zeros(weight.shape[1])
        for start in range(0, len(left), rows):
            part = slice(start, start + rows)
            squares += torch.addmm(weight[part].float(), left[part], right).square_().sum(dim=0)
        return read(self.magnitude).float().flatten() / squares.sqrt()
