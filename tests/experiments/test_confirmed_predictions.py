"""Points of the predicted front that a run confirms: chosen, numbered, asked, picked from, shown and exported."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli import main
from evomerge.experiments.amortized import Amortized, read_amortized
from evomerge.experiments.confirmation import Confirmation, read_confirmation
from evomerge.experiments.confirming import Model, ask, predictions
from evomerge.experiments.front_file import read_front, recipe_of
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.preflight import prepare
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.fitness import Responses
from evomerge.recipes import Recipe, parse_recipes
from evomerge.searchers.surrogates.explanation import Explanation, Prediction
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TRIALS, CONFIRMED = 10, 4
MAP = (
    "search_space={kind: parameter, method: linear}",
    "searcher={kind: map, points: 6, batch: 2, confirm: 4, seed: 1}",
    f"budget.trials={TRIALS}",
)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for the module; the workers are each run's own."""
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny")).parent


def started(folder: Path, out: Path, *settings: str) -> SilentDisplay:
    display = SilentDisplay()
    start(read_experiment(str(folder / "experiment.yaml"), (*MAP, *settings)), out, display)
    return display


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run."""
    out = folder / "run"
    started(folder, out)
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def confirmation_of(run: Path) -> Confirmation:
    found = read_confirmation(run / "confirmation.json")
    assert found is not None
    return found


def amortized_of(run: Path) -> Amortized:
    found = read_amortized(run / "amortized.json")
    assert found is not None
    return found


def entries(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_front(run / "front.jsonl") if entry.get("predicted")]


# A run


def test_predictions_are_numbered_on_after_the_trials(run: Path) -> None:
    found, amortized = confirmation_of(run), amortized_of(run)
    assert list(found.predictions) == list(range(TRIALS, TRIALS + CONFIRMED))
    chosen = [amortized.explanation.front[place] for place in amortized.explanation.confirm]
    assert list(found.predictions.values()) == chosen
    assert [found.candidates[number].label for number in found.predictions] == [
        f"prediction {number}" for number in range(TRIALS, TRIALS + CONFIRMED)
    ]
    assert [entry["trial"] for entry in entries(run)] == list(found.predictions)
    assert [entry["genome"] for entry in entries(run)] == [prediction.genome for prediction in chosen]
    assert [entry["objectives"] for entry in entries(run)] == [prediction.objectives for prediction in chosen]


def test_they_count_by_their_scores_on_items_that_nobody_searched_on(run: Path) -> None:
    prepared = prepare(read_experiment(str(run / "experiment.yaml")))
    asked, searched = (prepared.fitness.items(split) for split in ("confirmation", "search"))
    assert not any(set(asked[task]) & set(searched[task]) for task in asked)
    for entry in entries(run):
        recipe = recipe_of(entry)
        assert recipe == prepared.space.express(entry["genome"])
        assert ResponseStore(run / "responses", "search").read(recipe.hash) is None
        outcome = ResponseStore(run / "responses", "confirmation").read(recipe.hash)
        assert outcome is not None
        responses = Responses.from_json(outcome.responses or "")
        assert {task: sorted(part.items) for task, part in responses.tasks.items()} == {
            task: sorted(items) for task, items in asked.items()
        }
        scores = prepared.fitness.score(responses)
        assert {name: each["value"] for name, each in entry["confirmed"].items()} == scores
        assert scores != entry["objectives"]


def test_a_resumed_run_says_the_same_and_asks_nothing(run: Path, folder: Path) -> None:
    again = folder / "again"
    shutil.copytree(run, again)
    (again / "confirmation.json").unlink()
    display = SilentDisplay()
    assert resume(again, display).finished
    for name in ("confirmation.json", "front.jsonl", "amortized.json"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_an_extended_run_numbers_them_anew(run: Path, folder: Path) -> None:
    longer = folder / "longer"
    shutil.copytree(run, longer)
    assert resume(longer, SilentDisplay(), extend_trials=2).finished
    found = confirmation_of(longer)
    assert list(found.predictions) == list(range(TRIALS + 2, TRIALS + 2 + CONFIRMED))
    assert len(Journal.read(longer / "journal.log").trials()) == TRIALS + 2
    assert [row.label for row in summarise(longer).predictions] == [f"prediction {n}" for n in found.predictions]


def test_none_are_confirmed_if_none_are_wanted_and_runs_compare_by_what_was(call, run: Path, folder: Path) -> None:
    without = folder / "without"
    started(folder, without, "searcher.confirm=0", "searcher.seed=2")
    assert not confirmation_of(without).predictions
    assert not entries(without)
    assert len(amortized_of(without).explanation.front) > CONFIRMED
    code, text = call("compare", run, without, "--by", "folder")
    assert code == 0, text


def test_the_summary_holds_predictions_against_scores(run: Path) -> None:
    summary, found = summarise(run), confirmation_of(run)
    assert summary.surrogates is not None
    for name, told in summary.surrogates.confirmed.items():
        for one, (number, prediction) in zip(told, found.predictions.items(), strict=True):
            row = found.candidates[number]
            interval = row.intervals[name]
            of_mean = (interval.high - interval.low) / 3.92  # equally many items in either split
            error = np.sqrt(prediction.standard_errors[name] ** 2 + 2 * of_mean**2)
            assert (one.trial, one.foretold, one.score) == (number, prediction.objectives[name], row.scores[name])
            assert one.standard_error == pytest.approx(error, rel=0.2)


def test_status_front_and_report_tell_of_them(call, run: Path) -> None:
    for command in ("status", "front"):
        code, text = call(command, run)
        assert code == 0, text
        text = " ".join(text.split())
        assert "near: the 95% interval predicted holds the score on unseen items of" in text
        assert f"points, {CONFIRMED} of them confirmed:" in text
    assert "Predicted front, on the confirmation items" in text
    code, text = call("report", run)
    assert code == 0, text
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The confirmed points of the predicted front" in page
    assert 'id="figure-predictions-0"' in page
    assert f"prediction {TRIALS}" in page


def test_an_asked_front_marks_them_as_confirmed(call, run: Path) -> None:
    code, text = call("front", run, "--json")
    assert code == 0, text
    assert [entry["trial"] for entry in json.loads(text) if entry.get("predicted")] == list(
        range(TRIALS, TRIALS + CONFIRMED)
    )
    for share in np.linspace(0.02, 0.98, 25):
        code, text = call("front", run, "--prefer", f"near={share},far={1 - share}", "--json")
        assert code == 0, text
        found = json.loads(text)
        if found["basis"] == "confirmed" and found["evaluated"] is None:
            assert found["trial"] >= TRIALS
            entry = next(entry for entry in entries(run) if entry["trial"] == found["trial"])
            assert (found["recipe"], found["confirmed"]) == (entry["recipe"], entry["confirmed"])
            code, text = call("front", run, "--prefer", f"near={share},far={1 - share}")
            assert f"# prediction {found['trial']}, confirmed:\n#   near" in text
            assert " predicted, " in text
            assert "on items that the search never saw" in text
            break
    else:
        pytest.fail("no preference is answered by a confirmed prediction")


# Export


def test_a_prediction_is_exported_verified_and_told_as_one(call, run: Path, folder: Path) -> None:
    number = TRIALS + 1
    code, text = call("export", run, folder / "exported", "--trial", number)
    assert code == 0, text
    asked = sum(each["items"] for each in entries(run)[1]["confirmed"].values())
    assert f"prediction {number}, {asked} responses equal the prediction's" in text
    card = (folder / "exported" / "README.md").read_text(encoding="utf-8")
    assert f"- this model: prediction {number}\n" in card
    assert (
        f"- it was predicted by surrogates fitted to the {TRIALS} trials with scores, and never evaluated in the "
        "search: only on the held-out items" in card
    )
    assert f"{CONFIRMED} points of the front that surrogates predict" in card
    (stage,) = parse_recipes((folder / "exported" / "recipe.yaml").read_text(encoding="utf-8"))
    assert stage.recipe == recipe_of(entries(run)[1])


def test_export_refuses_numbers_that_are_neither(call, run: Path) -> None:
    code, text = call("export", run, "--trial", TRIALS + CONFIRMED)
    assert code == 2
    assert f"trial {TRIALS + CONFIRMED} does not exist" in text


def test_picks_are_among_all_that_are_confirmed(call, run: Path) -> None:
    found = confirmation_of(run)
    scores = {number: row.scores for number, row in found.candidates.items()}
    best = max(scores, key=lambda number: scores[number]["near"])
    code, text = call("export", run, "--pick", "prefer:near=1,far=0", "--dry-run")
    assert code == 0, text
    kind = "prediction" if best in found.predictions else "trial"
    assert f"- this model: {kind} {best}" in text
    code, text = call("export", run, "--pick", f"trial:{TRIALS}", "--dry-run")
    assert f"- this model: prediction {TRIALS}\n" in text
    assert found.picked.mean.value == max(row.mean.value for row in found.candidates.values())
    code, text = call("export", run, "--dry-run")
    assert f"corrected for the {len(scores)} trials and predictions picked from" in text


# Choosing and asking


def recipe(weight: float) -> Recipe:
    parts = [{"model": "a", "parameters": {"weight": weight}}, {"model": "b", "parameters": {"weight": 1 - weight}}]
    return Recipe.model_validate({"merge_method": "linear", "models": parts})


def trial(number: int, weight: float, *, failed: bool = False) -> Trial:
    return Trial(number, {"w": weight}, None if failed else {"up": 1.0}, recipe(weight).hash)


WEIGHTS = (0.1, 0.2, 0.3, 0.2)
FRONT = [Prediction({"w": weight}, {"up": weight}, {"up": 0.1}) for weight in WEIGHTS]


def test_recipes_of_trials_and_those_before_are_left_out() -> None:
    recipes = [recipe(weight).model_dump(mode="json", exclude_defaults=True) for weight in WEIGHTS]
    amortized = Amortized(Explanation({}, FRONT, {}, {}, (3, 2, 1, 0)), recipes)
    found = predictions(amortized, [trial(0, 0.5), trial(1, 0.3), trial(2, 0.1, failed=True)])
    assert found == [Model("prediction 3", "prediction", 3, recipe(0.2), FRONT[3])]
    assert [model.recipe for model in predictions(amortized, [])] == [recipe(0.2), recipe(0.3), recipe(0.1)]
    none = dataclasses.replace(amortized, explanation=dataclasses.replace(amortized.explanation, confirm=()))
    assert predictions(none, []) == []


class Answers:
    """Evaluations of which some fail."""

    def __init__(self, failing: set[str]) -> None:
        self.failing, self.started = failing, 0

    def start(self, recipe: Recipe, **_: Any) -> None:
        self.started += 1

    def outcome(self, recipe: Recipe) -> Any:
        from evomerge.workers import Outcome

        failed = recipe.hash in self.failing
        return Outcome(None, "out of luck") if failed else Outcome(Responses({}).to_json(), None)


class Scores:
    """A fitness that cannot score the last of the models."""

    calls = 0

    def score(self, responses: Responses) -> dict[str, float]:
        self.calls += 1
        if self.calls == 2:
            raise ValueError("no number")
        return {}


def test_what_cannot_be_confirmed_is_left_out_with_a_note() -> None:
    models = [
        Model(f"prediction {n}", "prediction", n, recipe(w), FRONT[0]) for n, w in enumerate((0.1, 0.2, 0.3, 0.4))
    ]
    notes: list[str] = []
    evaluations = Answers({recipe(0.2).hash})
    found = ask(models, evaluations, Scores(), notes.append)  # type: ignore[arg-type]
    assert [(model.label, model.kind, model.trial, model.predicted) for model in found] == [
        ("prediction 0", "prediction", 0, FRONT[0]),
        ("prediction 3", "prediction", 3, FRONT[0]),
    ]
    assert notes == [
        "prediction 1 could not be confirmed and is left out: out of luck",
        "prediction 2 could not be confirmed and is left out: no number",
    ]
    assert evaluations.started == 4
