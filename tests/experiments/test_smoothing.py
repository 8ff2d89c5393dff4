"""Smoothing: against kriging by hand, and by what it takes off errors."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.experiments.smoothing import FEWEST, Noisy, Smoother
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Genome

GENES = (FloatGene("x", 0.0, 2.0, 1.0), FloatGene("y", 0.0, 1.0, 0.5), ChoiceGene("idle", ("a",), "a"))


def genomes(count: int, seed: int = 0) -> list[Genome]:
    draw = np.random.default_rng(seed)
    return [{"x": float(2 * a), "y": float(b), "idle": "a"} for a, b in draw.random((count, 2))]


def landscape(genome: Genome) -> float:
    x, y = float(genome["x"]) / 2, float(genome["y"])
    return float(0.8 - 0.6 * (x - 0.7) ** 2 - 0.4 * (y - 0.3) ** 2 - 0.3 * x * y)


def told(count: int, error: float = 0.1) -> Smoother:
    smoother, draw = Smoother(GENES), np.random.default_rng(1)
    for genome in genomes(count):
        smoother.tell(Noisy(genome, landscape(genome) + error * draw.normal(), error))
    return smoother


def test_it_is_kriging_with_known_noise() -> None:
    """By the textbook's formula, with the kernel that was fitted."""
    smoother, new = told(FEWEST), genomes(5, seed=9)
    found = smoother.smoothed(new)
    assert found is not None
    ((share, kernel),) = smoother._kernels.values()
    points = np.array([[float(g["x"]) / 2, float(g["y"])] for g in genomes(FEWEST)])
    at = np.array([[float(g["x"]) / 2, float(g["y"])] for g in new])
    values = np.array(smoother._values)
    centre, scale = values.mean(), values.std()
    signal, nugget = kernel.k1, kernel.k2.noise_level
    covariance = signal(points) + (nugget + share * (0.1 / scale) ** 2) * np.eye(FEWEST)
    towards = signal(at, points)
    mean = centre + scale * towards @ np.linalg.solve(covariance, (values - centre) / scale)
    variance = nugget + np.diag(signal(at)) - np.einsum("ij,ji->i", towards, np.linalg.solve(covariance, towards.T))
    assert [value for value, _ in found] == pytest.approx(np.clip(mean, 0, 1), abs=1e-8)
    assert [error for _, error in found] == pytest.approx(scale * np.sqrt(np.maximum(variance, 0)), abs=1e-6)


def test_it_takes_most_of_the_noise_off_and_says_what_is_left() -> None:
    smoother, known = told(150), genomes(150)
    found = smoother.smoothed(known)
    assert found is not None
    errors = np.array([value - landscape(g) for (value, _), g in zip(found, known, strict=True)])
    assert np.sqrt(np.mean(errors**2)) < 0.04
    assert (np.abs(errors) < 1.96 * np.array([error for _, error in found])).mean() > 0.85


def test_it_waits_until_there_is_something_to_learn_from() -> None:
    assert told(FEWEST - 1).smoothed(genomes(1)) is None
    assert told(FEWEST).smoothed(genomes(1)) is not None


def test_when_it_is_asked_changes_nothing() -> None:
    often, seldom = Smoother(GENES), Smoother(GENES)
    for genome in genomes(60):
        for smoother in (often, seldom):
            smoother.tell(Noisy(genome, landscape(genome), 0.05))
        often.smoothed([genome])
    assert often.smoothed(genomes(8, seed=5)) == seldom.smoothed(genomes(8, seed=5))


def test_an_estimate_taken_into_account_once_is_forgotten() -> None:
    smoother, (genome,) = told(30), genomes(1, seed=4)
    before = smoother.smoothed([genome])
    other = smoother.smoothed([genome], Noisy(genome, 0.0, 0.001))
    assert before is not None
    assert other is not None
    assert abs(other[0][0] - before[0][0]) > 0.05
    assert smoother.smoothed([genome]) == before


def test_scores_stay_scores() -> None:
    smoother = Smoother(GENES)
    for genome in genomes(40):
        smoother.tell(Noisy(genome, float(genome["x"]) / 2, 0.01))
    found = smoother.smoothed([{"x": 2.0, "y": 5.0, "idle": "a"}, {"x": 0.0, "y": 0.5, "idle": "a"}])
    assert found is not None
    assert all(0 <= value <= 1 for value, _ in found)
