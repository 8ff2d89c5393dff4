"""A front known beforehand: reading it, refusing it, and measuring runs by it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.experiments.journal import Journal
from evomerge.experiments.known_front import read_known_front
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment, write_experiment
from evomerge.experiments.summarise import summarise
from evomerge.searchers import ObjectiveSpec
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

OBJECTIVES = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("loss", "minimize"))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_known_front(path, OBJECTIVES, "mine.yaml:9")
    return str(caught.value)


def table(folder: Path, text: str, name: str = "known.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_table_is_read_by_its_header(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffloss, trial, accuracy\n2.5, 1, 0.5\n\n1, 2, 0.25\n")
    np.testing.assert_array_equal(read_known_front(path, OBJECTIVES, ""), [[0.5, -2.5], [0.25, -1.0]])


@pytest.mark.parametrize(
    "entry", [{"accuracy": 0.5, "loss": 2}, {"trial": 3, "objectives": {"accuracy": 0.5, "loss": 2}}]
)
def test_lines_of_json_hold_objectives_or_are_them(tmp_path: Path, entry: dict[str, object]) -> None:
    path = table(tmp_path, json.dumps(entry) + "\n", "front.jsonl")
    np.testing.assert_array_equal(read_known_front(path, OBJECTIVES, ""), [[0.5, -2.0]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("known.txt", "", r"mine.yaml:9: .*known.txt is neither .csv nor .jsonl"),
        (
            "known.csv",
            "accuracy,los\n1,2\n",
            r"known.csv:1: it has no column for the objective 'loss'\n.*did you mean 'los'",
        ),
        ("known.csv", "accuracy,loss\n1,2\n1\n", r"known.csv:3: the row has 1 columns, the header names 2"),
        ("known.csv", "accuracy,loss\n1,two\n", r"known.csv:2: 'two' is no finite number for the objective 'loss'"),
        ("known.csv", "accuracy,loss\n1,nan\n", r"known.csv:2: 'nan' is no finite number"),
        ("known.csv", "accuracy,loss\n", r"known.csv: it has no rows"),
        ("known.csv", "", r"known.csv:1: it has no column for the objective 'accuracy'"),
        ("known.csv", "accuracy,loss\n" + "x,1\n" * 9, r"known.csv: and 4 more values that are no numbers"),
        ("known.jsonl", '{"accuracy": 1}\n', r"known.jsonl:1: it has no objective 'loss'"),
        ("known.jsonl", '{"accuracy": 1, "loss": true}\n', r"known.jsonl:1: True is no finite number"),
        ("known.jsonl", '{"accuracy": 1, "loss": null}\n', r"known.jsonl:1: None is no finite number"),
        ("known.jsonl", "{\n", r"known.jsonl:1: it is no JSON"),
        ("known.jsonl", "[1, 2]\n", r"known.jsonl:1: it holds no object"),
    ],
)
def test_a_file_that_is_no_front_is_refused_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    assert re.search(message, refused(table(tmp_path, text, name)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = refused(tmp_path / "nowhere.csv")
    assert re.search(r"mine.yaml:9: there is no file .*nowhere.csv\n.*relative to the experiment file", found)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tiny_experiment(tmp_path_factory.mktemp("tiny"))
    names = [objective.name for objective in read_experiment(str(file)).fitness.objectives]
    table(file.parent, ",".join(name or "" for name in names) + "\n" + ",".join("1" for _ in names) + "\n")
    return file


def test_the_path_is_relative_to_the_experiment(file: Path, tmp_path: Path) -> None:
    experiment = read_experiment(str(file), ["known_front=known.csv"])
    assert experiment.known_front == str(file.parent / "known.csv")
    again = table(tmp_path, write_experiment(experiment), "again.yaml")
    assert read_experiment(str(again)).known_front == experiment.known_front


def test_every_trial_carries_the_quality_however_often_the_run_stopped(file: Path) -> None:
    display = SilentDisplay()
    whole, parts = file.parent / "whole", file.parent / "parts"
    for out, trials in ((whole, 12), (parts, 7)):
        changes = ["known_front=known.csv", f"budget.trials={trials}", "workers.in_flight=4"]
        assert start(read_experiment(str(file), changes), out, display).finished
    assert resume(parts, display, extend_trials=5).finished
    fronts = [[trial.front for trial in Journal.read(out / "journal.log").trials()] for out in (whole, parts)]
    assert fronts[0] == fronts[1]
    assert all(set(front) >= {"hypervolume", "size", "igd_plus"} for front in fronts[0])
    summary = summarise(whole)
    assert summary.quality is not None
    assert summary.quality.to_json() == fronts[0][-1]
    assert [volume for _, volume in summary.hypervolume] == [front["hypervolume"] for front in fronts[0]]
    assert [value for _, value in summary.igd_plus] == [front["igd_plus"] for front in fronts[0]]

    table(file.parent, (file.parent / "known.csv").read_text().replace("1", "0.9"))
    with pytest.raises(RunError, match="changed since this run began: the known front"):
        resume(whole, display)


def test_what_cannot_be_known_is_a_problem_before_the_run(file: Path) -> None:
    for changes, message in (
        (["known_front=nowhere.csv"], "there is no file"),
        (
            ["known_front=known.csv", "fitness.objectives=[{function: './score.py:near', name: near}]"],
            "of a single objective there is no front",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            start(read_experiment(str(file), changes), file.parent / "refused", SilentDisplay())


def test_what_a_run_only_predicted_is_no_known_front(tmp_path: Path) -> None:
    trial = {"trial": 3, "objectives": {"accuracy": 0.5, "loss": 2}}
    predicted = {"trial": 9, "predicted": True, "objectives": {"accuracy": 0.9, "loss": 1}}
    path = table(tmp_path, f"{json.dumps(trial)}\n{json.dumps(predicted)}\n", "front.jsonl")
    np.testing.assert_array_equal(read_known_front(path, OBJECTIVES, ""), [[0.5, -2.0]])
