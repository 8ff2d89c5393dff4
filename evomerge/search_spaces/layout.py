"""Where each value of a parameter goes: the tensors cut into parts, and each part's values over the layers.

Every parameter of a method is laid out alike. A part is a group's tensors inside the layers, or those outside
them. Its cells are named ``layer3.mlp``, ``block0.attention``, ``point1`` (of a smooth curve),
``outside.norm``, ``embedding``: the last words of a gene's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evomerge.recipes import count_layers, layer_of
from evomerge.search_spaces.filters import choose_filters

BLOCK = re.compile(r"block: ([1-9]\d*)")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Entry:
    """One filter of a parameter's list and the cells its value is made of: one, or a gradient's points."""

    filter: str | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The cells, from the first layer to the last, then outside; and which tensors each of them governs."""

    cells: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class _Part:
    names: tuple[str, ...]
    cells: tuple[str, ...]


def lay_out(groups: Mapping[str, Sequence[str]], granularity: str, smooth: int | None) -> Layout:
    """Return the layout of one parameter.

    Args:
        groups: group → its tensors; a single group may have the empty name.
        granularity: ``global``, ``layer`` or ``block: k``.
        smooth: number of points of a curve over the layers, instead of one value for each layer.
    """
    num_layers = count_layers([name for names in groups.values() for name in names])
    inside: list[_Part] = []
    outside: list[_Part] = []
    for group, names in groups.items():
        if granularity == "global":
            inside.append(_Part(tuple(names), (group,)))
            continue
        layered = tuple(name for name in names if layer_of(name) is not None)
        if layered:
            inside.append(_Part(layered, _points(group, layered, num_layers, granularity, smooth)))
        if len(layered) < len(names):
            place = OUTSIDE if layered or not group else ""
            rest = tuple(name for name in names if layer_of(name) is None)
            outside.append(_Part(rest, (_join(place, group),)))
    parts = outside + inside
    listed = choose_filters([part.names for part in parts])
    entries = tuple(Entry(text, parts[index].cells) for text, index in listed)
    return Layout(tuple(_in_order([*inside, *outside])), entries)


def _points(group: str, names: Sequence[str], num_layers: int, granularity: str, smooth: int | None) -> tuple[str, ...]:
    """Return the cell of each point of a gradient; one cell if all are the same.

    A point that no tensor is read from (a group may be missing in some layers) shares the cell of its nearest
    neighbour that has tensors, so that every cell governs something.
    """
    layers = {layer for name in names if (layer := layer_of(name)) is not None}
    if smooth is not None:
        places = [f"point{point}" for point in range(smooth)]
        live = [point for point in range(smooth) if any(_reads(k, point, num_layers, smooth) for k in layers)]
    else:
        block = BLOCK.fullmatch(granularity)
        size = int(block.group(1)) if block else 1
        places = [f"block{layer // size}" if block else f"layer{layer}" for layer in range(num_layers)]
        used = {places[layer] for layer in layers}
        live = [layer for layer in range(num_layers) if places[layer] in used]
    cells = tuple(_join(places[min(live, key=lambda near: abs(near - point))], group) for point in range(len(places)))
    return cells if len(set(cells)) > 1 else cells[:1]


def _reads(layer: int, point: int, num_layers: int, points: int) -> bool:
    """Whether a layer's value depends on a point: whether its depth lies less than one point away from it."""
    return abs(layer * (points - 1) - point * (num_layers - 1)) < num_layers - 1


def _in_order(parts: Sequence[_Part]) -> Iterator[str]:
    """Yield each cell once: the first point of every part, the second of every part, …"""
    cells = [
        (step, index, cell)
        for index, part in enumerate(parts)
        for step, cell in enumerate(part.cells)
        if cell not in part.cells[:step]
    ]
    outside = {cell for part in parts if all(layer_of(name) is None for name in part.names) for cell in part.cells}
    for _, _, cell in sorted(cells, key=lambda entry: (entry[2] in outside, *entry[:2])):
        yield cell


def _join(*words: str) -> str:
    return ".".join(word for word in words if word)
