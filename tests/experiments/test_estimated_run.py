"""Runs whose objectives are estimated from a few items: real workers, real banks, kills and resumption."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.experiments.calibration import read_banks
from evomerge.experiments.export_run import choose, export
from evomerge.experiments.journal import Journal
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment
from evomerge.fitness import Fitness, Responses
from evomerge.fitness.estimation import estimation, read
from evomerge.testing.stored import kill_after
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

OBJECTIVE = "fitness.objectives=[{function: './score.py:right', name: right}]"
ESTIMATE = "fitness.estimate={items: 5, choice: score-optimal, smooth: false, calibration: {models: 5}}"
RACE = "fitness.estimate.adaptive={batch: 2, confidence: 0.6}"
ROTATING = "fitness.estimate={items: 5, calibration: {models: 5}}"


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture(scope="module", params=["fixed", "race", "rotating"])
def whole(folder: Path, request: pytest.FixtureRequest) -> Path:
    """An uninterrupted run."""
    out = folder / f"whole-{request.param}"
    more = {"fixed": (), "race": (RACE,), "rotating": (ROTATING, RACE)}
    overrides = (OBJECTIVE, ESTIMATE, *more[request.param])
    assert start(read_experiment(str(folder / "experiment.yaml"), overrides), out, SilentDisplay()).finished
    return out


def trials(run: Path) -> list[tuple[int, dict, dict | None, dict, dict]]:
    found = Journal.read(run / "journal.log").trials()
    return [(t.number, t.genome, t.objectives, t.standard_errors, t.items) for t in found]


def stored(run: Path, part: str) -> list[Responses]:
    store = ResponseStore(run / "responses", part)
    outcomes = [store.read(recipe_hash) for recipe_hash in store]
    return [Responses.from_json(outcome.responses or "") for outcome in outcomes if outcome is not None]


def test_trials_are_asked_few_items_and_say_how_sure_they_are(whole: Path) -> None:
    asked = [sum(items.values()) for *_, items in trials(whole)]
    assert max(asked) == 5
    assert (min(asked) < 5) == ("fixed" not in whole.name)
    assert all(0 <= errors["right"] < 0.5 for *_, errors, _ in trials(whole))
    facts = Journal.read(whole / "journal.log").facts()
    everything = facts["item_counts"]["search"]
    assert len(facts["calibration"]) == 5 + 5  # base, parents, uniform and random merges
    calibration = stored(whole, "calibration")
    assert len(calibration) == len(facts["calibration"])
    assert all({task: len(part.items) for task, part in r.tasks.items()} == everything for r in calibration)


def test_estimates_are_those_of_the_banks_and_responses_kept(whole: Path) -> None:
    """From the run's files alone: every trial's objective again."""
    journal = Journal.read(whole / "journal.log")
    config = read_experiment(str(whole / "experiment.yaml")).fitness
    fitness = Fitness(config)
    assert config.estimate is not None
    banks = read_banks(whole / "banks", ["right"])
    again = read(fitness, banks, journal.facts()["estimation"], config.estimate)
    for trial in journal.trials():
        outcome = ResponseStore(whole / "responses", "search").read(trial.recipe_hash)
        assert outcome is not None
        found = again.score(fitness, Responses.from_json(outcome.responses or ""))
        told = trial.own.get("right") or (trial.objectives["right"], trial.standard_errors["right"])
        assert found["right"] == tuple(told)


def test_the_same_models_give_the_same_estimation(whole: Path) -> None:
    """Fitted anew from the banks: what the journal tells."""
    journal = Journal.read(whole / "journal.log")
    config = read_experiment(str(whole / "experiment.yaml")).fitness
    fitness = Fitness(config)
    (bank,) = read_banks(whole / "banks", ["right"]).values()
    assert bank.parents == ("base", "a", "b", "c")
    task = fitness.objectives[0].task
    responses = {tuple(r.tasks[task].values[fitness.objectives[0].metric]): r for r in stored(whole, "calibration")}
    order = {item: n for n, item in enumerate(bank.items)}
    parents = {}
    for name in bank.parents:
        row = bank.responses[bank.models.index(name)]
        match = [
            r
            for r in responses.values()
            if np.allclose([row[order[i]] for i in r.tasks[task].items], fitness.item_values(r, "right"), atol=1e-6)
        ]
        parents[name] = match[0]
    assert config.estimate is not None
    fitted = json.loads(json.dumps(estimation(fitness, {"right": bank}, parents, config.estimate).to_json()))
    assert fitted["right"]["rows"] == journal.facts()["estimation"]["right"]["rows"]
    assert fitted["right"]["share"] == pytest.approx(journal.facts()["estimation"]["right"]["share"], abs=1e-4)


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_run_cut_anywhere_goes_on_as_if_it_never_was(folder: Path, whole: Path, kept: int) -> None:
    """Without the last lines of its journal, and without what was stored for later trials."""
    out = folder / f"{whole.name}-cut-{kept}"
    shutil.copytree(whole, out)
    (out / "confirmation.json").unlink()
    lines = (out / "journal.log").read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if json.loads(line)["op_code"] == 4)
    (out / "journal.log").write_text("".join(lines[: first + kept]))
    if kept == 0:
        (out / "responses" / "search.jsonl").unlink()
    assert resume(out, SilentDisplay()).finished
    assert trials(out) == trials(whole)


def test_the_winner_is_exported_and_checked_on_the_items_it_was_asked(whole: Path) -> None:
    found = export(whole, None, choose(whole, trial=None, pick=None), lambda text: None)
    assert found.responses_checked > 0
    shutil.rmtree(found.folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fitness.estimate={items: 500}", "has 1[0-9] search items, and 500 are asked"),
        ("fitness.estimate={items: 5, soft: {}}", "function"),
        ("fitness.estimate={items: 5, adaptive: {batch: 5}}", "batches of 5 items, and at most 5 are asked"),
        ("fitness.estimate={items: 5, calibration: {dimensions: 6}}", "5 items are fewer than the 6 dimensions"),
        ("fitness.estimate={kind: gpm-irt}", "gmp-irt"),
        ("fitness.estimate={items: 5, bank: ./nowhere}", "nowhere"),
    ],
)
def test_what_cannot_be_estimated_is_said_before_work_starts(folder: Path, override: str, message: str) -> None:
    def begin() -> None:
        experiment = read_experiment(str(folder / "experiment.yaml"), (OBJECTIVE, override))
        start(experiment, folder / "refused", SilentDisplay())

    with pytest.raises(ConfigError, match=message):
        begin()
    assert not (folder / "refused").exists()


def test_responses_outside_0_and_1_are_refused_in_words(folder: Path) -> None:
    experiment = read_experiment(
        str(folder / "experiment.yaml"), ("fitness.objectives=[{function: './score.py:near'}]", ESTIMATE)
    )
    with pytest.raises(Exception, match=r"only responses in \[0, 1\] can be estimated"):
        start(experiment, folder / "outside", SilentDisplay())
    assert not (folder / "outside").exists()


@pytest.mark.slow
def test_a_race_killed_again_and_again_ends_as_if_it_never_was(folder: Path) -> None:
    """SIGKILL of the driver after random numbers of evaluations, calibration included."""
    runs = []
    for name, kills in (("quiet", 0), ("killed", 5)):
        out, moments = folder / name, random.Random(0)
        begin = ("run", str(folder / "experiment.yaml"), "--out", str(out))
        settings = [part for setting in (OBJECTIVE, ROTATING, RACE, "budget.trials=60") for part in ("--set", setting)]
        for _ in range(kills):
            arguments = ("resume", str(out)) if (out / "experiment.yaml").exists() else (*begin, *settings)
            process = subprocess.Popen(
                [sys.executable, "-m", "evomerge", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            kill_after(process, out, moments.randint(1, 20), moments.uniform(0, 0.5))
        arguments = ("resume", str(out)) if (out / "experiment.yaml").exists() else (*begin, *settings)
        subprocess.run([sys.executable, "-m", "evomerge", *arguments], check=True, capture_output=True)
        runs.append(trials(out))
    assert runs[0] == runs[1]
