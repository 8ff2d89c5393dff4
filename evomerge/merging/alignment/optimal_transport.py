"""OT fusion: neurons of one model carried over to those of another by optimal transport, which may split them.

Singh & Jaggi 2020, "Model Fusion via Optimal Transport" (https://arxiv.org/abs/1910.05653), Algorithm 1. Both models'
neurons have uniform mass. Going through the groups from what is fixed (inputs, vocabulary), the cost of carrying
neuron j to neuron i is the squared distance between what is written to them ("wts": incoming weights, those of earlier
groups carried over already) or between their activations ("acts"). The plan is exact, or softened by an entropy
term.

Between equally many neurons the exact plan is a permutation. Where a parent is wider than the target the plan shares
its neurons out; what is read from a neuron is then summed where the paper averages it, so that a model whose neurons
were merely doubled (and their outgoing weights halved) is carried back to what it was.

Heads and experts, which have an inner order, are permuted: by `weight_matching`, after all else is carried over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye, kron, vstack
from scipy.special import logsumexp

from evomerge.errors import MergeError
from evomerge.merging.alignment.blocks import Array, Piece, pieces
from evomerge.merging.alignment.specification import Group, Specification
from evomerge.merging.alignment.transport import Movement, Movements, Sides, apply
from evomerge.merging.alignment.weight_matching import match

ITERATIONS = 10_000  # of Sinkhorn's algorithm, at most
_MARGINAL = 1e-9  # largest error of a marginal, in units of it, at which Sinkhorn stops
_COPIES = 4  # neurons may be split into so many for an assignment; a linear programme beyond


def fuse(
    target: Specification,
    source: Specification,
    weights: Sides,
    *,
    regularisation: float = 0.0,
    activations: Sequence[Mapping[str, Array]] = (),
) -> dict[str, Movement]:
    """Return for each group how the source's neurons are carried over to the target's.

    Args:
        target: specification of the model whose neurons stay.
        source: of the model that is carried over; groups without inner order may have other sizes.
        weights: both models' tensors.
        regularisation: weight of the entropy relative to the largest cost; 0 for the exact plan.
        activations: for the ground metric "acts", group → (samples, neurons) of the target and of the source.

    Raises:
        MergeError: groups with an inner order (heads, experts) differ in number.
    """
    _check_sizes(target, source)
    movements: dict[str, Movement] = {}
    plain = [root for root in target.roots() if not target.children(root)]
    while plain:
        found = {root: _informed(target, source, root, movements) for root in plain}
        root = max(plain, key=lambda name: len(found[name]))  # the first of equals
        plain.remove(root)
        if activations and root in activations[0]:
            cost = squared_distances(*(each[root].T for each in activations))
        else:
            cost = _cost(target, source, root, found[root], weights, movements)
        movements[root] = plan(cost, regularisation)
    if any(group.within for group in target.groups.values()):
        movements |= _match_the_rest(target, source, weights, movements)
    return movements


def plan(cost: Array, regularisation: float = 0.0) -> Movement:
    """Return the optimal transport between uniform measures, as an order or as rows that sum to one.

    Args:
        cost: (neurons of the target, neurons of the source).
        regularisation: weight of the entropy relative to the largest cost; 0 for the exact plan.
    """
    rows, columns = cost.shape
    if regularisation > 0:
        return torch.from_numpy(sinkhorn(cost, regularisation))
    if rows == columns:
        return linear_sum_assignment(cost)[1].astype(np.int64)
    return torch.from_numpy(exact(cost))


def exact(cost: Array) -> Array:
    """Return the exact plan between uniform measures of different sizes, (n, m) → (n, m), rows summing to one."""
    rows, columns = cost.shape
    common = rows * columns // gcd(rows, columns)
    if common <= _COPIES * max(rows, columns):  # split every neuron into equal parts and assign these
        split = np.kron(cost, np.ones((common // rows, common // columns)))
        found = np.zeros((rows, columns))
        ones, others = linear_sum_assignment(split)
        np.add.at(found, (ones // (common // rows), others // (common // columns)), rows / common)
        return found
    sums = [kron(eye(rows), np.ones((1, columns))), kron(np.ones((1, rows)), eye(columns))]
    totals = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    solved = linprog(cost.reshape(-1), A_eq=vstack(sums).tocsr(), b_eq=totals, method="highs")
    result: Array = np.asarray(solved.x).reshape(rows, columns)
    return result / result.sum(axis=1, keepdims=True)


def sinkhorn(cost: Array, regularisation: float) -> Array:
    """Return the plan with entropy (Cuturi 2013), (n, m) → (n, m), rows summing to one; computed with logarithms."""
    rows, columns = cost.shape
    kernel = -cost / (regularisation * max(float(np.abs(cost).max()), np.finfo(float).tiny))
    f, g = np.zeros((rows, 1)), np.zeros((1, columns))
    for _ in range(ITERATIONS):
        f = -np.log(rows) - logsumexp(kernel + g, axis=1, keepdims=True)
        g = -np.log(columns) - logsumexp(kernel + f, axis=0, keepdims=True)
        error = np.abs(np.exp(kernel + f + g).sum(axis=1) * rows - 1).max()
        if error < _MARGINAL:
            break
    found: Array = np.exp(kernel + f + g)
    return found / found.sum(axis=1, keepdims=True)


def squared_distances(one: Array, other: Array) -> Array:
    """Return ‖one_i − other_j‖² for all rows, (n, k), (m, k) → (n, m)."""
    squares: NDArray[np.float64] = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.maximum(squares, 0.0)


def _check_sizes(target: Specification, source: Specification) -> None:
    for name, group in target.groups.items():
        theirs = source.groups[name]
        if group.size != theirs.size and (group.within or target.children(name)):
            what = "heads or experts" if target.children(name) else "numbers of a head"
            raise MergeError(
                f"align: {name} has {group.size} {what} in one model and {theirs.size} in the other; "
                f"ot_fusion carries over other numbers of plain neurons only"
            )


def _mixed(target: Specification, source: Specification, done: Movements) -> Specification:
    """Return the source's specification with the groups that were carried over at their new size."""
    sizes = {name: (target if name in done else source).groups[name] for name in source.groups}
    return replace(source, groups=sizes)


def _informed(target: Specification, source: Specification, root: str, done: Movements) -> list[tuple[Piece, Piece]]:
    """Return the pieces (of the target, of the source) in which a group is written from what is carried over already.

    Where there are none, those in which it is read.
    """
    both = zip(pieces(target), pieces(_mixed(target, source, done)), strict=True)
    known = {root, *done}
    found = [pair for pair in both if pair[0].factors.count(root) == 1 and pair[0].groups() <= known]
    written = [pair for pair in found if not pair[0].reads[pair[0].factors.index(root)]]
    return written or found


def _cost(
    target: Specification,
    source: Specification,
    root: str,
    found: list[tuple[Piece, Piece]],
    weights: Sides,
    done: Movements,
) -> Array:
    mixed = _mixed(target, source, done)
    cost = np.zeros((target.groups[root].size, source.groups[root].size))
    for piece, theirs in found:
        place = piece.factors.index(root)
        one = piece.load(target, lambda name: _array(weights.target(name)))
        other = theirs.load(mixed, lambda name: _array(apply(source, name, done, weights.source)))
        rows = [np.moveaxis(array, place, 0).reshape(array.shape[place], -1) for array in (one, other)]
        cost += squared_distances(*rows)
    return cost


def _match_the_rest(
    target: Specification, source: Specification, weights: Sides, done: Movements
) -> dict[str, Movement]:
    """Return the orders of heads and experts, and of what lies within them."""
    found = match(
        without(target, set(done)),
        lambda name: _array(weights.target(name)),
        lambda name: _array(apply(source, name, done, weights.source)),
    )
    return dict(found.orders)


def without(specification: Specification, groups: set[str]) -> Specification:
    """Return the specification with some groups taken as fixed."""

    def fixed(factor: str | int) -> str | int:
        return specification.groups[factor].size if isinstance(factor, str) and factor in groups else factor

    tensors = {
        name: replace(
            axes,
            dimensions=tuple(
                tuple(tuple(map(fixed, segment)) for segment in dimension) for dimension in axes.dimensions
            ),
            at=tuple(entry for entry in axes.at if entry[0] not in groups),
        )
        for name, axes in specification.tensors.items()
    }
    kept: dict[str, Group] = {name: group for name, group in specification.groups.items() if name not in groups}
    return Specification(kept, {name: axes for name, axes in tensors.items() if axes.groups()})


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().to(torch.float64))
