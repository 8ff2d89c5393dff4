"""Random and quasi-random search: how evenly they cover the space."""

import numpy as np
import pytest
from scipy.stats import qmc

from evomerge.errors import ConfigError
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.testing.searchers import drive

SCORE = (ObjectiveSpec("score", "maximize"),)
CUBE = tuple(FloatGene(f"x{i}", 0.0, 1.0, 0.5) for i in range(4))


def genomes(kind, genes, trials, seed=0):
    searcher = build_searcher(read_searcher({"kind": kind, "seed": seed}), genes, SCORE, trials)
    return [trial.genome for trial in drive(searcher, lambda genome: {"score": 0.0}, trials)]


def points(kind, seed, trials=128):
    return np.array([list(genome.values()) for genome in genomes(kind, CUBE, trials, seed)])


def test_qmc_covers_the_space_more_evenly_than_random():
    even = [qmc.discrepancy(points("qmc", seed)) for seed in range(5)]
    uneven = [qmc.discrepancy(points("random", seed)) for seed in range(5)]
    assert max(even) < 0.3 * min(uneven)


def test_qmc_is_scipys_sobol_sequence():
    sequence = qmc.Sobol(4, scramble=True, seed=np.random.default_rng(7)).random(128)
    np.testing.assert_array_equal(points("qmc", 7), sequence)


def test_qmc_takes_every_integer_and_choice_equally_often():
    genes = (IntGene("layers", 1, 4, 1), ChoiceGene("method", ("linear", "ties"), "ties"))
    found = genomes("qmc", genes, 64)
    for layers in (1, 2, 3, 4):
        for method in ("linear", "ties"):
            assert found.count({"layers": layers, "method": method}) == 8


def test_random_points_are_independent_of_the_results():
    searcher = build_searcher(read_searcher("random"), CUBE, SCORE, 20)
    failing = [trial.genome for trial in drive(searcher, lambda genome: None, 20)]
    assert failing == genomes("random", CUBE, 20)


def test_more_genes_than_sobol_sequences_have_are_refused():
    genes = tuple(FloatGene(f"x{i}", 0.0, 1.0, 0.5) for i in range(qmc.Sobol.MAXDIM + 1))
    with pytest.raises(ConfigError, match=r"Sobol sequences exist up to 21201 genes \(found 21202\)"):
        build_searcher(read_searcher("qmc"), genes, SCORE, 10)
