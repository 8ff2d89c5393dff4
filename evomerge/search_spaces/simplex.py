"""Weights that are not negative and sum to one, as numbers between 0 and 1 that may vary freely.

Of what the parents before it leave, a parent with n parents behind it takes the part 1 − (1 − g)^(1/n), where g is
its gene, its *share*; the last parent takes what is left. P parents have P − 1 shares, and every point of the simplex
can be reached, its corners (one parent alone) included. The exponent makes the parents equals, whatever their order:

- shares drawn evenly from the unit cube are weights drawn evenly from the simplex (each part is Beta(1, n));
- at equal weights a step of a share moves the weights along a Helmert contrast, by (1 + 1/n)^(n + ½) / P. These
  directions are orthogonal and the lengths lie between e/P and 2.83/P, so a searcher that begins there with equal
  steps in all genes, such as CMA-ES, begins with equal steps in all directions of the simplex.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def weights_of(shares: Sequence[float]) -> list[float]:
    """Return the weights, one more than there are shares: none negative, their sum 1 but for rounding.

    Args:
        shares: of all parents but the last, each in [0, 1].
    """
    weights, rest = [], 1.0
    for behind, share in zip(range(len(shares), 0, -1), shares, strict=True):
        passed_on = (1.0 - share) ** (1 / behind)
        weights.append(rest * (1.0 - passed_on))
        rest *= passed_on
    return [*weights, rest]


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return shares with these weights, the inverse of `weights_of`; weights are divided by their sum.

    Where nothing is left to share, any share has the same weights; the even one is returned.

    Args:
        weights: none negative, not all zero.
    """
    rests = [sum(weights[number:]) for number in range(len(weights))]
    return [
        1.0 - (after / rest) ** (len(weights) - number) if rest > 0 else even_share(len(weights) - number)
        for number, (rest, after) in enumerate(pairwise(rests), start=1)
    ]


def even_share(behind: int) -> float:
    """Return the share of a parent that takes as much as each of the ``behind`` parents behind it."""
    return float(1.0 - (behind / (behind + 1)) ** behind)
