"""The tree of a nested run: from the root down, with what is known so far."""

from __future__ import annotations

from dataclasses import replace

from evomerge.reports import tree
from evomerge.reports.html import render_report
from evomerge.reports.summary import ConfirmedRow, Interval, MergeOfTwo, RunSummary
from evomerge.testing.summaries import example_summary


def confirmed(trial: int, **scores: float) -> ConfirmedRow:
    intervals = {name: Interval(value, value - 0.1, value + 0.1, 10) for name, value in scores.items()}
    return ConfirmedRow(f"trial {trial}", trial, "trial", intervals, Interval(0.5, 0.4, 0.6))


def nested() -> RunSummary:
    """math and japanese are merged first; counting waits, and that merge is at its start."""
    merges = [
        MergeOfTwo(
            "merged-1",
            "math",
            "japanese",
            ("arithmetic_en",),
            9,
            9,
            4,
            confirmed(4, arithmetic_en=0.8),
            "tree/merged-1/report.html",
        ),
        MergeOfTwo("merged-2", "merged-1", "counting", ("arithmetic_ja", "arithmetic_en"), 3, 10),
    ]
    return replace(example_summary(), tree=merges)


def test_what_is_merged_comes_below_its_merge() -> None:
    rows = tree.rows(nested())
    assert [(row.depth, row.label, row.kind) for row in rows] == [
        (0, "merged-2", "winner"),
        (1, "merged-1", "trial"),
        (2, "math", "parent"),
        (2, "japanese", "parent"),
        (1, "counting", "parent"),
    ]
    assert (rows[0].trials, rows[0].pick, rows[0].cells) == ("3 of 10", "", ("–", "–"))
    assert (rows[1].trials, rows[1].pick, rows[1].cells) == ("9", "trial 4", ("–", "0.800"))
    assert "–" not in rows[2].cells


def test_a_terminal_shows_it_indented() -> None:
    lines = tree.lines(nested())
    assert lines[0] == "merged-2: 3 of 10 trials, on arithmetic_ja, arithmetic_en"
    assert lines[1] == "  merged-1: 9 trials, on arithmetic_en; trial 4: arithmetic_en 0.800"
    assert lines[2].startswith("    math: arithmetic_ja 0.")


def test_a_merge_in_words() -> None:
    first, last = (tree.in_words(merge) for merge in nested().tree)
    assert first == (
        "merged-1 = math + japanese, on arithmetic_en: 9 trials, picked trial 4 "
        "(arithmetic_en 0.800 on confirmation items)"
    )
    assert last == "merged-2 = merged-1 + counting, on arithmetic_ja, arithmetic_en: 3 of 10 trials"


def test_the_report_has_the_tree_with_links_of_nested_runs_alone() -> None:
    text = render_report(nested())
    assert 'id="tree"' in text
    assert '<a href="tree/merged-1/report.html">merged-1</a>' in text
    assert 'id="tree"' not in render_report(example_summary())
    attack = "<b>&amp;</b>"
    hostile = replace(nested(), tree=[replace(merge, name=attack, report=attack) for merge in nested().tree[:1]])
    assert attack not in render_report(hostile).split("<script")[0].replace("&lt;", "")
