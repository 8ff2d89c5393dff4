"""Runs under faults end as if nothing had happened (`benchmarks/chaos.py` makes many more of them)."""

import random
from pathlib import Path

import pytest

from evomerge.testing.chaos import FAULTS, Scene, disturbed, undisturbed


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, int, float]:
    return undisturbed(Scene(tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_under_faults_ends_as_one_that_nothing_disturbs(
    seed: int, reference: tuple[object, int, float], tmp_path: Path
) -> None:
    """The disk is filled in the benchmark: it takes a file system of its own."""
    expected, fewest, _ = reference
    draw = random.Random(seed)
    names = [name for name in FAULTS if name != "disk full"]
    scene = Scene(tmp_path)
    disturbed(scene, draw.sample(names, 4), draw, fewest)
    assert scene.result() == expected, scene.notes
    assert fewest <= len(scene.evaluations()) <= fewest + scene.allowed, scene.notes
