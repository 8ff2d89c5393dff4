"""Pairs of tensors of two models, taken apart until each dimension is one group or is fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.alignment.specification import Dimension, Segment, Specification, TensorAxes
from evomerge.merging.alignment.transport import Movements, coordinates

Array: TypeAlias = NDArray[np.float64]
Read: TypeAlias = Callable[[str], Array]


@dataclass(frozen=True)
class Piece:
    """A part of a tensor (or of the tensors of all members of a group) whose dimensions are products of factors.

    Args:
        name: of the tensor.
        members: for the tensors of a group's members (experts), their names in order; else the name alone.
        factors: of all dimensions in a row, members first.
        starts: where in each dimension of the tensor the part begins.
        lengths: how long it is there.
        reads: for each factor, whether neurons are read along it.
    """

    name: str
    members: tuple[str, ...]
    factors: Segment
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    reads: tuple[bool, ...]

    def groups(self) -> set[str]:
        """Return the names of the groups in it."""
        return {factor for factor in self.factors if isinstance(factor, str)}

    def load(self, specification: Specification, read: Read) -> Array:
        """Return the numbers, float64, one dimension for each factor."""
        window = tuple(slice(start, start + n) for start, n in zip(self.starts, self.lengths, strict=True))
        arrays = [read(name)[window] for name in self.members]
        stacked = arrays[0] if len(arrays) == 1 else np.stack(arrays)
        return stacked.reshape([specification.factor_size(factor) for factor in self.factors])


def pieces(specification: Specification) -> list[Piece]:
    """Return every piece of every tensor that has a group."""
    found: list[Piece] = []
    for name, axes in sorted(specification.tensors.items()):
        if len(axes.at) > 1 or any(position for _, position in axes.at):
            continue  # its first member stands for all; of several such groups, none is matched
        found += _pieces(specification, name, axes)
    return found


def _pieces(specification: Specification, name: str, axes: TensorAxes) -> Iterator[Piece]:
    members: tuple[str, ...] = (name,)
    lead: Segment = ()
    if axes.at:
        group = axes.at[0][0]
        lead = (group,)
        members = tuple(specification.member(name, group, n) for n in range(specification.groups[group].size))
    for segments in product(*(list(_located(specification, dimension)) for dimension in axes.dimensions)):
        factors = (*lead, *(factor for segment, _, _ in segments for factor in segment))
        reads = [d in axes.reads for d, (segment, _, _) in enumerate(segments) for _ in segment]
        starts, lengths = tuple(s for _, s, _ in segments), tuple(n for _, _, n in segments)
        yield Piece(name, members, factors, starts, lengths, (*(False for _ in lead), *reads))


def _located(specification: Specification, dimension: Dimension) -> Iterator[tuple[Segment, int, int]]:
    start = 0
    for segment in dimension:
        yield segment, start, specification.size(segment)
        start += specification.size(segment)


def permuted(specification: Specification, piece: Piece, array: Array, movements: Movements) -> Array:
    """Return a piece of the source in the target's order."""
    if not any(factor in movements for factor in piece.factors):
        return array
    places = {factor: place for place, factor in enumerate(piece.factors) if isinstance(factor, str)}
    moved: Array = array[tuple(coordinates(specification, piece.factors, movements, places, {}))]
    return moved


def gram(one: Array, other: Array, place: int) -> Array:
    """Return the inner products (members of one, members of the other) of what lies at each member of a factor."""
    rows = [np.moveaxis(array, place, 0).reshape(array.shape[place], -1) for array in (one, other)]
    result: Array = rows[0] @ rows[1].T
    return result
