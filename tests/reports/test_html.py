"""The HTML report: one file, no network, everything escaped, and honest at every stage of a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evomerge.recipes import PathStep, routed_recipe, write_recipe
from evomerge.reports.html import render_report, write_report
from evomerge.reports.summary import Crossing, RunSummary
from evomerge.testing.summaries import example_summary


class Page(HTMLParser):
    """The parts of a page: its visible words, its elements, its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.addresses, self.specs, self.inside = [""], [""], [""], [""], [""]
        self.ids: set[str] = set()
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.inside.append(tag)
        self.tags.append(tag)
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        self.addresses += [found[key] or "" for key in ("src", "href") if key in found]
        if found.get("type") == "application/json":
            self.inside.append("json")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside[-1] == "json":
            self.specs.append(data)
        elif self.inside[-1] not in ("script", "style"):
            self.words.append(data)


def page(summary: RunSummary) -> Page:
    return Page(render_report(summary))


def drawn(summary: RunSummary, name: str) -> set[str]:
    """Return the rows of a figure of bars."""
    found = re.search(
        rf'id="figure-{name}"[^>]*><script type="application/json">(.*?)</script>', render_report(summary)
    )
    assert found is not None
    return set(json.loads(found[1])["data"][0]["y"])


@pytest.fixture(scope="module")
def confirmed() -> Page:
    return page(example_summary(failed=(3, 5)))


def test_the_report_has_every_section(confirmed: Page) -> None:
    assert {"scores", "front", "progress", "genes", "winner", "failures", "time", "run"} <= confirmed.ids
    assert {"figure-front", "figure-confirmed", "figure-hypervolume", "figure-progress-1"} <= confirmed.ids


def test_the_report_asks_for_nothing_from_the_network(confirmed: Page) -> None:
    assert confirmed.addresses == [""]
    assert "link" not in confirmed.tags
    assert "img" not in confirmed.tags


def test_the_plotting_library_is_in_the_file_once() -> None:
    text = render_report(example_summary(trials=12))
    assert 3e6 < len(text) < 8e6
    assert text.count("* plotly.js v") == 1


def test_every_figure_is_valid_json_for_plotly(confirmed: Page) -> None:
    specs = [json.loads(spec) for spec in confirmed.specs[1:]]
    assert len(specs) >= 6
    assert all(spec["data"] and "template" not in spec["layout"] for spec in specs)


def test_the_result_comes_with_intervals_and_p_values(confirmed: Page) -> None:
    assert re.search(
        r"Trial \d+ beats the best parent \(math\) by \+0\.100 \[\+0\.080, \+0\.120\], p < 0\.001",
        confirmed.text,
    )
    assert "0.57–0.63" in confirmed.text


def test_a_winner_that_does_not_win_is_called_that() -> None:
    text = page(example_summary(gain=0.01)).text
    assert "but does not beat the uniform merge" in text
    assert "(the interval holds zero)" in text


def test_search_scores_never_share_a_table_with_confirmed_ones() -> None:
    summary = example_summary()
    rows = [row for row in summary.confirmed if row.trial in (None, summary.pick)]
    other = next(row.number for row in summary.front if row.number != summary.pick)
    assert f"trial {other} 0." in page(summary).text
    assert f"trial {other} 0." not in page(replace(summary, confirmed=rows)).text


def test_the_choice_among_several_trials_is_admitted() -> None:
    summary = example_summary()
    count = sum(row.kind == "trial" for row in summary.confirmed)
    assert count > 1
    assert f"was made among {count} trials on these same items" in page(summary).text


@pytest.mark.parametrize("trials", [0, 1, 5])
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_report_can_be_made_while_the_run_goes(trials: int, objectives: int) -> None:
    found = page(example_summary(trials=trials, objectives=objectives, confirmed=False))
    assert "winner" not in found.ids
    assert "trials 0 of 40" in found.text or f"trials {trials} of 40" in found.text
    assert ("figure-front" in found.ids) == (trials > 0 and objectives > 1)


def test_a_run_whose_trials_all_failed_shows_the_first_traceback() -> None:
    found = page(example_summary(trials=3, failed=(0, 1, 2), confirmed=False))
    assert "All 3 trials so far failed." in found.text
    assert "Traceback of trial 0" in found.text
    assert 'File "task.py", line 3' in found.text


def test_one_objective_has_no_front_and_no_hypervolume() -> None:
    found = page(example_summary(objectives=1))
    assert "front" not in found.ids
    assert "figure-hypervolume" not in found.ids
    assert "mean of objectives" not in found.text


def test_many_objectives_get_a_profile_and_one_importance_pane_each() -> None:
    found = page(example_summary(objectives=4, layers=3))
    assert "figure-profile" in found.ids
    assert {f"pane-{index}" for index in range(5)} <= found.ids
    assert "figure-genes-depth-0" in found.ids
    assert "figure-winner-depth" in found.ids


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (("trial 7", "the parent <math>"), "It was crossed from trial 7 and the parent <math>."),
        (("trial 7", "trial 7"), "It was made from trial 7 alone."),
    ],
)
def test_numbers_that_name_trials_and_seeds_are_told_and_not_drawn(sources: tuple[str, str], said: str) -> None:
    plain = example_summary()
    labels = plain.genes[:2]
    told = replace(plain, crossing=Crossing(labels, sources))
    assert said in page(told).text
    for figure in ("winner-genes", "genes-0"):
        assert drawn(plain, figure) - drawn(told, figure) == set(labels)
    assert "crossed from" not in page(plain).text


def test_texts_from_outside_cannot_become_markup() -> None:
    attack = "</script><script>alert(1)</script><b>&amp;"
    plain = example_summary(failed=(3,))
    winner = plain.winner
    assert winner is not None
    rows = [replace(row, error=attack, worker=attack) if row.objectives is None else row for row in plain.trials]
    hostile = replace(
        plain,
        name=attack,
        folder=attack,
        experiment_yaml=f"name: '{attack}'",
        winner_recipe_yaml=write_recipe(routed_recipe([PathStep(attack, 0, 0.5)])),
        flags=[attack],
        facts={attack: attack},
        trials=rows,
        references=[replace(row, name=attack + row.name) for row in plain.references],
        confirmed=[replace(row, label=attack) if row.trial is None else row for row in plain.confirmed],
    )
    text = render_report(hostile)
    assert "<script>alert(1)" not in text
    assert text.count("<script>") == render_report(plain).count("<script>")
    assert page(hostile).text.count(attack) >= 6


def test_shares_of_cut_off_answers_are_shown_beside_the_parents() -> None:
    plain = example_summary()
    rows = [
        replace(row, truncated={"arithmetic_ja": 0.25}) if row.number == plain.pick else row for row in plain.trials
    ]
    parents = [replace(row, truncated={"arithmetic_ja": 0.0}) for row in plain.references]
    found = page(replace(plain, trials=rows, references=parents))
    assert "extraction" in found.ids
    assert "25% / –" in found.text
    assert "0% / –" in found.text
    assert "extraction" not in page(plain).ids


def test_the_time_is_split_into_forward_passes_merging_and_the_rest(confirmed: Page) -> None:
    assert re.search(r"forward passes 83% 40s merging 8\.3% 4(\.0)?s other 8\.3% 4(\.0)?s", confirmed.text)


def test_the_same_run_gives_the_same_bytes_and_is_written_in_one_step(tmp_path: Path) -> None:
    summary = example_summary(trials=15)
    path = write_report(summary, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(summary)
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
