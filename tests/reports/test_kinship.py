"""The heat map of the parents' kinship."""

from dataclasses import replace

import numpy as np

from evomerge.reports.html import render_report
from evomerge.reports.kinship_figure import kinship_figure
from evomerge.reports.summary import ParentsKinship
from evomerge.testing.searchers import products
from evomerge.testing.summaries import example_summary

VECTORS = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])


def test_the_map_shows_the_correlations() -> None:
    figure, caption = kinship_figure(ParentsKinship(("math", "<ja>", "base"), products(VECTORS)))
    found = figure.data[0]
    assert np.allclose(np.array(found.z, dtype=float)[:2, :2], np.corrcoef(VECTORS[:2]))
    assert list(found.x) == list(found.y) == ["math", "&lt;ja&gt;", "base"]
    assert found.text[0][1] == "−0.400"
    assert found.text[0][2] == "–"  # the base has no kin
    assert caption == "Correlation of task vectors, mean of all pairs –"


def test_only_runs_that_compared_their_parents_show_it() -> None:
    plain = example_summary()
    assert 'id="kinship"' not in render_report(plain)
    page = render_report(replace(plain, kinship=ParentsKinship(("math", "japanese"), products(VECTORS[:2]))))
    assert 'id="kinship"' in page
    assert "mean of all pairs −0.400" in page
