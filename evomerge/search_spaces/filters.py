"""Filters: saying in a recipe that certain tensors get certain values.

A recipe picks tensors by substrings of their names; the first match in a list wins. `choose_filters` finds
short substrings (``self_attn``) that pick exactly the wanted tensors, and falls back on whole names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from evomerge.recipes import layer_of

FilterList: TypeAlias = tuple[tuple[str | None, int], ...]


def choose_filters(parts: Sequence[Sequence[str]]) -> FilterList:
    """Return (filter, index of a part) in the order in which a recipe must list them.

    Args:
        parts: disjoint sets of tensor names, none of them empty. The last filter is None: all that remain.
    """
    remaining = dict(enumerate(parts))
    listed: list[tuple[str | None, int]] = []
    while len(remaining) > 1:
        found = _first_expressible(remaining)
        if found is None:
            return _whole_names(parts)
        index, filters = found
        listed += [(text, index) for text in filters]
        del remaining[index]
    return (*listed, (None, next(iter(remaining))))


def _first_expressible(remaining: Mapping[int, Sequence[str]]) -> tuple[int, list[str]] | None:
    """Return the first part that substrings can tell from the other remaining parts, and those substrings."""
    for index, names in remaining.items():
        others = [name for other, theirs in remaining.items() if other != index for name in theirs]
        filters = _cover(names, others)
        if filters is not None:
            return index, filters
    return None


def _cover(names: Sequence[str], others: Sequence[str]) -> list[str] | None:
    filters: list[str] = []
    for name in sorted(names):
        if any(text in name for text in filters):
            continue
        for text in _candidates(name):
            if not any(text in other for other in others):
                filters.append(text)
                break
        else:
            return None
    return filters


def _candidates(name: str) -> Iterator[str]:
    """Yield substrings of a name, the shortest first: inside layers module names, outside the whole name."""
    if layer_of(name) is None:
        yield name
        return
    words = name.split(".")
    number = next(i for i, word in enumerate(words) if word.isdecimal())
    inside = words[number + 1 :]
    for count in range(1, len(inside) + 1):
        yield ".".join(inside[:count])
        yield "." + ".".join(inside[:count])


def _whole_names(parts: Sequence[Sequence[str]]) -> FilterList:
    """List every tensor by name, the longest first: no name contains one that is listed after it."""
    named = [(name, index) for index, names in enumerate(parts) for name in names]
    return tuple(sorted(named, key=lambda entry: (-len(entry[0]), entry[0])))
