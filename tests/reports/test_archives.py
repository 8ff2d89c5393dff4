"""What reports show of archives: each elite in its niche, the best of several, and nothing where there are none."""

from dataclasses import replace

import pytest

from evomerge.experiments.journal import Trial
from evomerge.experiments.summarise_archives import ARCHIVES, archives
from evomerge.reports.archives import caption, figures, heat_map
from evomerge.reports.html import render_report
from evomerge.searchers import SEARCHERS, ObjectiveSpec, read_searcher
from evomerge.searchers.grids import Axis, GridArchive
from evomerge.testing.summaries import example_summary

MATH, CODE, LOSS = (
    ObjectiveSpec("math", "maximize"),
    ObjectiveSpec("code", "maximize"),
    ObjectiveSpec("loss", "minimize"),
)


def filled(*axes: Axis) -> GridArchive:
    archive = GridArchive(axes, [MATH])
    archive.add(3, {"math": 0.4, "code": 0.1, "loss": 3.9})
    archive.add(7, {"math": 0.6, "code": 0.1, "loss": 0.1})
    archive.add(8, {"math": 0.5, "code": 0.9, "loss": 0.1})
    return archive


def test_elites_stand_in_their_niches_with_their_trials() -> None:
    figure = heat_map(filled(Axis(CODE, 0.0, 1.0, 2), Axis(LOSS, 0.0, 4.0, 4)), 0, 1)
    (drawn,) = figure.data
    assert [list(row) for row in drawn.z] == [[0.4, None], [None, None], [None, None], [0.6, 0.5]]
    assert list(drawn.text[3]) == ["7", "8"]
    assert list(drawn.x) == ["0–0.5", "0.5–1"]
    assert list(drawn.y) == ["3–4", "2–3", "1–2", "0–1"]


def test_of_one_axis_there_is_one_row() -> None:
    ((figure, _),) = figures({"math": filled(Axis(CODE, 0.0, 1.0, 4))})
    assert [list(row) for row in figure.data[0].z] == [[0.6, None, None, 0.5]]


def test_along_other_axes_the_best_elite_is_shown_and_each_pair_has_its_map() -> None:
    archive = filled(Axis(CODE, 0.0, 1.0, 2), Axis(LOSS, 0.0, 4.0, 2), Axis(MATH, 0.0, 1.0, 10))
    drawn = figures({"math": archive, "empty": GridArchive(archive.axes, [MATH])})
    assert len(drawn) == 3
    assert list(heat_map(archive, 0, 0).data[0].z[0]) == [0.6, 0.5]


def test_the_caption_tells_coverage_score_and_best() -> None:
    archive = filled(Axis(CODE, 0.0, 1.0, 2), Axis(LOSS, 0.0, 4.0, 4))
    told = caption("math", archive, 0, 1)
    assert told.startswith("math over code × loss: 3 of 8 niches filled (38%), QD score 1.5")
    assert told.endswith(("best 0.6 (trial 7)", "best 0.600 (trial 7)"))


def test_the_page_has_the_maps() -> None:
    plain = example_summary(objectives=2)
    assert 'id="archives"' not in render_report(plain)
    archive = filled(Axis(CODE, 0.0, 1.0, 2), Axis(LOSS, 0.0, 4.0, 4))
    page = render_report(replace(plain, archives={"math": archive}))
    assert 'id="archives"' in page
    assert 'id="figure-archive-0"' in page


@pytest.mark.parametrize(("kind", "names"), [("cycle-qd", ["math", "code", "loss"]), ("map-elites", ["quality"])])
def test_archives_are_filled_again_from_the_trials(kind: str, names: list[str]) -> None:
    config = read_searcher({"kind": kind, "bins": 4, "grid": {"loss": {"high": 4.0}}})
    values = [{"math": 0.4, "code": 0.1, "loss": 3.9}, None, {"math": 0.6, "code": 0.9, "loss": 0.1}]
    trials = [Trial(number, {}, told, "") for number, told in enumerate(values)]
    found = archives(config, (MATH, CODE, LOSS), trials)
    assert list(found) == names
    assert all([elite.name for elite in archive.elites.values()] == [0, 2] for archive in found.values())


def test_searchers_without_niches_have_no_archives() -> None:
    assert archives(read_searcher("nsga2"), (MATH, CODE), []) == {}
    assert set(ARCHIVES) <= set(SEARCHERS)
