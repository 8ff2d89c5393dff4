"""``evomerge calibrate --from``, and what is said of banks that do not fit; no worker starts here."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli import main
from evomerge.experiments import calibrate_from
from evomerge.experiments.schema import read_experiment
from evomerge.fitness import Fitness
from evomerge.fitness.estimate_config import CalibrationConfig, SoftConfig
from evomerge.fitness.irt.bank import ItemBank, ItemParameters
from evomerge.testing.tasks import write_choices
from evomerge.testing.tiny_experiment import tiny_experiment


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment, whose objectives are a function and a task."""
    path = tiny_experiment(tmp_path_factory.mktemp("prototype"))
    write_choices(path.parent, items=12)
    objectives = '{function: "./score.py:far", name: far}'
    assert objectives in path.read_text()
    path.write_text(path.read_text().replace(objectives, "{task: ./tiny-choices.yaml, metric: acc}"))
    return path.parent


@pytest.fixture
def folder(prototype: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prototype, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


@pytest.fixture
def call(capsys, monkeypatch):
    """Run evomerge; return its exit code and output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def banks(folder: Path) -> dict[str, ItemBank]:
    """A bank of each objective's search items, in the folder mine/banks."""
    fitness = Fitness(read_experiment(str(folder / "experiment.yaml")).fitness)
    made = {}
    for number, objective in enumerate(fitness.objectives):
        items = fitness.items("search")[objective.task]
        draw = np.random.default_rng(number)
        parameters = ItemParameters.logistic(draw.random((len(items), 3)), draw.random(len(items)))
        models = tuple(f"m{n}" for n in range(9))
        made[objective.name] = ItemBank(
            objective.task, objective.metric, items, parameters, models, draw.random((9, len(items)))
        )
        made[objective.name].write(folder / "banks" / objective.name)
    return made


@pytest.fixture
def refused(folder: Path, call) -> Callable[..., str]:
    """Run the experiment with the banks, which do not fit; return the message."""

    def run(*options: str, bank: str = "banks") -> str:
        file, out = folder / "experiment.yaml", folder / "run"
        estimate = f"fitness.estimate={{items: 4, bank: {bank}}}"
        sets = [part for option in (estimate, *options) for part in ("--set", option)]
        code, said = call("run", file, "--out", out, *sets)
        assert code == 2, said
        assert said.startswith("error: ")
        assert "Traceback" not in said
        assert "starting" not in said
        assert not out.exists()
        return said

    return run


def test_banks_that_fit_are_taken(folder: Path, call, banks) -> None:
    for where in ("banks", "mine/banks"):  # beside the file, or from the working folder
        code, said = call(
            "validate", folder / "experiment.yaml", "--set", f"fitness.estimate={{items: 4, bank: {where}}}"
        )
        assert code == 0, said


def test_a_bank_of_another_task_or_metric(folder: Path, refused, banks) -> None:
    replace(banks["tiny-choices"], metric="acc_norm,none").write(folder / "banks" / "tiny-choices")
    said = refused()
    assert "no item bank is of 'tiny-choices' (acc,none): " in said
    assert "'tiny-choices' (acc_norm,none)" in said
    assert "fitness.estimate.bank: " in said
    assert "evomerge calibrate --from EXPERIMENT OUT" in said
    assert "correct `task` and `metric`" in said


def test_items_that_no_longer_exist(folder: Path, refused, banks) -> None:
    score = folder / "score.py"
    score.write_text(score.read_text().replace('f"item {number}"', 'f"question {number}"'))
    count = len(banks["near"].items)
    assert f"{count} of the item bank's {count} items no longer exist in" in refused()


def test_fewer_items_than_dimensions(refused, banks) -> None:
    said = refused("fitness.estimate.items=2")
    assert "2 items are asked, fewer than the 3 dimensions of the bank of 'tiny-choices'" in said
    assert said.startswith("error: 2 problems:")


def test_too_few_of_the_search_items(folder: Path, refused, banks) -> None:
    banks["tiny-choices"].only(banks["tiny-choices"].items[:3]).write(folder / "banks" / "tiny-choices")
    assert "the bank has 3 of the 12 search items of 'tiny-choices', and 4 are to be asked" in refused()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "holds no item banks: no NAME.yaml with its NAME.safetensors"),
        (lambda path: None, "there is no item bank, nor a folder of them, at 'empty'"),
        (lambda path: path.write_text("?"), "cannot be read: "),
    ],
)
def test_nothing_is_there(folder: Path, refused, make, message: str) -> None:
    make(folder / "empty")
    assert message in refused(bank="empty")


def test_weights_in_the_folder_are_no_banks(folder: Path, refused) -> None:
    assert "holds no item banks" in refused(bank="models")


def test_a_bank_without_soft_responses(folder: Path, refused, banks) -> None:
    (folder / "banks" / "near.yaml").unlink()
    said = refused("fitness.objectives=[{task: ./tiny-choices.yaml, metric: acc}]", "fitness.estimate.soft={}")
    assert "the bank of 'tiny-choices' has no soft responses, which `soft` needs" in said
    assert "--soft" in said


def test_two_banks_of_one_objective(folder: Path, refused, banks) -> None:
    near = banks["near"]
    near.write(folder / "banks" / "copy")  # the same twice does no harm
    other = ItemParameters.logistic(near.parameters.slopes + 1, near.parameters.intercepts)
    replace(near, parameters=other).write(folder / "banks" / "z")
    said = refused()
    assert "has 3 item banks of " in said
    assert "copy.yaml, near.yaml, z.yaml" in said


def test_a_damaged_bank(folder: Path, refused, banks) -> None:
    (folder / "banks" / "near.yaml").write_text("task: near\n")
    assert "no item bank: metric, sha256, items, models, parents, made missing" in refused()


def test_responses_and_from_exclude_each_other(folder: Path, call) -> None:
    code, said = call("calibrate", "r.csv", "out", "--from", folder / "experiment.yaml")
    assert code == 2
    assert "RESPONSES (r.csv) and --from exclude each other" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "give RESPONSES and OUT, or --from EXPERIMENT and OUT"),
        (["--from", "e.yaml"], "give the folder OUT, and nothing else, with --from EXPERIMENT"),
        (["r.csv", "out", "--models", 5], "--models needs --from EXPERIMENT"),
        (["r.csv", "out", "--set", "a=1"], "--set needs --from EXPERIMENT"),
        (["--from", "e.yaml", "out", "--task", "x"], "--task is of RESPONSES, and means nothing with --from"),
        (["--from", "e.yaml", "out", "--models", 3], "3 is not in the range"),
    ],
)
def test_options_that_mean_nothing_are_refused(call, arguments, message) -> None:
    code, said = call("calibrate", *arguments)
    assert code == 2
    assert message in said


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What is handed to the work, in place of the work."""
    calls: list[tuple] = []

    def note(experiment, out, config, display, *, soft, ray_address):
        calls.append((out, config, soft, experiment.budget.trials))
        return {}

    monkeypatch.setattr(calibrate_from, "calibrate_from", note)
    return calls


def test_the_experiment_gives_the_defaults_and_options_win(folder: Path, call, asked) -> None:
    file = folder / "experiment.yaml"
    estimate = "fitness.estimate={bank: nowhere, soft: {items: 9}, calibration: {models: 7, model: rasch, seed: 5}}"
    assert call("calibrate", "--from", file, "out")[0] == 0
    assert call("calibrate", "--from", file, "out", "--soft", "--set", "budget.trials=5")[0] == 0
    assert call("calibrate", "--from", file, "out", "--set", estimate)[0] == 0
    options = ["--models", 6, "--model", "2pl", "--dimensions", "auto", "--seed", 0]
    assert call("calibrate", "--from", file, "out", "--set", estimate, *options)[0] == 0
    own = CalibrationConfig(models=7, model="rasch", seed=5)
    assert asked == [
        (Path("out"), CalibrationConfig(), None, 18),
        (Path("out"), CalibrationConfig(), SoftConfig(), 5),
        (Path("out"), own, SoftConfig(items=9), 18),
        (Path("out"), CalibrationConfig(models=6, dimensions="auto"), SoftConfig(items=9), 18),
    ]


def test_ctrl_c_says_how_to_go_on(folder: Path, call, monkeypatch) -> None:
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_from, "calibrate_from", stopped)
    code, said = call("calibrate", "--from", folder / "experiment.yaml", "out")
    assert code == 130
    assert "what was evaluated is kept in out: the same command goes on from there" in said
