"""Dominance and non-dominated sorting, against pymoo and Optuna."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna.study._multi_objective import _fast_non_domination_rank
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from evomerge.errors import ConfigError
from evomerge.fronts import nondominated, ranks

# Few values, so that ties and equal rows are common.
SETS = st.tuples(st.integers(1, 25), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)


@settings(deadline=None)
@given(SETS)
def test_the_front_is_what_the_definition_says(gains: np.ndarray) -> None:
    worse = [any((other >= row).all() and (other > row).any() for other in gains) for row in gains]
    assert nondominated(gains).tolist() == [not dominated for dominated in worse]


@settings(deadline=None)
@given(SETS)
def test_ranks_are_pymoos_and_optunas(gains: np.ndarray) -> None:
    theirs = np.empty(len(gains), dtype=int)
    for rank, rows in enumerate(NonDominatedSorting().do(-gains)):
        theirs[rows] = rank
    np.testing.assert_array_equal(ranks(gains), theirs)
    np.testing.assert_array_equal(ranks(gains), _fast_non_domination_rank(-gains))
    np.testing.assert_array_equal(ranks(gains) == 0, nondominated(gains))


@pytest.mark.parametrize("objectives", range(1, 6))
def test_ranks_of_many_rows(objectives: int) -> None:
    gains = np.random.default_rng(objectives).random((400, objectives))
    np.testing.assert_array_equal(ranks(gains), _fast_non_domination_rank(-gains))


def test_nothing_has_no_front() -> None:
    assert nondominated(np.empty((0, 2))).tolist() == []
    assert ranks(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("measure", [nondominated, ranks])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(measure, value: float) -> None:
    gains = np.zeros((4, 3))
    gains[2, 1] = value
    with pytest.raises(ConfigError, match=rf"objective 1 of row 2 is {value}"):
        measure(gains)


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 1, 1)])
def test_what_is_no_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must be an array"):
        nondominated(np.zeros(shape))
