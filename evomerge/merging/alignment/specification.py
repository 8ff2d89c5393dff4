"""Which neurons of a model may be permuted, and where in its tensors they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

Factor: TypeAlias = str | int  # a group's name, or a number of positions in an order that means something
Segment: TypeAlias = tuple[Factor, ...]  # a product, outermost first
Dimension: TypeAlias = tuple[Segment, ...]  # segments one after the other


@dataclass(frozen=True)
class Group:
    """A set of neurons (attention heads, experts) whose order means nothing.

    Args:
        size: how many.
        within: a group for each member of which these have an order of their own: numbers of a head within heads.
    """

    size: int
    within: str | None = None


@dataclass(frozen=True)
class TensorAxes:
    """What the dimensions of one tensor are.

    Args:
        dimensions: one for each dimension of the tensor.
        at: (group, position) for each group of which this tensor is one member, such as an expert.
        reads: dimensions along which neurons are read; along the others they are written.
    """

    dimensions: tuple[Dimension, ...]
    at: tuple[tuple[str, int], ...] = ()
    reads: frozenset[int] = frozenset()

    def groups(self) -> set[str]:
        """Return the names of all groups in this tensor."""
        named = {factor for dimension in self.dimensions for segment in dimension for factor in segment}
        return {name for name in named if isinstance(name, str)} | {name for name, _ in self.at}

    def fixed(self, place: int) -> bool:
        """Whether nothing in a dimension may be moved."""
        return all(isinstance(factor, int) for segment in self.dimensions[place] for factor in segment)


@dataclass(frozen=True)
class Specification:
    """The permutation symmetries of one model.

    Args:
        groups: by name.
        tensors: by name; a tensor that is not named has nothing to permute.
    """

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorAxes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, axes in self.tensors.items():
            if unknown := sorted(axes.groups() - set(self.groups)):
                raise ValueError(f"tensor {name} speaks of the group {unknown[0]!r}, which is not among the groups")

    def size(self, segment: Segment) -> int:
        """Return the number of positions of a segment."""
        return prod(self.factor_size(factor) for factor in segment)

    def factor_size(self, factor: Factor) -> int:
        """Return the number of positions of one factor."""
        return factor if isinstance(factor, int) else self.groups[factor].size

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(sum(map(self.size, dimension)) for dimension in self.tensors[name].dimensions)

    def roots(self) -> list[str]:
        """Return the groups that lie within no other."""
        return [name for name, group in self.groups.items() if group.within is None]

    def children(self, root: str) -> list[str]:
        """Return the groups that lie within ``root``."""
        return [name for name, group in self.groups.items() if group.within == root]

    def member(self, name: str, group: str, position: int) -> str:
        """Return the tensor that is for member ``position`` of a group what ``name`` is for another.

        Raises:
            KeyError: there is none.
        """
        axes = self.tensors[name]
        wanted = tuple((g, position if g == group else p) for g, p in axes.at)
        old = str(dict(axes.at)[group])
        words = name.split(".")
        for place in [place for place, word in enumerate(words) if word == old]:
            candidate = ".".join([*words[:place], str(position), *words[place + 1 :]])
            if candidate in self.tensors and self.tensors[candidate].at == wanted:
                return candidate
        raise KeyError(f"{name} for member {position} of {group}")

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON."""
        return {
            "groups": {name: [group.size, group.within] for name, group in self.groups.items()},
            "tensors": {
                name: [axes.dimensions, axes.at, sorted(axes.reads)] for name, axes in sorted(self.tensors.items())
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Specification:
        """Return what `to_json` wrote."""
        return cls(
            {name: Group(size, within) for name, (size, within) in data["groups"].items()},
            {name: _axes(*entry) for name, entry in data["tensors"].items()},
        )


def simple_specification(
    tensors: Mapping[str, Sequence[str | None]], shapes: Mapping[str, Sequence[int]]
) -> Specification:
    """Return the specification of a model whose dimensions are each one group, or (None) fixed.

    For models that transformers does not know, as in Git Re-Basin's own code::

        simple_specification({"fc1.weight": ("h", None), "fc1.bias": ("h",), "fc2.weight": (None, "h")}, shapes)

    The second dimension of a matrix is taken to be the one that reads.

    Raises:
        ValueError: a group has two sizes, or a tensor's dimensions do not agree with its shape.
    """
    sizes: dict[str, int] = {}
    found: dict[str, TensorAxes] = {}
    for name, dimensions in tensors.items():
        if len(dimensions) != len(shapes[name]):
            raise ValueError(f"tensor {name} has {len(shapes[name])} dimensions, the specification {len(dimensions)}")
        for group, size in zip(dimensions, shapes[name], strict=True):
            if group is not None and sizes.setdefault(group, size) != size:
                raise ValueError(f"group {group!r} has {sizes[group]} members, but {size} in tensor {name}")
        made = tuple(((group or size,),) for group, size in zip(dimensions, shapes[name], strict=True))
        found[name] = TensorAxes(made, reads=frozenset({1} if len(dimensions) > 1 else ()))
    return Specification({name: Group(size) for name, size in sizes.items()}, found)


def _axes(dimensions: Any, at: Any, reads: Any) -> TensorAxes:
    made = tuple(tuple(tuple(segment) for segment in dimension) for dimension in dimensions)
    return TensorAxes(made, tuple((group, position) for group, position in at), frozenset(reads))
