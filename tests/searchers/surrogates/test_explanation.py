"""What is said about surrogates: trust by the one-standard-error rule, a line each."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.searchers.surrogates.explanation import POOR, SurrogateFacts, described
from evomerge.searchers.surrogates.quadratic import fit

FACTS = SurrogateFacts("logit", 20, 6, 0.1, 0.02, 0.93, 0.8, 0.05, 0.031)


def facts_of(surrogate):
    return replace(FACTS, r2_left_out=surrogate.r2_left_out, r2_error=surrogate.r2_error)


@pytest.mark.parametrize(("r2", "error", "poor"), [(0.8, 0.2, False), (0.8, 0.31, True), (POOR - 0.01, 0.0, True)])
def test_trust_takes_a_standard_error_more_than_half(r2, error, poor):
    assert replace(FACTS, r2_left_out=r2, r2_error=error).is_poor is poor


def test_a_quadratic_is_trusted_and_a_sine_or_a_step_is_not():
    points = np.random.default_rng(0).random((40, 2))
    x, y = points.T
    draw = 0.02 * np.random.default_rng(1).normal(size=40)
    assert not facts_of(fit(points, (x - 0.3) ** 2 - x * y + draw)).is_poor
    assert not facts_of(fit(points, np.full(40, 0.7))).is_poor
    assert facts_of(fit(points, np.sin(20 * x) * np.sin(15 * y))).is_poor
    assert facts_of(fit(points, np.where((x > 0.5) ^ (np.floor(3 * y) == 1), 0.9, 0.1), "logit")).is_poor
    assert facts_of(fit(points, np.random.default_rng(2).random(40), "logit")).is_poor


def test_lines_say_how_good_surrogates_are_and_warn():
    poor = replace(FACTS, r2_left_out=0.1)
    good_line, poor_line = described({"math": FACTS, "code": poor})
    assert (
        good_line == "math: logit quadratic, R² 0.930; each evaluation predicted from the others: R² 0.800, error 0.031"
    )
    assert poor_line.startswith("code: logit quadratic")
    assert "a quadratic does not describe it" in poor_line
    assert "nsga2" in poor_line
