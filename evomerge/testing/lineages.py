"""Driving searchers of lineage spaces by hand: genomes that name earlier trials, told with each item's score."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from evomerge.search_spaces.genes import FloatGene, Gene, Genome, IntGene, Value
from evomerge.searchers import ItemSearcher
from evomerge.testing.searchers import Told

LINEAGE: tuple[Gene, ...] = (  # three parents, and the genes of every crossover and mutation that ships
    IntGene("first", -3, 10_000_000, -1),
    IntGene("second", -3, 10_000_000, -2),
    FloatGene("weight", 0.0, 1.0, 0.5),
    FloatGene("split", 0.0, 1.0, 1.0),
    FloatGene("first.weight", 0.0, 2.0, 1.0),
    FloatGene("second.weight", 0.0, 2.0, 1.0),
    FloatGene("mutation.scale", 0.0, 1.0, 0.0),
    IntGene("mutation.seed", 0, 2**31 - 1, 0),
)
ITEMS = 40

Evaluate = Callable[[int, Genome], dict[str, float] | None]


def items_of(objectives: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return scores of items, 0 or 1, about as many of them 1 as each objective says; which ones, its digits decide."""
    return {
        name: (np.random.default_rng(hash(value) % 2**32).random(ITEMS) < value).astype(np.float64)
        for name, value in objectives.items()
    }


def bred(searcher: ItemSearcher, evaluate: Evaluate, trials: int, in_flight: int = 1) -> list[Told]:
    """Run ``trials`` trials as an experiment does: at most ``in_flight`` open, results told in ask order.

    Args:
        searcher: of a lineage space.
        evaluate: (number of the trial, genome) → objectives, None for a trial that fails.
        trials: how many.
        in_flight: how many may be open.
    """
    told: list[Told] = []
    asked: deque[dict[str, Value]] = deque()
    while len(told) < trials:
        while len(asked) < in_flight and len(told) + len(asked) < trials:
            genome = searcher.ask()
            if genome is None:
                break
            for source in (genome["first"], genome["second"]):
                known = isinstance(source, int) and source < len(told)
                assert known, f"trial {source} is named as a source, which was not told"
                assert source < 0 or told[source].objectives is not None, f"trial {source} failed, and is named"
            asked.append(genome)
        assert asked, "ask() returned None although no trial is in flight"
        genome = asked.popleft()
        objectives = evaluate(len(told), genome)
        searcher.tell(genome, objectives, None, None if objectives is None else items_of(objectives))
        told.append(Told(genome, objectives))
    return told
