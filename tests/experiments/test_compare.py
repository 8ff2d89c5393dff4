"""Comparisons of searchers against numbers worked out by hand, on runs that were written and not searched.

With the reference point (0, 10), ``up`` maximised and ``down`` minimised, a trial (k, 9) alone has the hypervolume k.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.experiments import rank_tests
from evomerge.experiments.compare import compare
from evomerge.experiments.compared_runs import searcher_labels
from evomerge.reports.comparison import Band, Spread
from evomerge.testing.written_runs import write_run

BOTH = {"up": "maximize", "down": "minimize"}
REFERENCES = [{"up": 0.0, "down": 5.0}, {"up": 2.0, "down": 10.0}]


def points(*ups: float | None) -> list[dict[str, float] | None]:
    return [None if up is None else {"up": up, "down": 9.0} for up in ups]


def written(path: Path, trials: Sequence[Mapping[str, float] | None], kind: str, seed: int, **more: Any) -> Path:
    searcher = {"kind": kind, "seed": seed, **more.pop("searcher", {})}
    settings = {"directions": BOTH, "references": REFERENCES} | more
    return write_run(path / f"{kind}-{seed}", trials, searcher=searcher, **settings)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two searchers with four seeds each, eight trials a run; the value after trials 2, 4 and 8 is easily read off."""
    good = [
        (1, 2, 2, 4, 4, 4, 4, 11),
        (3, 3, 1, 5, 5, 5, 5, 12),
        (1, 1, 6, 6, 6, 6, 6, 6),
        (None, 8, 8, 8, 9, 9, 9, 14),
    ]
    poor = [(1, 1, 1, 1, 1, 1, 1, 3), (2, 2, 2, 2, 2, 2, 2, 4), (3, 3, 3, 3, 3, 3, 3, 5), (4, 4, 4, 4, 4, 4, 4, 7)]
    return [
        written(tmp_path, points(*values), kind, seed)
        for kind, group in (("random", poor), ("nsga2", good))
        for seed, values in enumerate(group)
    ]


def test_medians_and_quartiles_at_a_quarter_a_half_and_the_end(runs: list[Path]) -> None:
    found = compare(runs)
    assert found.checkpoints == (2, 4, 8)
    best, other = found.groups
    assert (best.label, other.label) == ("nsga2", "random")
    # After two trials 2, 3, 1, 8; after four 4, 5, 6, 8; at the end 11, 12, 6, 14. Quartiles are 3/4 of the way
    # from the first to the second of four values, and 1/4 from the third to the fourth.
    assert best.at == (Spread(1.75, 2.5, 4.25), Spread(4.75, 5.5, 6.5), Spread(9.75, 11.5, 12.5))
    assert other.at[-1] == Spread(3.75, 4.5, 5.5)


def test_the_band_steps_where_any_run_gets_better(tmp_path: Path) -> None:
    paths = [written(tmp_path, points(*ups), "qmc", seed) for seed, ups in enumerate([(2, 1, 6, 6), (4, 4, 4, 8)])]
    (group,) = compare(paths).groups
    assert [run.spent for run in group.runs] == [(1, 3), (1, 4)]
    assert [run.values for run in group.runs] == [(2.0, 6.0), (4.0, 8.0)]
    assert group.band == Band(
        spent=(0, 1, 3, 4), low=(0.0, 2.5, 4.5, 6.5), median=(0.0, 3.0, 5.0, 7.0), high=(0.0, 3.5, 5.5, 7.5)
    )


def test_a_front_of_several_trials_counts_what_they_dominate_together(tmp_path: Path) -> None:
    trials = [{"up": 4.0, "down": 9.0}, {"up": 1.0, "down": 7.0}, {"up": 1.0, "down": 8.0}, {"up": 4.0, "down": 9.0}]
    (run,) = compare([written(tmp_path, trials, "random", 0)]).groups[0].runs
    assert run.values == (4.0, 4.0 * 1 + 1 * 3 - 1 * 1)
    assert run.spent == (1, 2)
    assert set(run.front) == {(4.0, 9.0), (1.0, 7.0)}


def test_the_reference_point_is_the_worst_of_all_runs_models(tmp_path: Path) -> None:
    one = written(tmp_path, points(3), "random", 0, references=[{"up": 1.0, "down": 10.0}])
    two = written(tmp_path, points(3), "nsga2", 0, references=[{"up": 2.0, "down": 11.0}, {"up": 1.5, "down": 1.0}])
    found = compare([one, two])
    assert found.reference == {"up": 1.0, "down": 11.0}
    assert [run.values for group in found.groups for run in group.runs] == [(4.0,), (4.0,)]


def test_tests_are_of_the_ends_and_corrected_for_all_pairs(runs: list[Path], tmp_path: Path) -> None:
    (pair,) = compare(runs).pairs
    assert (pair.better, pair.other) == ("nsga2", "random")
    assert pair.effect == 15 / 16  # 11, 12, 6 and 14 against 3, 4, 5 and 7: only 6 < 7
    assert pair.p_value == pair.uncorrected == pytest.approx(4 / 70)  # U = 15: two arrangements of 70 on either side
    third = [written(tmp_path, points(*[seed + 20] * 8), "qmc", seed) for seed in range(4)]
    found = compare([*runs, *third])
    assert [group.label for group in found.groups] == ["qmc", "nsga2", "random"]
    by_name = {(each.better, each.other): each for each in found.pairs}
    assert by_name["qmc", "nsga2"].p_value == pytest.approx(3 * 2 / 70)
    assert by_name["qmc", "random"].p_value == pytest.approx(3 * 2 / 70)
    assert by_name["nsga2", "random"].p_value == pytest.approx(3 * 2 / 70)  # 4 / 70, but never below the ones before
    assert by_name["qmc", "random"].smallest == pytest.approx(3 * 2 / 70)
    assert found.against_best(found.groups[2]) == by_name["qmc", "random"]
    assert any("gives no p below 0.086" in note for note in found.notes)


def test_paired_runs_are_compared_seed_by_seed(runs: list[Path]) -> None:
    (pair,) = compare(runs, paired=True).pairs
    assert pair.p_value == pytest.approx(rank_tests.wilcoxon([11, 12, 6, 14], [3, 4, 5, 7])) == 2 / 16
    with pytest.raises(ConfigError, match=r"random has the seeds 0, 1, 2, 3, nsga2 has 1, 2, 3; leave|seeds"):
        compare([run for run in runs if run.name != "nsga2-0"], paired=True)


def test_two_runs_are_too_few_for_a_p_value(runs: list[Path]) -> None:
    found = compare([run for run in runs if run.name not in ("random-0", "random-1")])
    assert found.pairs[0].p_value is None
    assert found.pairs[0].effect == 7 / 8
    assert any(note.startswith("No p-values: they need at least 3 runs") for note in found.notes)


def test_runs_of_other_lengths_are_compared_up_to_the_shortest(tmp_path: Path) -> None:
    long = written(tmp_path, points(1, 2, 3, 4, 5, 6, 7, 8), "random", 0)
    short = written(tmp_path, points(1, None, 2, None), "nsga2", 0, budget=6)
    found = compare([long, short])
    assert found.checkpoints == (1, 2, 4)
    assert {group.label: group.at[-1].median for group in found.groups if group.at[-1]} == {"random": 4, "nsga2": 2}
    assert {group.label: group.runs[0].trials for group in found.groups} == {"random": 4, "nsga2": 4}
    notes = "\n".join(found.notes)
    assert f"Compared up to 4 trials, all that {short} spent; what {long} did after that is left out." in notes
    assert f"Not finished: {short} has 4 of 6 trials." in notes


def test_items_are_counted_with_calibration_and_without_what_was_asked_before(tmp_path: Path) -> None:
    estimated = {"estimation": {}, "calibration": ["model 0", "merge 0", "merge 1"]}
    few = written(tmp_path, points(1, 2, 3, 4), "nsga2", 0, items=[2, 0, 3, 2], facts=estimated)
    exact = written(tmp_path, points(1, 2, 3), "random", 0, items=[10, 10, 10])
    found = compare([few, exact], cost="items")
    by_label = {group.label: group.runs[0] for group in found.groups}
    # Two merges of ten items, then 2, 0, 3 and 2: 22, 22, 25, 27 after the trials. The other run: 10, 20, 30.
    assert by_label["nsga2"].spent == (22, 22, 25, 27)
    assert by_label["nsga2"].items == 27
    assert by_label["random"].spent == (10, 20)
    assert (by_label["random"].trials, by_label["random"].items) == (2, 20)
    assert found.checkpoints == (6, 13, 27)
    values = {group.label: [at.median if at else None for at in group.at] for group in found.groups}
    assert values == {"nsga2": [0.0, 0.0, 4.0], "random": [0.0, 1.0, 2.0]}
    assert any("estimates from few items" in note for note in found.notes)
    assert any("p and A12 compare estimated with exact scores" in note for note in found.notes)
    assert any("see also --cost items" in note for note in compare([few, exact]).notes)


def test_one_objective_is_compared_by_its_best_value(tmp_path: Path) -> None:
    one = {"directions": {"loss": "minimize"}, "references": [{"loss": 9.0}]}
    values = {"cma-es": [(3, 2, 5), (4, 4, 1), (6, 5, 4)], "random": [(8, 9, 7), (8, 8, 8), (7, 9, 9)]}
    paths = [
        written(tmp_path, [{"loss": float(v)} for v in run], kind, seed, **one)
        for kind, group in values.items()
        for seed, run in enumerate(group)
    ]
    found = compare(paths[::-1])
    assert found.measure == "best loss (smaller is better)"
    assert [group.label for group in found.groups] == ["cma-es", "random"]
    assert found.groups[0].at == (None, Spread(3.5, 4.0, 5.0), Spread(1.5, 2.0, 3.0))
    assert found.groups[0].band.spent == (1, 2, 3)
    assert found.groups[0].band.median == (4.0, 4.0, 2.0)
    assert found.groups[0].runs[1].front == ((1.0,),)
    assert found.pairs[0].effect == 1.0
    assert found.pairs[0].p_value == pytest.approx(2 / 20)


def test_the_median_surface_is_what_two_of_three_runs_attain(tmp_path: Path) -> None:
    # Larger is better in both once down is 10 - y: fronts {(1, 3), (3, 1)}, {(2, 2)} and {(1.5, 1.5)}.
    fronts = [[(1.0, 7.0), (3.0, 9.0)], [(2.0, 8.0)] * 2, [(1.5, 8.5)] * 2]
    paths = [
        written(tmp_path, [{"up": up, "down": down} for up, down in front], "random", seed)
        for seed, front in enumerate(fronts)
    ]
    assert compare(paths).groups[0].surface == ((1.0, 8.0), (1.5, 8.5), (2.0, 9.0))


def test_three_objectives_have_a_hypervolume_and_no_surface(tmp_path: Path) -> None:
    three = {"directions": dict.fromkeys("abc", "maximize"), "references": [dict.fromkeys("abc", 0.0)]}
    run = written(tmp_path, [{"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 2.0}], "random", 0, **three)
    found = compare([run])
    assert found.groups[0].runs[0].values == (6.0, 7.0)
    assert found.groups[0].surface == ()
    assert "Attainment surfaces are drawn for two objectives only." in found.notes


def test_confirmed_fronts_are_compared_once_all_runs_are_finished(tmp_path: Path) -> None:
    one = written(tmp_path, points(5, 6), "random", 0, confirmed=points(4, 3))
    two = written(tmp_path, points(5, 6), "nsga2", 0, confirmed=[{"up": 1.0, "down": 7.0}, {"up": -1.0, "down": 0.0}])
    found = compare([one, two])
    assert {group.label: group.confirmed for group in found.groups} == {
        "random": Spread(4, 4, 4),
        "nsga2": Spread(3, 3, 3),
    }
    longer = written(tmp_path, points(5, 6, 7), "qmc", 1, confirmed=points(7))
    assert any(note.endswith("left out, but for the confirmed fronts.") for note in compare([one, longer]).notes)
    going = written(tmp_path, points(5, 6), "qmc", 0, budget=9)
    found = compare([one, two, going])
    assert all(group.confirmed is None for group in found.groups)
    assert f"The fronts on confirmation items are not compared: {going} is not finished." in found.notes


def test_runs_on_other_objectives_or_items_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path, points(1), "random", 0)
    other = {"directions": {"up": "maximize", "down": "maximize"}, "references": [{"up": 0.0, "down": 0.0}]}
    two = written(tmp_path, points(1), "nsga2", 0, **other)
    three = written(tmp_path, points(1), "qmc", 0, facts={"identity": {"items": {"search": "30 others"}}})
    with pytest.raises(ConfigError) as caught:
        compare([one, two, three])
    message = str(caught.value)
    assert f"scored on up (maximize acc), down (maximize acc); {one} on up (maximize acc), down (minimize" in message
    assert f"{three}: searched on 10 items of t other than the 10 items of t of {one}" in message


def test_the_same_search_twice_is_refused(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name, points(1, 2), "random", 3) for name in "ab")
    for pair in ([one, one], [one, two]):
        with pytest.raises(ConfigError, match=f"the same search as {one}: equal settings and seed 3\n.*leave one"):
            compare(pair)


def test_a_run_without_scores_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path, points(1, 2), "random", 0)
    two = written(tmp_path, points(None, None, 3), "nsga2", 0)
    with pytest.raises(ConfigError, match="nsga2-0: none of its first 2 trials, those compared, has scores"):
        compare([one, two])
    three = written(tmp_path, [], "qmc", 0, budget=3)
    with pytest.raises(RunError, match="qmc-0 has no trial yet: resume it"):
        compare([one, three])


def test_what_else_differs_is_told(tmp_path: Path) -> None:
    def facts(space: str) -> dict[str, Any]:
        return {"identity": {"items": {"search": "10 items"}, "settings": {"the search space": space}}}

    one = written(tmp_path, points(1), "random", 0, facts=facts("wide"))
    two = written(tmp_path, points(1), "random", 1, facts=facts("narrow"))
    three = written(tmp_path, points(1), "nsga2", 0, facts=facts("narrow"))
    notes = compare([one, two, three]).notes
    assert any(
        note.startswith(f"The runs of random are no repetitions: {two} and {one} differ in the search space")
        for note in notes
    )
    assert f"Not only the searchers differ: {three} and {one} also differ in the search space." in notes


def test_runs_are_grouped_by_name_or_folder_if_asked(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / folder, points(1), "random", seed, name=name)
        for seed, (folder, name) in enumerate([("x", "wide"), ("y", "wide"), ("y", "narrow")])
    ]

    def grouped(by: Any) -> dict[str, list[int]]:
        return {group.label: [run.seed for run in group.runs] for group in compare(paths, by=by).groups}

    assert grouped("searcher") == {"random": [0, 1, 2]}
    assert grouped("name") == {"wide": [0, 1], "narrow": [2]}
    assert grouped("folder") == {"x": [0], "y": [1, 2]}


def test_labels_tell_only_what_differs() -> None:
    searchers = [
        {"kind": "nsga2", "seed": 1, "population": 24},
        {"kind": "cma-es", "seed": 1, "population": None, "sigma0": 0.25},
        {"kind": "cma-es", "seed": 2, "population": 16, "sigma0": 0.25},
        {"kind": "optuna", "seed": 0, "sampler": "GPSampler", "options": {}},
        {"kind": "optuna", "seed": 0, "sampler": "TPESampler", "options": {"multivariate": True}},
        {"kind": "optuna", "seed": 0, "sampler": "TPESampler", "options": {"multivariate": False}},
    ]
    assert searcher_labels(searchers) == [
        "nsga2",
        "cma-es",
        "cma-es population=16",
        "optuna GPSampler",
        "optuna TPESampler multivariate=True",
        "optuna TPESampler multivariate=False",
    ]


def test_the_order_of_the_runs_changes_nothing(runs: list[Path]) -> None:
    assert compare(runs).groups == compare(runs[::-1]).groups
    assert compare(runs).pairs == compare(runs[::-1]).pairs
