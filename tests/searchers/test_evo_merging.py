"""Evo-Merging's two stages: what each varies, when they change, and where they end on costs whose optimum is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.search_spaces.genes import FloatGene, Gene, Genome
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.testing.searchers import Told, drive

PARENTS = 4
GENES: tuple[Gene, ...] = tuple(
    gene
    for number in range(PARENTS)
    for gene in (
        FloatGene(f"p{number}.weight", -1.5, 1.5, 1 / PARENTS),
        FloatGene(f"p{number}.density", 0.0, 1.0, 1.0),
    )
)
LOSS = (ObjectiveSpec("loss", "minimize"),)
GAIN = (ObjectiveSpec("gain", "maximize"),)
WANTED = {"density": np.array([0.9, 0.2, 0.5, 0.7]), "weight": np.array([0.8, -0.6, 0.3, 0.0])}


def values(genome: Genome, word: str) -> np.ndarray:
    return np.array([genome[f"p{number}.{word}"] for number in range(PARENTS)], dtype=float)


def loss(genome: Genome) -> dict[str, float]:
    total = sum(float(np.sum((values(genome, word) - wanted) ** 2)) for word, wanted in WANTED.items())
    return {"loss": total, "gain": -total}


def run(
    trials: int,
    evaluate: Callable[[Genome], dict[str, float] | None] = loss,
    in_flight: int = 1,
    genes: tuple[Gene, ...] = GENES,
    objectives: tuple[ObjectiveSpec, ...] = LOSS,
    **options: float,
) -> list[Told]:
    searcher = build_searcher(read_searcher({"kind": "evo-merging", **options}), genes, objectives, trials)
    return drive(searcher, evaluate, trials, in_flight=in_flight)


def penalised(trial: Told, word: str, factor: float) -> float:
    assert trial.objectives is not None
    return trial.objectives["loss"] + factor * float(np.abs(values(trial.genome, word)).mean())


@pytest.mark.parametrize("in_flight", [1, 8])
def test_densities_come_first_and_weights_then_with_the_best_of_them(in_flight: int) -> None:
    trials = run(70, in_flight=in_flight, population=8, denoising=30, density_penalty=0.1)
    first, second = trials[:32], trials[32:]  # thirty, in whole generations
    assert all((values(trial.genome, "weight") == 1 / PARENTS).all() for trial in first)
    assert len({tuple(values(trial.genome, "density")) for trial in first}) == len(first)
    best = min(first, key=lambda trial: penalised(trial, "density", 0.1))
    assert all((values(trial.genome, "density") == values(best.genome, "density")).all() for trial in second)
    assert len({tuple(values(trial.genome, "weight")) for trial in second}) == len(second)


def test_the_numbers_in_flight_change_nothing() -> None:
    assert run(60, in_flight=1, population=6, denoising=12) == run(60, in_flight=11, population=6, denoising=12)


def test_the_first_steps_are_as_wide_as_the_authors() -> None:
    """0.05 in densities, which begin at 1 and stay below, and 0.05 in weights, which begin at 1/N."""
    trials = run(800, lambda genome: {"loss": 0.0}, population=400, denoising=400)
    densities = np.array([values(trial.genome, "density") for trial in trials[:400]])
    weights = np.array([values(trial.genome, "weight") for trial in trials[400:]])
    assert 0.7 < densities.min() < densities.mean() < 1
    assert weights.mean(0) == pytest.approx(1 / PARENTS, abs=0.01)
    assert weights.std(0) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("trials", [12, 30, 32])
def test_a_budget_that_ends_before_the_second_stage_is_refused(trials: int) -> None:
    with pytest.raises(ConfigError, match=rf"searcher.denoising.* all {trials} trials(.|\n)*above 32"):
        run(trials, population=8, denoising=30)
    assert len(run(33, population=8, denoising=30)) == 33
    weights = tuple(gene for gene in GENES if gene.name.endswith("weight"))
    assert len(run(trials, lambda genome: {"loss": 0.0}, genes=weights, population=8, denoising=30)) == trials


@pytest.mark.parametrize("objectives", [LOSS, GAIN])
def test_the_stages_end_where_the_penalised_costs_are_least(objectives: tuple[ObjectiveSpec, ...]) -> None:
    """Σ (x − a)² + λ mean |x| is least at a moved by λ / 2N towards zero, or at zero if it is nearer than that."""
    factor = 0.4
    options = {"density_penalty": factor, "weight_penalty": factor, "density_sigma0": 0.2, "weight_sigma0": 0.1}
    trials = run(1600, objectives=objectives, denoising=800, **options)
    for part, word in ((trials[:800], "density"), (trials[800:], "weight")):
        best = min(part, key=lambda trial: penalised(trial, word, factor))
        wanted = WANTED[word]
        expected = np.sign(wanted) * np.maximum(np.abs(wanted) - factor / (2 * PARENTS), 0)
        np.testing.assert_allclose(values(best.genome, word), expected, atol=2e-3)


def test_a_stage_without_genes_is_left_out() -> None:
    weights = tuple(gene for gene in GENES if gene.name.endswith("weight"))
    trials = run(40, lambda genome: {"loss": float(genome["p0.weight"])}, genes=weights, population=5, denoising=10)
    assert len({trial.genome["p0.weight"] for trial in trials}) == 40
    densities = tuple(gene for gene in GENES if gene.name.endswith("density"))
    trials = run(40, lambda genome: {"loss": float(genome["p0.density"])}, genes=densities, population=5, denoising=10)
    assert len({trial.genome["p0.density"] for trial in trials}) == 40


def test_failures_leave_the_densities_where_they_began() -> None:
    trials = run(30, lambda genome: None, population=5, denoising=10)
    assert all((values(trial.genome, "density") == 1).all() for trial in trials[10:])
