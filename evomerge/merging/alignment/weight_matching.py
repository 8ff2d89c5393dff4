"""Weight matching: the permutations of one model's neurons that bring its weights closest to another's.

Ainsworth, Hayase & Srinivasa 2023, "Git Re-Basin: Merging Models modulo Permutation Symmetries"
(https://arxiv.org/abs/2209.04836), Algorithm 1. The sum over all tensors of ⟨A, P(B)⟩, which is as large as ‖A − P(B)‖²
is small, is raised group by group: with all others held, the best order of one group is a linear assignment.

Three things go further than the paper, whose networks have neither heads nor experts. Numbers within a head (neurons
within an expert) have an order of their own for each head, so heads are compared by their best inner orders, found
first. Before the first sweep, groups are matched once on those tensors alone whose other groups are already matched,
starting from what is fixed (inputs, outputs, vocabulary): orders that are still random carry no information. And a
group that is on both sides of a matrix has no linear problem: it is solved as if the other side were held, and kept if
that is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from evomerge.merging.alignment.blocks import Array, Piece, Read, gram, permuted, pieces
from evomerge.merging.alignment.methods import SWEEPS
from evomerge.merging.alignment.specification import Specification
from evomerge.merging.alignment.transport import Movements, Order

_ROUNDS = 3  # of alternation between several groups within one head
_GAIN = 1e-12  # of the objective's own size; less is rounding

Pair = tuple[Piece, Array, Array]  # a piece, the target's numbers, the source's numbers in the source's order


@dataclass
class Matching:
    """What matching found.

    Attributes:
        orders: group → order.
        objectives: the sum of ⟨A, P(B)⟩ at the start, after the first matching, and after each step that changed an
            order; never falls.
    """

    orders: dict[str, Order]
    objectives: list[float] = field(default_factory=list)


def match(
    specification: Specification,
    target: Read,
    source: Read,
    *,
    seed: int = 0,
    sweeps: int = SWEEPS,
    held: Movements | None = None,
) -> Matching:
    """Return the orders of the source's neurons that make it most like the target.

    Deterministic in ``seed``, which decides the order in which groups are visited. float64 throughout.

    Args:
        specification: of both models.
        target: returns a tensor of the model whose order is taken, as float64.
        source: the same for the model that is permuted.
        sweeps: at most so many visits to each group.
        held: orders of groups that are not to be matched.
    """
    solver = _Solver(specification, target, source, held or {})
    roots = [root for root in specification.roots() if {root, *specification.children(root)} - set(held or {})]
    solver.start(roots)
    generator = np.random.default_rng(seed)
    stale = set(roots)
    for _ in range(sweeps):
        for index in generator.permutation(len(roots)):
            if roots[index] in stale and solver.visit(roots[index]):
                stale |= solver.neighbours(roots[index])
            stale.discard(roots[index])
        if not stale:
            break
    return Matching({name: solver.orders[name] for name in specification.groups}, solver.objectives)


class _Solver:
    """The orders found so far, and the steps that better them."""

    def __init__(self, specification: Specification, target: Read, source: Read, held: Movements) -> None:
        self.specification = specification
        self.orders: dict[str, Order] = {
            name: np.asarray(held[name]) if name in held else _identity(specification, name)
            for name in specification.groups
        }
        self.objectives: list[float] = []
        self._target, self._source = target, source
        self._pieces = pieces(specification)
        self._held = set(held)
        self._matched = set(held)

    def start(self, roots: Sequence[str]) -> None:
        """Match every group once on what is known before it, unless the orders given are better than that."""
        given, before = self.orders, self._value(self._pieces, self.orders)
        for root in self._informed_order(roots):
            self.visit(root, informed=True)
        after = self._value(self._pieces, self.orders)
        self.objectives = [before, after]
        if after <= before:
            self.orders, self.objectives = given, [before]

    def _informed_order(self, roots: Sequence[str]) -> list[str]:
        """Return the roots, next always the one with most pieces whose other groups come before it or are fixed."""
        left, placed, ordered = list(roots), set(self._held), list[str]()
        while left:
            best = max(left, key=lambda root: len(self._informed(root, placed)))
            left.remove(best)
            ordered.append(best)
            placed |= self._family(best)
        return ordered

    def neighbours(self, root: str) -> set[str]:
        """Return the roots that share a piece with this one."""
        names = set().union(*(piece.groups() for piece in self._of(root))) - self._family(root)
        return {self.specification.groups[name].within or name for name in names}

    def visit(self, root: str, *, informed: bool = False) -> bool:
        """Match one group and those within it, all others held; return whether that raised the objective.

        Args:
            informed: look only at pieces whose other groups are matched, and take the result as it is.
        """
        family = self._family(root)
        mine = self._informed(root, self._matched) if informed else self._of(root)
        found = self.orders | self._solve(root, mine)
        if informed:
            self.orders, self._matched = found, self._matched | family
            return True
        before, after = self._value(mine, self.orders), self._value(mine, found)
        if after - before <= _GAIN * max(abs(before), abs(after)):
            return False
        self.orders = found
        self.objectives.append(self.objectives[-1] + after - before)
        return True

    def _family(self, root: str) -> set[str]:
        return {root, *self.specification.children(root)}

    def _of(self, root: str) -> list[Piece]:
        family = self._family(root)
        return [piece for piece in self._pieces if piece.groups() & family]

    def _informed(self, root: str, matched: set[str]) -> list[Piece]:
        """Return the pieces that say something about a root while no other groups are matched than these."""
        known = matched | self._family(root)
        return [piece for piece in self._of(root) if piece.groups() <= known and piece.factors.count(root) <= 1]

    def _pairs(self, found: Sequence[Piece]) -> Iterator[Pair]:
        """Yield (piece, the target's numbers, the source's), one at a time: all of them may be larger than memory."""
        for piece in found:
            yield piece, piece.load(self.specification, self._target), piece.load(self.specification, self._source)

    def _value(self, found: Sequence[Piece], orders: Movements) -> float:
        """Return the sum of ⟨A, P(B)⟩ over some pieces."""
        pairs = self._pairs(found)
        return float(sum(np.vdot(one, permuted(self.specification, p, other, orders)) for p, one, other in pairs))

    def _solve(self, root: str, mine: Sequence[Piece]) -> dict[str, Order]:
        """Return the best orders of a root and its children for these pieces, of those that are not held."""
        children = [child for child in self.specification.children(root) if child not in self._held]
        if root in self._held:
            return self._within(root, children, mine)
        size = self.specification.groups[root].size
        gains, inner = np.zeros((size, size)), []
        for piece, one, other, place in self._ready(root, children, mine):
            if piece.groups() & set(children):
                inner.append((piece, one, other, place))
            else:
                gains += gram(one, other, place)
        if not inner:
            return {root: assign(gains)}
        orders = {child: np.zeros((size, size, self.specification.groups[child].size), np.int64) for child in children}
        for i in range(size):
            for j in range(size):
                gain, found = self._inner(
                    children, [_member((p.factors, a, b, place), i, j) for p, a, b, place in inner]
                )
                gains[i, j] += gain
                for child in children:
                    orders[child][i, j] = found[child]
        chosen = assign(gains)
        return {root: chosen} | {child: orders[child][np.arange(size), chosen] for child in children}

    def _ready(
        self, root: str, children: Sequence[str], mine: Sequence[Piece]
    ) -> Iterator[tuple[Piece, Array, Array, int]]:
        """Yield pieces, both models' numbers and each place of the root; all but root and children in order."""
        held = {name: order for name, order in self.orders.items() if name not in children}
        for piece, one, other in self._pairs(mine):
            for place, factor in enumerate(piece.factors):
                if factor == root:
                    yield piece, one, _permuted_but(self.specification, piece, other, held, place), place

    def _within(self, root: str, children: Sequence[str], mine: Sequence[Piece]) -> dict[str, Order]:
        """Return the best orders of children whose root is held."""
        held = {name: order for name, order in self.orders.items() if name not in children}
        ready = [
            (piece, one, permuted(self.specification, piece, other, held), piece.factors.index(root))
            for piece, one, other in self._pairs([piece for piece in mine if piece.groups() & set(children)])
        ]
        size = self.specification.groups[root].size
        found = [
            self._inner(children, [_member((p.factors, a, b, place), i, i) for p, a, b, place in ready])[1]
            for i in range(size)
        ]
        return {child: np.stack([orders[child] for orders in found]) for child in children}

    def _inner(self, children: Sequence[str], items: Sequence[_Inner]) -> tuple[float, dict[str, Order]]:
        """Return the largest inner product of one member of the target with one of the source, and the inner orders."""
        children = sorted(children, key=lambda child: self.specification.groups[child].size)
        orders = {child: np.arange(self.specification.groups[child].size) for child in children}
        if len(children) == 2 and not all(_clear(child, children, items) for child in children):
            orders[children[1]] = _first_guess(children[0], children[1], items)
        best = -np.inf
        for round_ in range(_ROUNDS if len(children) > 1 else 1):
            trial = dict(orders)
            for child in children:
                mine = [item for item in items if child in item[0]]
                clear = _clear(child, children, items) if round_ == 0 else []
                trial[child] = _best_inner(child, clear or mine, trial)
            value = float(sum(np.vdot(one, _reordered(factors, other, trial)) for factors, one, other in items))
            if value <= best:
                break
            best, orders = value, trial
        return best, orders


_Inner = tuple[tuple[str | int, ...], Array, Array]  # factors, the target's member, the source's member


def _member(item: tuple[tuple[str | int, ...], Array, Array, int], i: int, j: int) -> _Inner:
    """Return member i of the target and member j of the source of the factor at a place."""
    factors, one, other, place = item
    factors = (*factors[:place], *factors[place + 1 :])
    return factors, np.take(one, i, axis=place), np.take(other, j, axis=place)


def _clear(child: str, children: Sequence[str], items: Sequence[_Inner]) -> list[_Inner]:
    """Return the items in which a child is alone: they say something about it before the others are matched."""
    return [item for item in items if child in item[0] and not set(item[0]) & set(children) - {child}]


def _first_guess(outer: str, inner: str, items: Sequence[_Inner]) -> Order:
    """Return the order of ``inner`` that suits the best pair of members of ``outer``; for what occurs together only."""
    joint = [item for item in items if outer in item[0] and inner in item[0]]
    best, found = -np.inf, np.arange(joint[0][1].shape[joint[0][0].index(inner)])
    size = joint[0][1].shape[joint[0][0].index(outer)]
    for i in range(size):
        for j in range(size):
            pairs = [_member((factors, one, other, factors.index(outer)), i, j) for factors, one, other in joint]
            gains = np.asarray(sum(gram(one, other, factors.index(inner)) for factors, one, other in pairs))
            order = assign(gains)
            if (gain := gains[np.arange(len(order)), order].sum()) > best:
                best, found = gain, order
    return found


def _best_inner(child: str, items: Sequence[_Inner], orders: Mapping[str, Order]) -> Order:
    others = {name: order for name, order in orders.items() if name != child}
    if not items:
        return orders[child]
    gains = sum(gram(one, _reordered(factors, other, others), factors.index(child)) for factors, one, other in items)
    return assign(np.asarray(gains))


def _reordered(factors: Sequence[str | int], array: Array, orders: Movements) -> Array:
    for place, factor in enumerate(factors):
        if isinstance(order := orders.get(str(factor)), np.ndarray):
            array = np.take(array, order, axis=place)
    return array


def _permuted_but(spec: Specification, piece: Piece, array: Array, held: Movements, place: int) -> Array:
    """Return a piece in the target's order except along one factor."""
    fixed = spec.factor_size(piece.factors[place])
    return permuted(
        spec, replace(piece, factors=(*piece.factors[:place], fixed, *piece.factors[place + 1 :])), array, held
    )


def _identity(specification: Specification, name: str) -> Order:
    group = specification.groups[name]
    order = np.arange(group.size)
    return order if group.within is None else np.tile(order, (specification.groups[group.within].size, 1))


def assign(gains: Array) -> Order:
    """Return for each row the column that makes the sum of gains largest, (n, n) → (n,)."""
    return linear_sum_assignment(gains, maximize=True)[1].astype(np.int64)
