"""Tensors with their neurons permuted, or carried over to another model's neurons by a plan of transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.alignment.specification import Dimension, Segment, Specification, TensorAxes

Order: TypeAlias = NDArray[np.int64]
"""Which neuron of the source comes to each place: (members,), or (members of the group above, members)."""
Plan: TypeAlias = torch.Tensor
"""(neurons of the target, neurons of the source) float64; rows sum to one."""
Movement: TypeAlias = Order | Plan
Movements: TypeAlias = Mapping[str, Movement]


@dataclass(frozen=True)
class Sides:
    """The tensors of two models.

    Args:
        target: returns a tensor of the model whose neurons stay.
        source: of the model that is carried over.
    """

    target: Callable[[str], torch.Tensor]
    source: Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Moved:
    """A tensor of the target, as made from a source: where it comes from and how.

    Args:
        source: the name of the source's tensor.
        indices: for each dimension, positions of the source in the target's order; None if nothing moves.
        plans: (dimension, segment, factor, matrix) for each factor that is transported.
    """

    source: str
    indices: tuple[Order | None, ...]
    plans: tuple[tuple[int, int, int, Plan], ...]


def moved(specification: Specification, name: str, movements: Movements) -> Moved:
    """Return how tensor ``name`` is made when groups are moved; groups that are not named stay."""
    axes = specification.tensors[name]
    source, members = name, dict(axes.at)
    for group, position in axes.at:
        if isinstance(order := movements.get(group), np.ndarray):
            source = specification.member(source, group, int(order[position]))
    indices = tuple(_indices(specification, dimension, movements, members) for dimension in axes.dimensions)
    return Moved(source, indices, tuple(_plans(axes, movements)))


def apply(
    specification: Specification, name: str, movements: Movements, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """Return tensor ``name`` of a model with its groups moved, in its own dtype.

    Permuting copies numbers as they are. Transport computes in float64 and rounds once: a neuron that is written
    becomes the mean of those that go to it, one that is read their sum, as the function of the model asks.

    Args:
        specification: of the model that is moved.
        name: of the tensor.
        movements: by group; groups that are not named stay.
        read: returns a tensor of the model by name.
    """
    if name not in specification.tensors:
        return read(name)
    how = moved(specification, name, movements)
    tensor = read(how.source)
    for dimension, index in enumerate(how.indices):
        if index is not None:
            tensor = tensor.index_select(dimension, torch.from_numpy(index))
    if not how.plans:
        return tensor
    axes = specification.tensors[name]
    result = tensor.to(torch.float64)
    for dimension, segments in enumerate(axes.dimensions):
        plans = {(segment, factor): plan for d, segment, factor, plan in how.plans if d == dimension}
        if plans:
            result = _transport(result, dimension, segments, plans, specification, dimension in axes.reads)
    return result.to(tensor.dtype)


def _indices(
    specification: Specification, dimension: Dimension, movements: Movements, members: Mapping[str, int]
) -> Order | None:
    """Return the source's position for each position of a dimension, None where nothing moves."""
    if not any(isinstance(movements.get(str(f)), np.ndarray) for segment in dimension for f in segment):
        return None
    found, start = [], 0
    for segment in dimension:
        found.append(start + _segment_indices(specification, segment, movements, members).reshape(-1))
        start += specification.size(segment)
    return np.concatenate(found)


def _segment_indices(
    specification: Specification, segment: Segment, movements: Movements, members: Mapping[str, int]
) -> Order:
    sizes = [specification.factor_size(factor) for factor in segment]
    places = dict(zip(segment, range(len(segment)), strict=True))
    flat = np.zeros(sizes, dtype=np.int64)
    for place, coordinate in enumerate(coordinates(specification, segment, movements, places, members)):
        flat += coordinate * int(np.prod(sizes[place + 1 :], dtype=np.int64))
    return flat


def coordinates(
    specification: Specification,
    factors: Segment,
    movements: Movements,
    places: Mapping[Any, int],
    members: Mapping[str, int],
) -> list[Order]:
    """Return for each factor the source's coordinate, as arrays that broadcast to the product's shape.

    Args:
        places: where groups above others are found among the factors.
        members: group → position, for groups of which the tensor is one member.
    """
    found = []
    for place, factor in enumerate(factors):
        size = specification.factor_size(factor)
        order = movements.get(factor) if isinstance(factor, str) else None
        shape = [1] * len(factors)
        shape[place] = size
        if not isinstance(order, np.ndarray):
            found.append(np.arange(size).reshape(shape))
            continue
        above = specification.groups[str(factor)].within
        if above is None or order.ndim == 1:
            found.append(order.reshape(shape))
        elif above in places:
            shape[places[above]] = len(order)
            found.append((order if places[above] < place else order.T).reshape(shape))
        else:
            found.append(order[members[above]].reshape(shape))
    return found


def _plans(axes: TensorAxes, movements: Movements) -> list[tuple[int, int, int, Plan]]:
    return [
        (d, s, f, plan)
        for d, dimension in enumerate(axes.dimensions)
        for s, segment in enumerate(dimension)
        for f, factor in enumerate(segment)
        if isinstance(plan := movements.get(str(factor)), torch.Tensor)
    ]


def _transport(
    tensor: torch.Tensor,
    dimension: int,
    segments: Dimension,
    plans: Mapping[tuple[int, int], Plan],
    source: Specification,
    reads: bool,
) -> torch.Tensor:
    """Carry the factors of one dimension over; neurons that are read keep their sum (Singh & Jaggi 2020, §3)."""
    pieces = tensor.split([source.size(segment) for segment in segments], dim=dimension)
    made = []
    for number, (piece, segment) in enumerate(zip(pieces, segments, strict=True)):
        sizes = [source.factor_size(factor) for factor in segment]
        open_ = piece.unflatten(dimension, sizes)
        for place in range(len(segment)):
            if (plan := plans.get((number, place))) is not None:
                scale = plan.shape[1] / plan.shape[0] if reads else 1.0
                open_ = torch.tensordot(plan * scale, open_, dims=([1], [dimension + place]))
                open_ = open_.movedim(0, dimension + place)
        made.append(open_.flatten(dimension, dimension + len(segment) - 1))
    return torch.cat(made, dim=dimension)
