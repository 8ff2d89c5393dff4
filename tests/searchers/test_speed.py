"""Asking and telling costs far less than an evaluation, also for many genes, and so does a replay."""

import time

import pytest

from evomerge.search_spaces.genes import FloatGene
from evomerge.searchers import build_searcher, read_searcher
from evomerge.testing.searchers import OBJECTIVES, drive

GENES = tuple(FloatGene(f"parent.weight.layer{i}", -0.5, 1.5, 0.5) for i in range(192))


@pytest.mark.parametrize("kind", ["cma-es", "nsga2", "qmc", "random"])
def test_a_trial_of_192_genes_is_proposed_in_well_under_50_milliseconds(kind):
    searcher = build_searcher(read_searcher(kind), GENES, OBJECTIVES, 1000)
    start = time.process_time()
    drive(searcher, lambda genome: {"near": genome[GENES[0].name], "cost": genome[GENES[1].name]}, 200)
    assert (time.process_time() - start) / 200 < 0.05
