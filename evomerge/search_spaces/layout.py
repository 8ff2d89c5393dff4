"""Where each value of a parameter goes: the tensors cut into parts, and each part's values over the layers.

Every parameter of a method is laid out alike. A part is a group's tensors inside the layers, or those outside; its
cells are named ``layer3.mlp``, ``block0.attention``, ``point1`` (of a smooth curve), ``outside.norm``, ``embedding``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.recipes import layer_of
from evomerge.search_spaces.filters import choose_filters

BLOCK = re.compile(r"^block: *([1-9]\d*)$")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Entry:
    """One filter of a parameter's list and the cells its value is made of: one, or a gradient's points.

    A point that no tensor is read from has the cell of its nearest neighbour that some tensor is read from.
    """

    filter: str | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The cells in order, and how a recipe says which tensor each of them governs."""

    cells: tuple[str, ...]
    entries: tuple[Entry, ...]


def lay_out(
    groups: dict[str, str] | None, tensor_names: Sequence[str], num_layers: int, granularity: str, smooth: int | None
) -> Layout:
    """Return the layout of one parameter.

    Args:
        groups: tensor name → group; None for one group that has no name.
        granularity: ``global``, ``layer`` or ``block: k``.
        smooth: number of points of a curve over the layers, instead of a value for each.
    """
    parts: list[list[str]] = []
    cells: list[tuple[str, ...]] = []
    for group in list(dict.fromkeys(groups.values())) if groups else [""]:
        names = [name for name in tensor_names if not groups or groups[name] == group]
        if granularity == "global":
            parts.append(names)
            cells.append((group,))
            continue
        inside = [name for name in names if layer_of(name) is not None]
        outside = [name for name in names if layer_of(name) is None]
        if inside:
            layers = {layer for name in inside if (layer := layer_of(name)) is not None}
            parts.append(inside)
            cells.append(_points(group, sorted(layers), num_layers, granularity, smooth))
        if outside:
            parts.append(outside)
            cells.append((_join(OUTSIDE if inside or not group else "", group),))
    order = sorted(range(len(parts)), key=lambda i: layer_of(parts[i][0]) is not None)
    listed = choose_filters([parts[i] for i in order])
    entries = tuple(Entry(text, cells[order[i]]) for text, i in listed)
    return Layout(_in_order(cells), entries)
