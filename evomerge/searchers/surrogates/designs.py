"""Where to evaluate first: designs in the unit box, as many points as asked for, one after the other.

A design is a sequence whose beginning does not depend on how much of it is used.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy.stats import qmc

from evomerge.searchers.surrogates.links import Array

DesignName: TypeAlias = Literal["mixed", "sobol", "latin-hypercube"]
DESIGN_NAMES: tuple[DesignName, ...] = get_args(DesignName)

_DISTURBANCE = 0.1  # of the points near isotropic and one-hot ones, as in MAP's code


def design(name: DesignName, count: int, dimensions: int, seed: int) -> Array:
    """Return points (count, dimensions) of the unit box, float64.

    Args:
        name: ``mixed`` is MAP's: the corners of one coefficient each, a quarter isotropic points (all coefficients
            equal), a quarter near these and near the corners, and the rest spread evenly; ``sobol`` a scrambled Sobol
            sequence; ``latin-hypercube`` one point in each of ``count`` slices of every coordinate.
        count: of points.
        dimensions: of the box.
        seed: of the randomness in all three.
    """
    draw = np.random.default_rng(seed)
    if name == "sobol" and dimensions <= qmc.Sobol.MAXDIM:
        return qmc.Sobol(dimensions, seed=draw).random_base2(math.ceil(math.log2(max(count, 2))))[:count]
    if name == "mixed":
        return _mixed(count, dimensions, draw)
    return np.asarray(qmc.LatinHypercube(dimensions, seed=draw).random(count))


def _mixed(count: int, dimensions: int, draw: np.random.Generator) -> Array:
    one_hot = np.eye(dimensions)[:count]
    rest = count - len(one_hot)
    isotropic = np.repeat(qmc.LatinHypercube(1, seed=draw).random(rest // 4), dimensions, axis=1)
    known = np.concatenate([one_hot, isotropic])
    near = known[draw.integers(len(known), size=rest // 4)]
    near = np.clip(near + draw.normal(0, _DISTURBANCE, near.shape), 0, 1)
    spread = qmc.LatinHypercube(dimensions, seed=draw).random(rest - len(isotropic) - len(near))
    return np.concatenate([one_hot, isotropic, near, spread])
