"""Published landscapes: which tasks a quadratic describes, which it is known not to, and where it finds the best."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.searchers.surrogates.quadratic import fit

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "map_landscapes.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="map_landscapes")


@pytest.fixture(scope="module")
def fitted(benchmark, published):
    """All landscapes by models and task, each with its surrogate."""
    found = benchmark["landscapes"](published)
    return {(each.models, each.task): (each, fit(each.points, each.accuracies, "logit")) for each in found}


def test_poor_surrogates_are_found_and_good_ones_are_not(benchmark, fitted):
    poor = {
        name
        for name, (landscape, surrogate) in fitted.items()
        if benchmark["facts_of"](surrogate, len(landscape.points)).is_poor
    }
    known = {(models, "rte") for models in ("GPT-2, task arithmetic", "GPT-2, TIES")}
    known.add(("Flan-T5, task arithmetic", "glue-stsb"))
    assert known <= poor
    assert len(poor - known) <= 1
    assert len(fitted) == 8 + 8 + 9 + 9 + 9


@pytest.mark.parametrize(
    ("models", "task", "best"),
    [
        ("GPT-2, task arithmetic", "Avg.", 0.5),
        ("GPT-2, TIES", "Avg.", 0.6),
        ("Flan-T5, task arithmetic", "Average", 0.2),
    ],
)
def test_the_best_coefficient_on_average_is_found(benchmark, fitted, models, task, best):
    predicted, of_table = benchmark["best_coefficients"](*fitted[models, task])
    assert of_table == best
    assert predicted == pytest.approx(best, abs=0.1)


def test_the_surrogate_beats_the_mean_of_the_others_on_every_task_of_adamerging(fitted):
    shares = [
        surrogate.r2_left_out for (models, _), (_, surrogate) in fitted.items() if models.startswith("AdaMerging")
    ]
    assert len(shares) == 18
    assert min(shares) > 0.97


def test_left_out_errors_are_those_of_refits(fitted):
    landscape, surrogate = fitted["GPT-2, TIES", "mnli"]
    rows = range(len(landscape.points))
    others = [(np.delete(landscape.points, row, 0), np.delete(landscape.accuracies, row)) for row in rows]
    refits = [
        fit(*rest, "logit", ridge=surrogate.ridge)(landscape.points[[row]])[0]
        for row, rest in zip(rows, others, strict=True)
    ]
    expected = np.sqrt(np.square(refits - landscape.accuracies).mean())
    assert surrogate.error_left_out == pytest.approx(expected, rel=0.1)


def test_it_prints_a_line_for_each_task(benchmark, published, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["map_landscapes.py", str(published)])
    benchmark["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 43
    [rte] = [line for line in lines if line.startswith("GPT-2, TIES") and " rte " in line]
    assert rte.endswith("poor")
