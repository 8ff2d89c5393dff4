"""What the dimensions of a model's tensors are made of, found out while the model runs.

A dimension ("axis") starts as one unknown, an `Atom`. What is done to tensors then tells more: adding two tensors
makes their axes one, a reshape shows that an axis is a product of two (heads × numbers of a head), a slice that it is
a sum of two (queries, keys and values side by side). An atom that stays whole, and whose order no operation has
looked at, is a set of neurons that may be permuted.

Everything here errs on the safe side: whatever cannot be told makes atoms ``fixed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias


class Atom:
    """An unknown part of an axis, of a known size.

    Attributes:
        size: number of positions.
        fixed: their order means something; they cannot be permuted.
        factors: the axis that this atom turned out to be, outermost factor first; None while it is whole.
        parts: the axes that lie in it one after the other; None while it is whole.
    """

    __slots__ = ("factors", "fixed", "parts", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed
        self.factors: tuple[Atom, ...] | None = None
        self.parts: tuple[Axis, ...] | None = None


Axis: TypeAlias = tuple[Atom, ...]  # a product, outermost first; () is an axis of size 1


def new_axis(size: int, fixed: bool = False) -> Axis:
    """Return an axis of which nothing is known."""
    return () if size == 1 else (Atom(size, fixed),)


def size_of(axis: Axis) -> int:
    """Return the number of positions."""
    return prod(atom.size for atom in axis)


def resolve(axis: Axis) -> Axis:
    """Return the axis in terms of atoms that are no products."""
    found: list[Atom] = []
    for atom in axis:
        found += [atom] if atom.factors is None else resolve(atom.factors)
    return tuple(found)


def fix(axis: Axis) -> None:
    """Forbid permutations of everything in the axis."""
    for atom in resolve(axis):
        atom.fixed = True
        for part in atom.parts or ():
            fix(part)


def unify(first: Axis, second: Axis) -> None:
    """Make two axes of one size the same."""
    while (first := resolve(first)) and (second := resolve(second)):
        a, b = first[0], second[0]
        if a.size != b.size:
            big, size = (a, b.size) if a.size > b.size else (b, a.size)
            if not _factor(big, size):
                fix(first)
                fix(second)
                return
            continue
        if a is not b:
            _unify_atoms(a, b)
        first, second = first[1:], second[1:]


def _unify_atoms(a: Atom, b: Atom) -> None:
    if a.parts is None:
        a, b = b, a
    # Now b is whole, or both are sums.
    if b.parts is not None and a.parts is not None:
        _unify_parts(a, b)
    elif b.fixed:
        fix((a,))
    b.factors = (a,)


def _unify_parts(a: Atom, b: Atom) -> None:
    """Make two sums of one size the same, cut at all places where either is."""
    cuts = sorted({*_ends(a), *_ends(b)})
    if not (_cut_at(a, cuts) and _cut_at(b, cuts)):
        fix((a,))
        fix((b,))
        return
    for one, other in zip(a.parts or (), b.parts or (), strict=True):
        unify(one, other)


def _ends(atom: Atom) -> list[int]:
    ends, end = [], 0
    for part in atom.parts or ():
        end += size_of(part)
        ends.append(end)
    return ends


def _cut_at(atom: Atom, cuts: Sequence[int]) -> bool:
    """Cut a sum's parts until each ends at one of ``cuts``; return whether that could be done."""
    for cut in cuts:
        start, parts = 0, []
        for part in atom.parts or ():
            inside = cut - start
            start += size_of(part)
            if not 0 < inside < size_of(part):
                parts.append(part)
                continue
            pieces = cut_axis(part, inside)
            if pieces is None:
                return False
            parts += pieces
        atom.parts = tuple(parts)
    return True


def concatenate(axes: Sequence[Axis]) -> Axis:
    """Return the axis in which these lie one after the other."""
    if len(axes) == 1:
        return axes[0]
    parts: list[Axis] = []
    for axis in axes:
        whole = resolve(axis)
        nested = whole[0].parts if len(whole) == 1 else None
        parts += nested or (axis or (Atom(1, fixed=True),),)
    atom = Atom(sum(map(size_of, parts)))
    atom.parts = tuple(parts)
    return (atom,)


def cut_axis(axis: Axis, at: int) -> tuple[Axis, Axis] | None:
    """Return the axis before and after position ``at``; None, and everything fixed, if it does not come apart there."""
    axis = resolve(axis)
    outer, inner = axis[0], axis[1:]
    if at % size_of(inner):
        fix(axis)
        return None
    place = at // size_of(inner)
    if outer.parts is None:
        outer.parts = tuple((Atom(size, outer.fixed),) for size in (place, outer.size - place))
    if place not in _ends(outer) and not _cut_at(outer, [place]):
        fix(axis)
        return None
    parts = outer.parts
    count = _ends(outer).index(place) + 1
    return (*concatenate(parts[:count]), *inner), (*concatenate(parts[count:]), *inner)


def _factor(atom: Atom, outer: int) -> bool:
    """Take an atom apart into ``outer`` × the rest; return whether that could be done."""
    if atom.size % outer:
        return False
    inner = atom.size // outer
    if atom.parts is None:
        atom.factors = (Atom(outer, atom.fixed), Atom(inner, atom.fixed))
        return True
    split = [_split(part, inner) for part in atom.parts]
    pairs = [pair for pair in split if pair is not None]
    if len(pairs) < len(split):
        return False
    for _, rest in pairs[1:]:
        unify(pairs[0][1], rest)
    atom.factors = (*concatenate([first for first, _ in pairs]), *pairs[0][1])
    return True


def _split(axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
    """Return the axis as (outer, inner of this size), None if it is no such product."""
    if size_of(axis) % inner:
        return None
    taken: Axis = ()
    rest = resolve(axis)
    while size_of(taken) < inner:
        needed, last = inner // size_of(taken), rest[-1]
        if inner % size_of(taken):
            return None
        if last.size > needed:
            if last.size % needed or not _factor(last, last.size // needed):
                return None
            rest = resolve(rest)
            continue
        taken, rest = (last, *taken), rest[:-1]
    return (rest, taken) if size_of(taken) == inner else None


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Return the axes of a tensor that is viewed with another shape."""
    rest = resolve(tuple(atom for axis in axes for atom in axis))
    made: list[Axis] = []
    for size in shape:
        taken: Axis = ()
        while size_of(taken) < size:
            needed, first = size // size_of(taken), rest[0]
            if size % size_of(taken) or (first.size > needed and not _factor(first, needed)):
                for axis in axes:
                    fix(axis)
                return [new_axis(size, fixed=True) for size in shape]
            rest = resolve(rest)
            if first.size > needed:
                continue
            taken, rest = (*taken, rest[0]), rest[1:]
        made.append(taken)
    return made
