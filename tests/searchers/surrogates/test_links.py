"""Links are monotone maps with true slopes and inverses, and are chosen by what the values can be."""

import numpy as np
import pytest

from evomerge.searchers.surrogates.links import LINK_NAMES, LINKS, suited

LINE = np.linspace(-25, 25, 501)


@pytest.mark.parametrize("name", LINK_NAMES)
def test_the_slope_is_the_derivative(name):
    link, step = LINKS[name], 1e-5
    numeric = (link.value(LINE + step) - link.value(LINE - step)) / (2 * step)
    np.testing.assert_allclose(link.slope(LINE), numeric, rtol=1e-4, atol=1e-9)
    assert link.name == name


@pytest.mark.parametrize("name", LINK_NAMES)
def test_starting_values_are_the_inverse(name):
    link = LINKS[name]
    line = LINE[np.abs(LINE) < 15]
    np.testing.assert_allclose(link.start(link.value(line)), line, atol=1e-6)


@pytest.mark.parametrize("name", LINK_NAMES)
def test_no_number_of_the_line_overflows(name):
    with np.errstate(over="raise", invalid="raise"):
        for part in (LINKS[name].value, LINKS[name].slope):
            assert np.isfinite(part(np.array([-1e4, 0.0, 1e4]))).all()


@pytest.mark.parametrize(("name", "ends"), [("logit", [0.0, 1.0]), ("softplus", [0.0, 1e6])])
def test_values_at_the_ends_of_a_range_have_a_place_on_the_line(name, ends):
    assert np.isfinite(LINKS[name].start(np.array(ends))).all()


@pytest.mark.parametrize(
    ("values", "direction", "link"),
    [
        ([0.2, 0.9], "maximize", "logit"),
        ([0.0, 1.0], "minimize", "logit"),
        ([0.2, 1.1], "minimize", "softplus"),
        ([0.2, 1.1], "maximize", "identity"),
        ([-0.1, 0.5], "minimize", "identity"),
    ],
)
def test_auto_goes_by_the_values(values, direction, link):
    assert suited(np.array(values), direction) == link
