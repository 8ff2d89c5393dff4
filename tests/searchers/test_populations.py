"""Searchers of models: which members live, which are crossed, and with what numbers.

The values of `population_searchers.json` are those of the authors' code and of pyribs on the same numbers (see the
script beside it).
"""

import json
import math
from collections import Counter, deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, IntGene
from evomerge.searchers import SEARCHERS, ObjectiveSpec, build_searcher, read_searcher
from evomerge.searchers.breeding import LineageGenes
from evomerge.searchers.cycle_qd import elite_weights, shares_of_best
from evomerge.searchers.fitness_sharing import attraction, gains
from evomerge.searchers.grids import Axis, AxisConfig, GridArchive, axes_of
from evomerge.searchers.m2n2 import item_shares
from evomerge.searchers.sampling import drawn, drawn_other
from evomerge.testing.searchers import Told

REFERENCE = json.loads((Path(__file__).parents[1] / "references" / "population_searchers.json").read_text())
NICHES, CYCLE, PYRIBS = REFERENCE["natural_niches"], REFERENCE["cycle_qd"], REFERENCE["pyribs"]
UP = (ObjectiveSpec("math", "maximize"), ObjectiveSpec("code", "maximize"), ObjectiveSpec("japanese", "maximize"))
ONE = UP[:1]

LINEAGE = (  # three parents, and the genes of every crossover and mutation that ships
    IntGene("first", -3, 10_000_000, -1),
    IntGene("second", -3, 10_000_000, -2),
    FloatGene("weight", 0.0, 1.0, 0.5),
    FloatGene("split", 0.0, 1.0, 1.0),
    FloatGene("first.weight", 0.0, 2.0, 1.0),
    FloatGene("second.weight", 0.0, 2.0, 1.0),
    FloatGene("mutation.scale", 0.0, 1.0, 0.0),
    IntGene("mutation.seed", 0, 2**31 - 1, 0),
)
ITEMS = 40


def items_of(objectives):
    """Return scores of items, 0 or 1, about as many of them 1 as each objective says; which ones, its digits decide."""
    return {
        name: (np.random.default_rng(hash(value) % 2**32).random(ITEMS) < value).astype(np.float64)
        for name, value in objectives.items()
    }


def bred(searcher, evaluate, trials, in_flight=1):
    """Run ``trials`` trials as an experiment does: at most ``in_flight`` open, results told in ask order.

    ``evaluate`` takes the number of the trial and its genome.
    """
    told = []
    asked = deque()
    while len(told) < trials:
        while len(asked) < in_flight and len(told) + len(asked) < trials:
            genome = searcher.ask()
            if genome is None:
                break
            for source in (genome["first"], genome["second"]):
                known = isinstance(source, int) and source < len(told)
                assert known, f"trial {source} is named as a source, which was not told"
                assert source < 0 or told[source].objectives is not None, f"trial {source} failed, and is named"
            asked.append(genome)
        assert asked, "ask() returned None although no trial is in flight"
        genome = asked.popleft()
        objectives = evaluate(len(told), genome)
        searcher.tell(genome, objectives, None, None if objectives is None else items_of(objectives))
        told.append(Told(genome, objectives))
    return told


def searcher(objectives=UP, genes=LINEAGE, **config):
    return build_searcher(read_searcher(config), genes, objectives, 100)


def evaluated(number, count=3):
    """Return objectives that have nothing to do with the genome."""
    values = np.random.default_rng(number).random(count)
    return {objective.name: float(value) for objective, value in zip(UP, values, strict=False)}


# --- competition and attraction


@pytest.mark.parametrize("case", NICHES["parents"])
def test_parents_are_drawn_with_the_authors_probabilities(case):
    gained = gains(np.array(case["scores"]), case["alpha"])
    fitness, attracted = gained.sum(axis=1), attraction(gained, case["first"])
    np.testing.assert_allclose(fitness / fitness.sum(), case["fitness"], rtol=1e-14)
    np.testing.assert_allclose(attracted / attracted.sum(), case["attraction"], rtol=1e-14)


@pytest.mark.parametrize("case", NICHES["archives"])
def test_the_archive_keeps_whom_the_authors_keep(case):
    found = searcher(ONE, kind="m2n2", alpha=case["alpha"], archive=case["size"])
    for number, (row, living) in enumerate(zip(case["scores"], case["living"], strict=True)):
        found.take(number, {"math": 0.0}, {"math": np.array(row)})
        assert found.members == living


def test_without_competition_fitness_is_the_sum_of_scores():
    scores = np.random.default_rng(0).random((4, 7))
    np.testing.assert_array_equal(gains(scores, 0.0).sum(axis=1), scores.sum(axis=1))


def test_what_members_gain_of_an_item_adds_up_to_its_capacity():
    scores = np.random.default_rng(0).random((4, 7)) + 0.1
    capacities = np.arange(7.0)
    np.testing.assert_allclose(gains(scores, 1.0, capacities).sum(axis=0), capacities)


def test_a_lone_solver_outlives_better_members_that_others_can_stand_in_for():
    found = searcher(ONE, kind="m2n2", archive=3)
    twins = np.array([1.0, 1.0, 0.0])
    for number, row in enumerate([twins, twins, np.array([0.0, 0.0, 0.9]), twins]):
        found.take(number, {"math": 0.0}, {"math": row})
    assert found.members == [3, 1, 2]
    rival = searcher(ONE, kind="m2n2", archive=3, competition=False)
    for number, row in enumerate([twins, twins, np.array([0.0, 0.0, 0.9]), twins]):
        rival.take(number, {"math": 0.0}, {"math": row})
    assert rival.members == [0, 1, 3]


def test_capacity_best_is_the_best_score_of_a_living_member():
    rows = [[0.2, 1.0], [0.4, 0.5]]
    found = searcher(ONE, kind="m2n2", capacity="best")
    for number, row in enumerate(rows):
        found.take(number, {"math": 0.0}, {"math": np.array(row)})
    expected = np.array(rows) * [0.4, 1.0] / np.array(rows).sum(axis=0)
    np.testing.assert_allclose(found._gains(found.scores), expected)


def test_objectives_count_by_weight_and_not_by_their_numbers_of_items():
    objectives = (ObjectiveSpec("many", "maximize", 2.0), ObjectiveSpec("few", "maximize", 1.0))
    shares = item_shares(objectives, [100, 10])
    assert shares[:100].sum() == pytest.approx(2 * shares[100:].sum())
    assert item_shares(ONE, [7]).tolist() == [1.0] * 7


@pytest.mark.parametrize("attracted", [True, False])
def test_the_second_source_is_drawn_by_what_it_adds(attracted):
    found = searcher(ONE, kind="m2n2", attraction=attracted)
    for number, row in enumerate([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]):
        found.take(number, {"math": 0.0}, {"math": np.array(row, dtype=float)})
    pairs = Counter(found.sources() for _ in range(300))
    assert (pairs[0, 1] == 0) == attracted
    assert pairs[0, 2] > 0


def test_scores_below_zero_are_counted_from_the_worst_members():
    found = searcher(ONE, kind="m2n2")
    for number, row in enumerate([[-3.0, 0.5], [-1.0, 0.25]]):
        found.take(number, {"math": 0.0}, {"math": np.array(row)})
    np.testing.assert_allclose(found._gains(found.scores), [[0.0, 2 / 3], [1.0, 1 / 3]])


def test_missing_scores_are_refused():
    with pytest.raises(RunError, match="none were told"):
        searcher(ONE, kind="m2n2").take(0, {}, None)


# --- grids


def test_the_grid_keeps_what_pyribs_keeps():
    x, y, quality = (ObjectiveSpec(name, "maximize") for name in ("x", "y", "quality"))
    archive = GridArchive([Axis(x, 0.0, 1.0, 5), Axis(y, -1.0, 3.0, 4)], [quality])
    for number, step in enumerate(PYRIBS["steps"]):
        values = {"x": step["values"][0], "y": step["values"][1], "quality": step["quality"]}
        assert archive.add(number, values) == step["added"]
    found = {cell: (elite.name, elite.quality) for cell, elite in archive.elites.items()}
    assert found == {tuple(each["cell"]): (each["name"], each["quality"]) for each in PYRIBS["elites"]}
    assert archive.coverage == PYRIBS["coverage"]
    assert archive.qd_score == pytest.approx(PYRIBS["qd_score"], rel=1e-14)


def test_niches_are_those_of_the_authors_tasks():
    case = CYCLE["niches"]
    axis = Axis(UP[0], case["low"], case["high"], case["bins"], closed_above=True)
    assert [axis.niche(value) for value in case["values"]] == case["found"]


@pytest.mark.parametrize(
    ("closed_above", "direction", "expected"),
    [
        (False, "maximize", [0, 1, 2, 3, 4, 4]),
        (True, "maximize", [0, 0, 1, 2, 3, 4]),
        (False, "minimize", [4, 4, 3, 2, 1, 0]),
        (True, "minimize", [4, 3, 2, 1, 0, 0]),
    ],
)
def test_borders_belong_to_one_niche_whatever_the_rounding(closed_above, direction, expected):
    axis = Axis(ObjectiveSpec("x", direction), 0.0, 0.5, 5, closed_above)
    assert [axis.niche(value) for value in (0.0, 0.1, 0.2, 0.1 + 0.2, 0.4, 0.5)] == expected


def test_niches_are_numbered_from_the_worst_and_ends_are_closed():
    up, down = (Axis(ObjectiveSpec("x", direction), 0.0, 1.0, 10) for direction in ("maximize", "minimize"))
    for value in (-5.0, 0.03, 0.55, 0.99, 7.0):
        assert up.niche(value) + down.niche(value) == 9
    assert (up.niche(-5.0), up.niche(7.0)) == (0, 9)


def test_elites_never_get_worse_and_the_archive_never_outgrows_its_grid():
    axes = axes_of(UP[:2], {"math": AxisConfig(low=0.2, high=0.8, bins=3)}, 4)
    archive, before = GridArchive(axes, UP[2:]), {}
    generator = np.random.default_rng(5)
    for number in range(500):
        archive.add(number, dict(zip(("math", "code", "japanese"), generator.random(3).tolist(), strict=True)))
        assert all(archive.elites[cell].quality >= elite.quality for cell, elite in before.items())
        before = dict(archive.elites)
    assert len(archive.elites) == archive.cells == 12
    assert archive.coverage == 1.0


def test_a_grid_over_something_else_is_refused():
    with pytest.raises(ConfigError, match=r"(?s)searcher.grid.mth: 'mth' is no objective.*'math'"):
        searcher(kind="map-elites", grid={"mth": {}})
    with pytest.raises(ConfigError, match="low must be below high"):
        read_searcher({"kind": "map-elites", "grid": {"math": {"low": 1.0}}})


# --- CycleQD


@pytest.mark.parametrize("case", CYCLE["elites"])
def test_elites_are_drawn_with_the_authors_probabilities(case):
    archive = GridArchive([Axis(UP[1], 0.0, 6.0, 6), Axis(UP[2], 0.0, 6.0, 6)], UP[:1])
    for name, (cell, quality) in enumerate(zip(case["cells"], case["qualities"], strict=True)):
        archive.add(name, {"math": quality, "code": cell[0] + 0.5, "japanese": cell[1] + 0.5})
    weights = elite_weights(archive)
    np.testing.assert_allclose(weights / weights.sum(), case["probabilities"], rtol=1e-14)


def test_each_objective_has_an_archive_over_the_others():
    found = searcher(kind="cycle-qd", grid={"code": {"bins": 4}})
    assert {name: [a.objective.name for a in archive.axes] for name, archive in found.archives.items()} == {
        "math": ["code", "japanese"],
        "code": ["math", "japanese"],
        "japanese": ["math", "code"],
    }
    assert found.archives["math"].cells == 4 * 15
    found.take(3, {"math": 0.9, "code": 0.5, "japanese": 0.1}, None)
    assert [archive.best.quality for archive in found.archives.values()] == [0.9, 0.5, 0.1]


def test_archives_take_turns():
    found = searcher(kind="cycle-qd", swap=2, sampling="random")
    for turn, archive in enumerate(found.archives.values()):
        archive.add(2 * turn, {"math": 0.1, "code": 0.1, "japanese": 0.1})
        archive.add(2 * turn + 1, {"math": 0.9, "code": 0.9, "japanese": 0.9})
    turns = []
    for found.children in range(12):
        turns.append({source // 2 for source in found.sources()})
    assert turns == [{0}, {0}, {1}, {1}, {2}, {2}] * 2


def test_elite_sampling_prefers_what_is_good_at_everything():
    found = searcher(kind="cycle-qd")
    for name, value in enumerate((0.1, 0.5, 0.9)):
        found.take(name, {"math": value, "code": value, "japanese": value}, None)
    pairs = Counter(found.sources()[0] for _ in range(600))
    assert pairs[2] > pairs[1] > pairs[0] > 0


def test_an_archive_with_one_elite_borrows_from_the_others():
    found = searcher(kind="cycle-qd")
    assert found.sources() is None
    found.take(0, {"math": 0.5, "code": 0.5, "japanese": 0.5}, None)
    assert found.sources() is None
    found.archives["code"].add(1, {"math": 0.9, "code": 0.9, "japanese": 0.9})
    assert sorted(found.sources()) == [0, 1]


def test_weights_of_the_sources_spread_around_one():
    found = searcher(kind="cycle-qd", spread=0.03)
    weights = np.array([list(found.crossing().values()) for _ in range(2000)])
    assert weights.mean() == pytest.approx(1.0, abs=0.002)
    assert weights.std() == pytest.approx(0.03, rel=0.05)


def test_the_final_merge_weighs_the_best_of_each_archive_by_the_softmax_of_their_qualities():
    found = searcher(kind="cycle-qd")
    found.take(0, {"math": 0.9, "code": 0.1, "japanese": 0.2}, None)
    found.take(1, {"math": 0.1, "code": 0.8, "japanese": 0.7}, None)
    powers = [math.exp(0.9), math.exp(0.8), math.exp(0.7)]
    shares = shares_of_best(found.archives)
    assert shares == pytest.approx({0: powers[0] / sum(powers), 1: (powers[1] + powers[2]) / sum(powers)})


def weights_of(told):
    """Return each trial's share of every parent, as the crossover makes it of its sources' (mutations left out)."""
    made = {-1 - parent: np.eye(3)[parent] for parent in range(3)}
    for number, trial in enumerate(told):
        first, second = trial.genome["first.weight"], trial.genome["second.weight"]
        sources = [made[trial.genome[name]] for name in ("first", "second")]
        made[number] = (first * sources[0] + second * sources[1]) / (first + second)
    return made


@pytest.mark.parametrize("in_flight", [1, 5])
def test_aggregates_are_trials_that_merge_the_best_two_by_two(in_flight):
    skills = {0: {"math": 0.9}, 1: {"code": 0.8}, 2: {"japanese": 0.7}}

    def evaluate(number, genome):
        return {"math": 0.1, "code": 0.1, "japanese": 0.1} | skills.get(number, {})

    told = bred(searcher(kind="cycle-qd", aggregate=4), evaluate, 30, in_flight)
    neutral = [n for n, trial in enumerate(told) if n > 2 and trial.genome["mutation.scale"] == 0.0]
    assert len(neutral) >= 4
    powers = np.exp([0.9, 0.8, 0.7])
    for merged in neutral[1::2]:
        np.testing.assert_allclose(weights_of(told)[merged], powers / powers.sum(), rtol=1e-12)


def test_an_aggregate_that_fails_is_given_up():
    def evaluate(number, genome):
        best = {0: "math", 1: "code", 2: "japanese"}
        failed = number > 2 and genome["mutation.scale"] == 0.0
        return None if failed else {name: 0.9 if best.get(number) == name else 0.1 for name in best.values()}

    told = bred(searcher(kind="cycle-qd", aggregate=4), evaluate, 30, 3)
    steps = [number for number, trial in enumerate(told) if number > 2 and trial.genome["mutation.scale"] == 0.0]
    assert len(steps) > 2
    assert all(later - earlier > 1 for earlier, later in pairwise(steps))
    assert not any(trial.genome[name] in steps for trial in told for name in ("first", "second"))


def test_cycle_qd_refuses_what_it_cannot_search():
    with pytest.raises(ConfigError, match="two or more objectives"):
        searcher(ONE, kind="cycle-qd")
    split = (*LINEAGE[:2], FloatGene("weight", 0.0, 1.0, 0.5))
    with pytest.raises(ConfigError, match=r"no gene 'first.weight'.*\n?.*aggregate: 0"):
        searcher(genes=split, kind="cycle-qd")
    searcher(genes=split, kind="cycle-qd", aggregate=0)


# --- MAP-Elites


@pytest.mark.parametrize(("sampling", "share"), [("uniform", 0.5), ("quality", 0.9)])
def test_elites_are_crossed_alike_or_by_quality(sampling, share):
    found = searcher(UP[:2], kind="map-elites", sampling=sampling)
    found.take(0, {"math": 0.05, "code": 0.05}, None)
    found.take(1, {"math": 0.45, "code": 0.45}, None)
    first = Counter(found.sources()[0] for _ in range(2000))
    assert first[1] / 2000 == pytest.approx(share, abs=0.03)


def test_elites_are_crossed_by_quality_on_costs_too():
    """By how far they are from the worse ends of the grid."""
    costs = (ObjectiveSpec("loss", "minimize"), ObjectiveSpec("size", "minimize"))
    found = searcher(costs, kind="map-elites", sampling="quality")
    for name, value in enumerate((0.95, 0.85, 0.65)):
        found.take(name, {"loss": value, "size": value}, None)
    first = Counter(found.sources()[0] for _ in range(2000))
    assert [first[name] / 2000 for name in range(3)] == pytest.approx([0.1 / 1.1, 0.3 / 1.1, 0.7 / 1.1], abs=0.03)


def test_quality_is_the_weighted_sum_of_the_objectives():
    objectives = (ObjectiveSpec("math", "maximize", 2.0), ObjectiveSpec("loss", "minimize", 0.5))
    found = searcher(objectives, kind="map-elites", grid={"loss": {"high": 4.0}})
    found.take(0, {"math": 0.61, "loss": 2.0}, None)
    assert found.archives["quality"].elites[6, 5].quality == pytest.approx(2 * 0.61 - 0.5 * 2.0)


# --- what all of them keep to

KINDS = {
    "m2n2": {"kind": "m2n2", "archive": 6},
    "m2n2-best": {"kind": "m2n2", "archive": 4, "capacity": "best", "alpha": 0.5},
    "m2n2-plain": {"kind": "m2n2", "archive": 5, "competition": False, "attraction": False, "split": False},
    "map-elites": {"kind": "map-elites", "bins": 4},
    "map-elites-quality": {"kind": "map-elites", "sampling": "quality"},
    "cycle-qd": {"kind": "cycle-qd", "aggregate": 7, "bins": 5},
    "cycle-qd-random": {"kind": "cycle-qd", "sampling": "random", "swap": 3, "aggregate": 0},
}


@pytest.mark.parametrize("in_flight", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parents_come_first_and_sources_were_told_and_did_not_fail(kind, in_flight):
    failed = {1, 4, 5, 17}
    told = bred(
        searcher(**KINDS[kind]), lambda number, _: None if number in failed else evaluated(number), 60, in_flight
    )
    assert [(t.genome["first"], t.genome["second"]) for t in told[:3]] == [(-1, -1), (-2, -2), (-3, -3)]
    for number, trial in enumerate(told[3:], 3):
        first, second = trial.genome["first"], trial.genome["second"]
        assert first != second
        for source in (first, second):
            assert -3 <= source < number  # that it was told and did not fail, `bred` sees to
            assert source not in (0, 1, 2)  # those are the parents, which have names of their own


@pytest.mark.parametrize("kind", KINDS)
def test_children_are_crossed_of_children(kind):
    told = bred(searcher(**KINDS[kind]), lambda number, _: evaluated(number), 60, 4)
    depth = {-1 - parent: 0 for parent in range(3)}
    for number, trial in enumerate(told):
        depth[number] = 1 + max(depth[trial.genome[name]] for name in ("first", "second"))
    assert max(depth.values()) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_goes_on_where_nothing_or_one_thing_succeeds(kind):
    for succeeding in ((), (0,), (9,)):
        told = bred(searcher(**KINDS[kind]), lambda n, _, s=succeeding: evaluated(n) if n in s else None, 25, 4)
        assert len(told) == 25
        assert all(trial.genome["first"] < 0 for trial in told if trial.genome["first"] not in succeeding)


@pytest.mark.parametrize(("kind", "scale"), [("m2n2", 0.01), ("map-elites", 0.01), ("cycle-qd-random", 0.1)])
def test_every_child_is_mutated_with_a_seed_of_its_own_and_no_parent_is(kind, scale):
    told = bred(searcher(**KINDS[kind]), lambda number, _: evaluated(number), 40, 4)
    assert [trial.genome["mutation.scale"] for trial in told] == [0.0] * 3 + [scale] * 37
    assert len({trial.genome["mutation.seed"] for trial in told[3:]}) == 37


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_calls_give_the_same_genomes_and_another_seed_others(kind):
    def search(**changed):
        state = np.random.get_state()[1].tolist()
        told = bred(searcher(**KINDS[kind], **changed), lambda number, _: evaluated(number), 40, 4)
        assert np.random.get_state()[1].tolist() == state
        return told

    assert search() == search()
    assert search(seed=1) != search()


def test_results_that_are_not_finite_count_as_failed():
    def spoilt(number, genome):
        return {**evaluated(number), "code": math.nan} if number % 3 == 0 else evaluated(number)

    def failed(number, genome):
        return None if number % 3 == 0 else evaluated(number)

    for kind in ("map-elites", "cycle-qd"):
        first, second = (bred(searcher(**KINDS[kind]), evaluate, 40, 3) for evaluate in (spoilt, failed))
        assert [trial.genome for trial in first] == [trial.genome for trial in second]


def test_split_points_are_drawn_anywhere_or_left_out():
    for split, expected in ((True, 57), (False, 1)):
        told = bred(searcher(**KINDS["m2n2"], split=split), lambda number, _: evaluated(number), 60, 4)
        assert len({trial.genome["split"] for trial in told[3:]}) == expected
    assert told[3].genome["split"] == 1.0


def test_a_space_without_sources_and_an_only_parent_are_refused():
    with pytest.raises(ConfigError, match="no genes 'first' and 'second'"):
        searcher(genes=(FloatGene("weight", 0.0, 1.0, 0.5),), kind="map-elites")
    lone = (IntGene("first", -1, 9, -1), IntGene("second", -1, 9, -1))
    with pytest.raises(ConfigError, match="there are 1 parents"):
        searcher(genes=lone, kind="map-elites")


def test_numbers_are_brought_into_their_bounds():
    genes = LineageGenes((*LINEAGE[:2], IntGene("n", 1, 4, 2), ChoiceGene("c", ("a", "b"), "b")))
    genome = genes.genome(7, -1, {"n": 9, "unknown": 3})
    assert genome == {"first": 7, "second": -1, "n": 4, "c": "b"}
    assert type(genome["n"]) is int
    drawn_values = [genes.uniform(np.random.default_rng(seed)) for seed in range(50)]
    assert {each["n"] for each in drawn_values} == {1, 2, 3, 4}
    assert {each["c"] for each in drawn_values} == {"a", "b"}


def test_draws_are_in_proportion_to_weights():
    generator, weights = np.random.default_rng(0), np.array([0.0, 1.0, 3.0, 0.0])
    counts = Counter(drawn(generator, weights) for _ in range(4000))
    assert set(counts) == {1, 2}
    assert counts[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {drawn_other(generator, weights, 2) for _ in range(50)} == {1}
    assert {drawn_other(generator, np.array([0.0, 0.0, 5.0]), 2) for _ in range(50)} == {0, 1}
    assert {drawn(generator, np.zeros(3)) for _ in range(50)} == {0, 1, 2}


def test_the_table_says_what_they_need():
    kinds = {name for name, entry in SEARCHERS.items() if entry.lineage}
    assert {"m2n2", "map-elites", "cycle-qd"} <= kinds
    assert SEARCHERS["m2n2"].per_item
