"""Genes as coordinates of the unit box, so that a step means the same for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, Value


class UnitBox:
    """The map between genomes and points of [0, 1]ⁿ.

    A float gene is scaled from its bounds. An integer or choice gene divides its coordinate into equal cells,
    one a value (choices in their written order). A gene with a single possible value has no coordinate.

    Attributes:
        dimensions: n, the number of coordinates.
        cells: ``(n,)`` int64 array: values of each coordinate's gene, 0 for a float gene.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        counts = {gene.name: _cells(gene) for gene in genes}
        self._free = tuple(gene for gene in genes if counts[gene.name] != 1)
        self._names = tuple(gene.name for gene in self._free)
        self.cells = np.array([counts[gene.name] for gene in self._free], dtype=np.int64)
        self.dimensions = len(self._free)
        ends = [(gene.low, gene.high) if isinstance(gene, FloatGene) else (0.0, 0.0) for gene in self._free]
        self._low, self._high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
        self._discrete = [(n, gene) for n, gene in enumerate(self._free) if not isinstance(gene, FloatGene)]
        self._lowest = {gene.name: _value(gene, 0.0) for gene in genes}

    def genome(self, point: NDArray[np.float64]) -> dict[str, Value]:
        """Return the genome at ``point``, a float64 array ``(n,)``; coordinates are clipped to [0, 1]."""
        clipped = np.clip(point, 0.0, 1.0)
        # Rounding may leave the interval by one unit in the last place.
        scaled = np.clip(self._low + clipped * (self._high - self._low), self._low, self._high)
        values: list[Value] = scaled.tolist()
        for number, gene in self._discrete:
            values[number] = _value(gene, float(clipped[number]))
        return self._lowest | dict(zip(self._names, values, strict=True))

    def point(self, genome: Genome) -> NDArray[np.float64]:
        """Return a point ``(n,)`` float64 whose genome is ``genome``; of a cell, the middle."""
        return np.array([_coordinate(gene, genome[gene.name]) for gene in self._free], dtype=np.float64)


def _cells(gene: Gene) -> int:
    """Return how many values a gene has; 0 for a continuum."""
    if isinstance(gene, FloatGene):
        return 1 if gene.low == gene.high else 0
    return len(gene.choices) if isinstance(gene, ChoiceGene) else gene.high - gene.low + 1


def _value(gene: Gene, coordinate: float) -> Value:
    if isinstance(gene, FloatGene):
        return float(gene.low + coordinate * (gene.high - gene.low))
    cell = min(int(coordinate * _cells(gene)), _cells(gene) - 1)
    return gene.choices[cell] if isinstance(gene, ChoiceGene) else gene.low + cell


def _coordinate(gene: Gene, value: Value) -> float:
    if isinstance(gene, FloatGene):
        return (float(value) - gene.low) / (gene.high - gene.low)
    cell = gene.choices.index(str(value)) if isinstance(gene, ChoiceGene) else int(value) - gene.low
    return (cell + 0.5) / _cells(gene)
