"""Scales of a path: what the hidden states are multiplied by on entering each of its layers.

Three ways to have them searched. All genes start at a scale of 1, at which layers are what they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from evomerge.search_spaces.genes import FloatGene, Genome

# Nearer to 0 a scale would erase what the layers before have computed, and dividing by it would overflow.
SMALLEST_SCALE = 1e-3
WEIGHT_BOUND = 1.0


class Place(NamedTuple):
    """A layer where the hidden states may or must pass; ``name`` begins the names of its genes."""

    name: str
    nickname: str
    layer: int


class Scales(Protocol):
    """One way of searching the scales."""

    @property
    def genes(self) -> tuple[FloatGene, ...]:
        """The genes, in a fixed order."""

    def along(self, path: Sequence[Place], genome: Genome) -> list[float]:
        """Return the scale of each step of a path: in the bounds, and never 0."""


class NoScales:
    """Every scale is 1."""

    genes: tuple[FloatGene, ...] = ()

    def along(self, path: Sequence[Place], genome: Genome) -> list[float]:
        """Return ones."""
        return [1.0] * len(path)


class StepScales:
    """A gene for each place. It does nothing while the path leaves the place out."""

    def __init__(self, places: Sequence[Place], bounds: tuple[float, float]) -> None:
        self._bounds = bounds
        self.genes = tuple(FloatGene(f"{place.name}.scale", *bounds, 1.0) for place in places)

    def along(self, path: Sequence[Place], genome: Genome) -> list[float]:
        """Return the genes of the places passed."""
        return [_allowed(float(genome[f"{place.name}.scale"]), self._bounds) for place in path]


class NetworkScales:
    """A feed-forward network of one hidden layer whose weights are the genes: πθ(i, j, t) of Akiba et al. 2025.

    Where the path goes from layer i to layer j in step t, its output is the scale. Inputs are brought to [-1, 1], the
    output from all real numbers into the bounds, 0 to 1. The first step has no layer before it; its scale is 1.

    Args:
        layers: (nickname, layer) of every layer of all parents, in laid order.
        steps: the most steps that a path may have.
        hidden: number of hidden units.
        bounds: smallest and largest scale.
    """

    def __init__(self, layers: Sequence[tuple[str, int]], steps: int, hidden: int, bounds: tuple[float, float]) -> None:
        self._bounds = bounds
        self._inputs = {layer: _spread(index, len(layers)) for index, layer in enumerate(layers)}
        self._steps = steps
        words = ("from", "to", "step", "bias", "out")
        self._hidden = [[f"network.hidden{unit}.{word}" for word in words] for unit in range(hidden)]
        names = [*(name for unit in self._hidden for name in unit), "network.bias"]
        self.genes = tuple(FloatGene(name, -WEIGHT_BOUND, WEIGHT_BOUND, 0.0) for name in names)

    def along(self, path: Sequence[Place], genome: Genome) -> list[float]:
        """Return the network's output for each pair of successive layers, after 1 for the first step."""
        units = [[float(genome[name]) for name in unit] for unit in self._hidden]
        bias = float(genome["network.bias"])
        inputs = [self._inputs[place.nickname, place.layer] for place in path]
        scales = [1.0]
        for step, (i, j) in enumerate(pairwise(inputs), 1):
            t = _spread(step, self._steps)
            output = bias + sum(v * math.tanh(a * i + b * j + c * t + d) for a, b, c, d, v in units)
            scales.append(self._scale(output))
        return scales

    def _scale(self, output: float) -> float:
        low, high = self._bounds
        share = math.tanh(output)
        scale = 1 + share * (high - 1 if share > 0 else 1 - low)
        return _allowed(min(max(scale, low), high), self._bounds)


def _spread(index: int, count: int) -> float:
    """Bring a number from 0 to ``count`` - 1 to [-1, 1]; a lone one to 0."""
    return 2 * index / (count - 1) - 1 if count > 1 else 0.0


def _allowed(scale: float, bounds: tuple[float, float]) -> float:
    """Move a scale that is nearly 0 away from it, to its own side where the bounds reach that far."""
    if abs(scale) >= SMALLEST_SCALE:
        return scale
    return -SMALLEST_SCALE if scale < 0 and bounds[0] <= -SMALLEST_SCALE else SMALLEST_SCALE
