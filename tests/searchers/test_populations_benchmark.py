"""What `benchmarks/populations.py` measures a search by, held against moocore and against counting by hand."""

import runpy
import sys
from pathlib import Path

import moocore
import numpy as np
import pytest

from evomerge.searchers import ObjectiveSpec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OBJECTIVES = tuple(ObjectiveSpec(name, "maximize", 1.0) for name in ("a", "b", "c"))
LOW, HIGH = 0.2, 0.9


@pytest.fixture(scope="module")
def benchmark():
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "populations.py"), run_name="populations")
    finally:
        sys.path[:] = before
        for name in ("searchers", "zoo_grid"):
            sys.modules.pop(name, None)


@pytest.fixture
def yardstick(benchmark):
    corner = {o.name: 0.3 for o in OBJECTIVES}
    grid = {o.name: benchmark["AxisConfig"](low=LOW, high=HIGH, bins=benchmark["BINS"]) for o in OBJECTIVES}
    return benchmark["Yardstick"](OBJECTIVES, {"search": corner, "confirmation": corner}, grid)


def named(rows):
    return [dict(zip("abc", row, strict=True)) for row in np.asarray(rows).tolist()]


def kept(trials, unseen, predicted=()):
    """Return a search as the benchmark keeps it; the first models are its front."""
    front = list(range(len(unseen)))
    return {"trials": named(trials), "front": front, "unseen": named(unseen), "predicted": named(predicted)}


def volume(points):
    above = points[(points > 0.3).all(axis=1)]
    return moocore.hypervolume(above, ref=np.full(3, 0.3), maximise=True)


def test_a_search_is_measured_by_its_scores_alone(yardstick):
    generator = np.random.default_rng(0)
    trials, unseen, predicted = (generator.uniform(0.2, 0.9, (count, 3)) for count in (60, 9, 4))
    found = yardstick.measured(kept(trials, unseen, predicted))
    assert found.front == pytest.approx(volume(trials), abs=1e-12)
    assert found.unseen_front == pytest.approx(volume(np.concatenate([unseen, predicted])), abs=1e-12)
    assert found.unseen_best == pytest.approx(unseen[trials[:9].mean(axis=1).argmax()].mean())
    assert found.size == 13


def test_niches_are_counted_and_their_best_summed(yardstick):
    step = (HIGH - LOW) / 10
    cells = np.array([(0, 0, 0), (3, 1, 9), (9, 9, 9)])
    middles = LOW + (cells + 0.5) * step
    better, beyond = middles[1] + 0.4 * step, [1.0, 1.0, 0.95]
    found = yardstick.measured(kept([*middles, better, beyond], middles[:1]))
    assert found.niches == 3
    assert found.qd_score == pytest.approx(middles[0].sum() + better.sum() + 2.95)
