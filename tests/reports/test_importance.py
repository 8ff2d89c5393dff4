"""Gene importances: the genes that decide are found, with their direction, whatever kind of gene they are."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable

import optuna
import pytest
from optuna.importance import FanovaImportanceEvaluator

from evomerge.reports.importance import FEWEST_TRIALS, MEAN, importance, over_depth, without_depth
from evomerge.reports.summary import ObjectiveInfo, TrialRow
from evomerge.search_spaces.genes import Value


def trials_of(count: int, score: Callable[[dict[str, Value]], float]) -> list[TrialRow]:
    generator = random.Random(0)
    rows = []
    for number in range(count):
        genome: dict[str, Value] = {
            "up": generator.random(),
            "down": generator.random(),
            "noise": generator.random(),
            "count": generator.randint(1, 5),
            "choice": generator.choice(["a", "b"]),
            "constant": 0.5,
        }
        rows.append(TrialRow(number, genome, {"score": score(genome)}))
    return rows


def test_the_decisive_genes_come_first_with_the_direction_of_their_effect() -> None:
    rows = trials_of(120, lambda g: 4 * float(g["up"]) - 2 * float(g["down"]))
    found = importance(rows, [ObjectiveInfo("score")])["score"]
    assert [gene.gene for gene in found[:2]] == ["up", "down"]
    assert found[0].share > 0.6
    assert found[0].trend is not None
    assert found[0].trend > 0.5
    assert found[1].trend is not None
    assert found[1].trend < -0.2
    assert math.isclose(sum(gene.share for gene in found), 1.0)


def test_integer_and_choice_genes_are_weighed_and_constant_ones_left_out() -> None:
    rows = trials_of(120, lambda g: float(g["count"]) + (6.0 if g["choice"] == "b" else 0.0))
    found = {gene.gene: gene for gene in importance(rows, [ObjectiveInfo("score")])["score"]}
    assert found["choice"].share > found["count"].share > found["noise"].share
    assert found["choice"].trend is None
    assert "constant" not in found


def test_genes_that_are_left_out_take_no_share_from_the_others() -> None:
    rows = trials_of(120, lambda g: float(g["count"]) + 0.2 * float(g["up"]))
    found = importance(rows, [ObjectiveInfo("score")], without=("count", "choice"))["score"]
    assert {gene.gene for gene in found} == {"up", "down", "noise"}
    assert math.isclose(sum(gene.share for gene in found), 1.0)


def test_the_trend_of_a_minimised_objective_points_to_better() -> None:
    rows = trials_of(60, lambda g: -float(g["up"]))
    found = importance(rows, [ObjectiveInfo("score", "minimize")])["score"]
    assert found[0].gene == "up"
    assert found[0].trend is not None
    assert found[0].trend > 0.9


def test_the_mean_of_objectives_weighs_scales_alike_and_obeys_the_weights() -> None:
    rows = [
        TrialRow(t.number, t.genome, {"small": float(t.genome["up"]), "large": 1000 * float(t.genome["down"])})
        for t in trials_of(120, lambda _: 0.0)
    ]
    even = importance(rows, [ObjectiveInfo("small"), ObjectiveInfo("large")])
    assert set(even) == {MEAN, "small", "large"}
    shares = {gene.gene: gene.share for gene in even[MEAN]}
    assert 0.3 < shares["up"] < 0.7
    skewed = importance(rows, [ObjectiveInfo("small", weight=5.0), ObjectiveInfo("large", weight=1.0)])
    assert skewed[MEAN][0].gene == "up"
    assert skewed[MEAN][0].share > 0.8


def test_too_few_trials_or_a_flat_objective_claim_nothing() -> None:
    few = trials_of(FEWEST_TRIALS - 1, lambda g: float(g["up"]))
    assert importance(few, [ObjectiveInfo("score")]) == {}
    flat = importance(trials_of(30, lambda _: 0.5), [ObjectiveInfo("score")])["score"]
    assert {gene.share for gene in flat} == {0.0}


def test_failed_trials_and_values_that_are_not_finite_are_left_out() -> None:
    rows = trials_of(40, lambda g: float(g["up"]))
    broken = [TrialRow(90, rows[0].genome, None, "failed"), TrialRow(91, rows[0].genome, {"score": math.nan})]
    assert importance([*rows, *broken], [ObjectiveInfo("score")]) == importance(rows, [ObjectiveInfo("score")])


def test_the_shares_are_those_of_optunas_fanova_on_the_same_trials() -> None:
    rows = trials_of(50, lambda g: 2 * float(g["up"]) + float(g["count"]))
    names = ("up", "down", "noise", "count")
    study = optuna.create_study(direction="maximize")
    for row in rows:
        params = {name: row.genome[name] for name in names}
        reals = {n: [float(r.genome[n]) for r in rows] for n in names[:3]}
        kinds: dict[str, optuna.distributions.BaseDistribution] = {
            n: optuna.distributions.FloatDistribution(min(reals[n]), max(reals[n])) for n in names[:3]
        }
        kinds["count"] = optuna.distributions.IntDistribution(1, 5)
        assert row.objectives is not None
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=row.objectives["score"]))
    evaluator = FanovaImportanceEvaluator(n_trees=16, max_depth=8, seed=0)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    plain = [TrialRow(r.number, {n: r.genome[n] for n in names}, r.objectives) for r in rows]
    found = {gene.gene: gene.share for gene in importance(plain, [ObjectiveInfo("score")])["score"]}
    assert found == pytest.approx(expected)


def test_optunas_log_level_is_left_as_it_was() -> None:
    before = optuna.logging.get_verbosity()
    importance(trials_of(20, lambda g: float(g["up"])), [ObjectiveInfo("score")])
    assert optuna.logging.get_verbosity() == before


def test_genes_over_depth_become_a_table_in_the_order_of_the_genome() -> None:
    values = {
        "m.weight.layer10.mlp": 3.0,
        "m.weight.layer2.mlp": 1.0,
        "m.weight.layer2.norm": 2.0,
        "m.weight.outside.norm": 4.0,
        "m.weight.embedding": 5.0,
        "t": 9.0,
    }
    table = over_depth(values)
    assert table is not None
    assert (table.axis, table.rows) == ("layer", ("m.weight.mlp", "m.weight.norm"))
    assert table.columns == ("2", "10", "outside")
    assert table.values[0][:2] == (1.0, 3.0)
    assert (table.values[1][0], table.values[1][2]) == (2.0, 4.0)
    assert math.isnan(table.values[1][1])
    assert without_depth(values) == {"m.weight.embedding": 5.0, "t": 9.0}


@pytest.mark.parametrize("genes", [{"math.weight": 1.0}, {"m.weight.layer0": 1.0}, {"layer2.weight": 1.0}])
def test_genes_without_depth_make_no_table(genes: dict[str, float]) -> None:
    assert over_depth(genes) is None


def test_importing_the_summary_stays_light() -> None:
    heavy = "{'torch', 'plotly', 'optuna', 'sklearn', 'lm_eval', 'ray'}"
    modules = "sys, evomerge.reports.summary, evomerge.reports.progress"
    code = f"import {modules}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
