"""The summary of a run with estimated scores, against the responses that the run stored."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.experiments.calibration import read_banks
from evomerge.experiments.export_run import choose, describe
from evomerge.experiments.front_file import read_front
from evomerge.experiments.journal import Journal
from evomerge.experiments.run import start
from evomerge.experiments.schema import read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.experiments.summarise_estimates import ability, checks
from evomerge.fitness import Responses
from evomerge.fitness.irt.bank import ItemBank, ItemParameters
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.responses import TaskResponses
from evomerge.reports.summary import ConfirmedRow, Estimates, Interval, RunSummary
from evomerge.testing.stored import stored_responses
from evomerge.testing.summaries import example_summary
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
MERGES, TRIALS = 5, 14


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished race on two objectives in [0, 1]."""
    path = tiny_experiment(tmp_path_factory.mktemp("tiny"))
    score = path.parent / "score.py"
    score.write_text(score.read_text().replace("torch.tanh(3 * mean +", "torch.sigmoid(30 * mean +"))
    estimate = f"{{items: 6, calibration: {{models: {MERGES}}}, adaptive: {{batch: 2, confidence: 0.6}}}}"
    settings = [f"fitness.estimate={estimate}", f"budget.trials={TRIALS}"]
    out = path.parent / "run"
    assert start(read_experiment(str(path), settings), out, SilentDisplay()).finished
    return out


@pytest.fixture(scope="module")
def found(run: Path) -> Estimates:
    estimates = summarise(run).estimates
    assert estimates is not None
    return estimates


def test_the_items_spent_are_those_of_the_stored_responses(run: Path, found: Estimates) -> None:
    trials, calibration = stored_responses(run, "search"), stored_responses(run, "calibration")
    assert found.evaluated == len(trials)
    assert found.merges == MERGES
    for task, spent in found.spent.items():
        everything = {len(tasks[task]["items"]) for tasks in calibration.values()}
        assert everything == {spent.search}
        assert spent.trials == sum(len(tasks[task]["items"]) for tasks in trials.values())
        references = len(summarise(run).references)
        assert spent.calibration == sum(len(tasks[task]["items"]) for tasks in calibration.values()) - (
            references * spent.search
        )
        assert spent.exact == len(trials) * spent.search
        assert spent.soft == 0
    assert found.total.total == sum(spent.calibration + spent.trials for spent in found.spent.values())
    assert found.adaptive


def test_checks_hold_the_journals_estimates_and_the_confirmed_scores(run: Path, found: Estimates) -> None:
    journal, summary = Journal.read(run / "journal.log").trials(), summarise(run)
    confirmed = {row.trial: row for row in summary.confirmed if row.trial is not None}
    assert set(found.checks) == {"near", "far"}
    for name, members in found.checks.items():
        assert [member.trial for member in members] == list(confirmed)
        for member in members:
            trial = journal[member.trial]
            assert member.estimate.value == (trial.objectives or {})[name]
            assert member.confirmed == confirmed[member.trial].objectives[name]
            assert member.difference.value == member.estimate.value - member.confirmed.value
            assert summary.trials[member.trial].standard_errors == trial.standard_errors


def test_front_entries_hold_standard_errors(run: Path) -> None:
    journal = Journal.read(run / "journal.log").trials()
    for entry in read_front(run / "front.jsonl"):
        assert entry["standard_errors"] == journal[entry["trial"]].standard_errors
        assert set(entry["standard_errors"]) == {"near", "far"}


def test_abilities_are_of_the_reference_models_and_the_winner(run: Path, found: Estimates) -> None:
    summary = summarise(run)
    assert [row.label for row in found.abilities] == ["base", "a", "b", "c", "uniform", f"trial {summary.pick}"]
    assert found.dimensions == {"near": 1, "far": 1}
    for name, bank in read_banks(run / "banks", ["near", "far"]).items():
        everyone = abilities(bank.parameters, bank.responses)  # the banks keep the reference models' responses
        for row in found.abilities[:-1]:
            place = bank.models.index(row.label)
            expected = everyone.means[place, 0], everyone.standard_errors[place, 0]
            assert row.values[name] == pytest.approx(expected, abs=1e-4)
        assert found.abilities[-1].values[name][1] > everyone.standard_errors.max()  # fewer items say less


def test_the_card_says_how_many_items_trials_were_asked(run: Path) -> None:
    search = describe(run, choose(run, trial=None, pick=None))[2].search
    assert search is not None
    assert search.estimate is not None
    for task, ends in search.estimate.items.items():
        counts = [len(tasks[task]["items"]) for tasks in stored_responses(run, "search").values()]
        assert ends == (min(counts), max(counts))
    assert set(search.estimate.items) == set(search.search_items)
    assert (search.estimate.merges, search.estimate.bank, search.estimate.soft) == (MERGES, "", False)


def test_a_run_without_its_responses_says_less_instead_of_failing(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        if path.name != "responses":
            (tmp_path / path.name).symlink_to(path)
    found = summarise(tmp_path).estimates
    assert found is not None
    assert all(row.values == {} for row in found.abilities)
    assert found.total.total > 0


def checked(summary: RunSummary, error: float, confirmed: Interval, items: int) -> Interval:
    """Return the difference of one trial, whose estimate is 0.5."""
    trial = replace(summary.trials[0], objectives={"x": 0.5}, standard_errors={"x": error})
    row = ConfirmedRow("trial 0", 0, "trial", {"x": confirmed}, confirmed)
    (only,) = checks(replace(summary, trials=[trial], confirmed=[row]), "x", items)
    return only.difference


def test_the_difference_has_the_errors_of_the_estimate_and_of_both_sets_of_items() -> None:
    summary = example_summary(trials=1)
    confirmed = Interval(0.6, 0.57, 0.63, 400)
    found = checked(summary, 0.02, confirmed, 100)
    assert found.value == pytest.approx(-0.1)
    # 100 search items are drawn with twice the error of 400
    assert found.high - found.value == pytest.approx(math.sqrt((1.96 * 0.02) ** 2 + 0.03**2 + 0.06**2))
    alone = checked(summary, 0.02, Interval(0.6, 0.6, 0.6, 1), 100)  # of a single item nothing is known
    assert not alone.known


def bank_of(slopes: np.ndarray, intercepts: np.ndarray) -> ItemBank:
    items = tuple(f"i{number}" for number in range(len(slopes)))
    parameters = ItemParameters.logistic(slopes, intercepts)
    return ItemBank("task", "acc", items, parameters, ("m",), np.zeros((1, len(slopes))))


def answers(bank: ItemBank, values: list[Any], items: tuple[str, ...]) -> Responses:
    return Responses({bank.task: TaskResponses(items, {bank.metric: values})})


def test_one_ability_is_that_of_the_quadrature_whatever_the_order_of_the_items() -> None:
    bank = bank_of(np.array([[1.0], [2.0]]), np.array([0.0, -1.0]))
    nodes = np.linspace(-6, 6, 4001)
    first, second = 1 / (1 + np.exp(-nodes)), 1 / (1 + np.exp(-(2 * nodes - 1)))
    density = np.exp(-(nodes**2) / 2) * first * (1 - second)
    density /= density.sum()
    mean = float(density @ nodes)
    expected = (mean, float(np.sqrt(density @ (nodes - mean) ** 2)))
    assert ability(bank, answers(bank, [0.0, 1.0], ("i1", "i0"))) == pytest.approx(expected, abs=1e-4)
    assert ability(bank, answers(bank, [None, None], ("i1", "i0"))) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_of_several_abilities_the_expected_score_is_told() -> None:
    generator = np.random.default_rng(0)
    bank = bank_of(generator.normal(1, 0.5, (60, 2)), generator.normal(0, 1, 60))
    value, error = ability(bank, answers(bank, [1.0] * 60, bank.items))
    worse, doubt = ability(bank, answers(bank, [1.0, 0.0] * 5, bank.items[:10]))
    assert 0 < worse < value < 1
    assert value > 0.9
    assert 0 < error < doubt < 0.3
