"""What surrogates say: written and read back, asked by preference, and told as predicted where nobody evaluated it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.errors import RunError
from evomerge.experiments.amortized import Amortized, answer, answers, read_amortized, write_amortized
from evomerge.recipes import Recipe, parse_recipes
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.surrogates.explanation import Explanation, Prediction, SurrogateFacts
from evomerge.testing.written_runs import write_run

OBJECTIVES = (ObjectiveSpec("up", "maximize"), ObjectiveSpec("down", "minimize"))
EVEN = {"up": 1.0, "down": 1.0}
FACTS = SurrogateFacts(
    link="logit",
    evaluations=9,
    coefficients=6,
    ridge=0.01,
    misfit=0.02,
    r2=0.97,
    r2_left_out=0.9,
    r2_error=0.01,
    error_left_out=0.03,
)


def recipe(weight: float) -> Recipe:
    parts = [{"model": "a", "parameters": {"weight": weight}}, {"model": "b", "parameters": {"weight": 1 - weight}}]
    return Recipe.model_validate({"merge_method": "linear", "models": parts})


class Space:
    """Expresses the gene ``w`` as the first parent's weight."""

    genes = ()

    def express(self, genome: dict[str, Any]) -> Recipe:
        return recipe(genome["w"])


def predicted(w: float, up: float, down: float) -> Prediction:
    return Prediction({"w": w}, {"up": up, "down": down}, {"up": 0.02, "down": 0.1})


EXPLANATION = Explanation(
    surrogates={"up": FACTS, "down": FACTS},
    front=[predicted(0.25, 0.8, 1.0), predicted(0.5, 0.5, 0.2)],
    trials={0: predicted(0.1, 0.4, 0.4), 3: predicted(0.9, 0.9, 2.0)},
    foretold={3: predicted(0.9, 0.95, 1.5)},
    confirm=(1, 0),
)


def entry(trial: int, up: float, down: float, *, confirmed: bool = False) -> dict[str, Any]:
    """A line of front.jsonl."""
    interval = {"value": up - 0.1, "low": up - 0.2, "high": up, "items": 50}
    return {
        "trial": trial,
        "genome": {"w": trial / 10},
        "objectives": {"up": up, "down": down},
        "confirmed": {"up": interval, "down": interval} if confirmed else None,
        "recipe": as_data(trial / 10),
    }


def as_data(weight: float) -> dict[str, Any]:
    return recipe(weight).model_dump(mode="json", exclude_defaults=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_amortized(tmp_path / "amortized.json", EXPLANATION, Space())  # type: ignore[arg-type]
    return tmp_path / "amortized.json"


@pytest.fixture
def amortized(file: Path) -> Amortized:
    found = read_amortized(file)
    assert found is not None
    return found


def test_what_was_written_is_read_back(amortized: Amortized) -> None:
    assert amortized.explanation == EXPLANATION
    assert [Recipe.model_validate(data) for data in amortized.recipes] == [recipe(0.25), recipe(0.5)]


def test_no_file_is_no_answer_and_a_damaged_one_is_an_error(file: Path, tmp_path: Path) -> None:
    assert read_amortized(tmp_path / "nowhere.json") is None
    whole = file.read_text()
    without_recipe = json.loads(whole)
    del without_recipe["front"][0]["recipe"]
    without_facts = json.loads(whole) | {"surrogates": {"up": {"link": "logit"}}}
    lacking = [json.dumps(data) for data in (without_recipe, without_facts)]
    for damaged in (whole[: len(whole) // 2], "", "{}", "[]", "null", *lacking):
        file.write_text(damaged)
        with pytest.raises(RunError, match=r"amortized\.json is damaged \(.*\); resume the run"):
            read_amortized(file)


def test_what_nobody_evaluated_comes_with_the_best_that_somebody_did(amortized: Amortized) -> None:
    front = [entry(0, 0.45, 0.5), entry(3, 0.9, 2.0)]
    chosen, evaluated = answer(front, amortized, EVEN, OBJECTIVES)
    assert (chosen.basis, chosen.trial, chosen.recipe) == ("predicted", None, as_data(0.25))
    assert (chosen.objectives, chosen.standard_errors) == ({"up": 0.8, "down": 1.0}, {"up": 0.02, "down": 0.1})
    assert (chosen.evaluated, chosen.confirmed) == (None, None)
    assert evaluated is not None
    # within up 0.4 to 0.9 and down 0.2 to 2.0 both lack all of one objective, and trial 0 a ninth of the other besides
    assert (evaluated.basis, evaluated.trial) == ("evaluated", 3)


def test_a_trial_that_suits_best_is_the_only_answer(amortized: Amortized) -> None:
    front = [entry(0, 0.45, 0.5), entry(3, 0.9, 2.0, confirmed=True)]
    chosen, evaluated = answer(front, amortized, {"up": 1.0, "down": 0.0}, OBJECTIVES)
    assert (chosen.basis, chosen.trial, evaluated) == ("confirmed", 3, None)
    assert chosen.evaluated == {"up": 0.9, "down": 2.0}
    assert chosen.confirmed is not None
    assert chosen.confirmed["up"]["value"] == pytest.approx(0.8)
    assert chosen.recipe == as_data(0.3)


def test_weight_0_leaves_an_objective_out(amortized: Amortized) -> None:
    front = [entry(0, 0.45, 0.5), entry(3, 0.9, 2.0)]
    chosen, _ = answer(front, amortized, {"up": 0.0, "down": 1.0}, OBJECTIVES)
    assert chosen.objectives == {"up": 0.5, "down": 0.2}


def test_trials_count_by_what_surrogates_say_of_them_not_by_luck(amortized: Amortized) -> None:
    lucky = entry(0, 0.99, 0.0)  # by the surrogates 0.4 and 0.4
    known = answers([lucky], amortized, OBJECTIVES)
    assert known[0].objectives == {"up": 0.4, "down": 0.4}
    assert known[0].evaluated == {"up": 0.99, "down": 0.0}
    assert [each.basis for each in known] == ["evaluated", "predicted", "predicted"]


def test_without_surrogates_trials_count_by_their_scores() -> None:
    front = [entry(0, 0.1, 0.1), entry(1, 0.5, 0.4), entry(2, 0.9, 2.0)]
    chosen, evaluated = answer(front, None, EVEN, OBJECTIVES)
    assert (chosen.trial, chosen.objectives, chosen.standard_errors) == (1, {"up": 0.5, "down": 0.4}, {})
    assert evaluated is None


def test_a_prediction_that_lacks_an_objective_is_no_candidate(amortized: Amortized) -> None:
    more = (*OBJECTIVES, ObjectiveSpec("new", "maximize"))
    assert answers([entry(0, 0.4, 0.5)], amortized, more) == []


def test_a_confirmed_prediction_is_one_answer_and_known_as_confirmed(amortized: Amortized) -> None:
    interval = {"value": 0.7, "low": 0.6, "high": 0.8, "items": 50}
    tested = {
        **asdict(EXPLANATION.front[0]),
        "trial": 10,
        "predicted": True,
        "confirmed": {"up": interval, "down": interval},
        "recipe": as_data(0.25),
    }
    known = answers([entry(0, 0.45, 0.5), tested], amortized, OBJECTIVES)
    assert [each.label for each in known] == ["trial 0", "prediction 10", "predicted"]
    assert [each.recipe for each in known] == [as_data(0.0), as_data(0.25), as_data(0.5)]
    chosen, evaluated = answer([entry(3, 0.9, 2.0), tested], amortized, EVEN, OBJECTIVES)
    assert (chosen.basis, chosen.trial, chosen.evaluated, evaluated) == ("confirmed", 10, None, None)
    assert (chosen.objectives, chosen.standard_errors) == ({"up": 0.8, "down": 1.0}, {"up": 0.02, "down": 0.1})
    assert chosen.confirmed == {"up": interval, "down": interval}
    # one that only a prediction suits better is told beside it
    chosen, evaluated = answer([entry(3, 0.9, 2.0), tested], amortized, {"up": 1.0, "down": 5.0}, OBJECTIVES)
    assert chosen.label == "predicted"
    assert evaluated is not None
    assert evaluated.label == "prediction 10"


def test_no_trial_is_no_front() -> None:
    with pytest.raises(RunError, match="no trial is finished"):
        answer([], None, EVEN, OBJECTIVES)


def test_predictions_alone_are_an_answer(amortized: Amortized) -> None:
    chosen, evaluated = answer([], amortized, EVEN, OBJECTIVES)
    assert chosen.trial is None
    assert evaluated is None


# The command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    trials = [{"up": 0.4, "down": 0.4}, {"up": 0.3, "down": 3.0}, {"up": 0.2, "down": 3.0}, {"up": 0.9, "down": 2.0}]
    path = write_run(
        tmp_path / "run",
        trials,
        searcher={"kind": "map", "seed": 0},
        directions={"up": "maximize", "down": "minimize"},
        references=[{"up": 0.1, "down": 4.0}],
        facts={"placement": {"workers": 1, "device": "cpu", "threads": 1}, "in_flight": 8},
    )
    front = [entry(0, 0.4, 0.4), entry(3, 0.9, 2.0, confirmed=True)]
    (path / "front.jsonl").write_text("".join(json.dumps(line) + "\n" for line in front))
    write_amortized(path / "amortized.json", EXPLANATION, Space())  # type: ignore[arg-type]
    return path


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


def test_the_printed_text_is_a_recipe(call, run: Path) -> None:
    code, text = call("front", run, "--prefer", "up=1")
    assert code == 0, text
    assert [stage.recipe for stage in parse_recipes(text)] == [recipe(0.25)]
    assert "# preference: up 1, down 1\n# predicted, never evaluated:\n#   up 0.800 ± 0.039\n" in text
    assert (
        "# the best of those evaluated is trial 3, confirmed:\n#   up 0.900 ± 0.039 by the surrogate, 0.900 in" in text
    )


def test_a_trial_is_told_with_all_that_is_known_of_it(call, run: Path) -> None:
    code, text = call("front", run, "--prefer", "down=0")
    assert code == 0, text
    assert [stage.recipe for stage in parse_recipes(text)] == [recipe(0.3)]
    assert "# trial 3, confirmed:" in text
    assert "0.900 in the search, 0.800 on items that the search never saw" in text
    assert "predicted" not in text


def test_the_json_has_the_same(call, run: Path) -> None:
    code, text = call("front", run, "--prefer", "up=1", "--json")
    assert code == 0, text
    found = json.loads(text)
    assert found["basis"] == "predicted"
    assert found["weights"] == EVEN
    assert found["recipe"] == as_data(0.25)
    assert found["best_evaluated"]["trial"] == 3


@pytest.mark.parametrize(("prefer", "words"), [("upp=1", "did you mean 'up'"), ("up=x", "gives no weight")])
def test_a_preference_that_cannot_be_read_is_refused(call, run: Path, prefer: str, words: str) -> None:
    code, text = call("front", run, "--prefer", prefer)
    assert code == 2
    assert words in text


def test_a_run_without_a_front_says_so(call, run: Path) -> None:
    for name in ("front.jsonl", "amortized.json"):
        (run / name).unlink()
    code, text = call("front", run, "--prefer", "up=1")
    assert code == 1
    assert "no trial is finished" in text


def test_status_and_front_tell_of_the_surrogates(call, run: Path) -> None:
    for command in ("status", "front"):
        code, text = call(command, run)
        assert code == 0, text
        assert "p: logit quadratic, R² 0.970" in text
        assert "p: the 95% interval foretold holds the score of 0 of 1 trials (0%); mean miss −0.050" in text
        assert f"the predicted front has 2 points: `evomerge front {run} --prefer" in text


def test_fits_to_fewer_trials_than_there_are_are_said_to_be(call, run: Path) -> None:
    old = asdict(FACTS) | {"evaluations": 2}
    data = json.loads((run / "amortized.json").read_text()) | {"surrogates": {"up": old, "down": old}}
    (run / "amortized.json").write_text(json.dumps(data))
    assert "fitted to the first 2 of 4 trials" in call("status", run)[1]
