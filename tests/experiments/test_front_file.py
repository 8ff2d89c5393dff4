"""The front file of a search that goes on: the content of a whole rewrite, for less work."""

from pathlib import Path

import pytest

from evomerge.experiments import front_file
from evomerge.experiments.front_file import FrontFile, read_front, write_front
from evomerge.experiments.journal import Trial
from evomerge.recipes import Recipe


def trial(number: int) -> Trial:
    return Trial(number, {"w": number / 7}, {"near": 0.1 * number, "far": 1 - 0.1 * number}, f"{number:x}")


def recipe(trial: Trial) -> Recipe:
    models = [{"model": "org/a", "parameters": {"weight": trial.genome["w"]}}, {"model": "org/b"}]
    return Recipe.model_validate({"merge_method": "linear", "models": models})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(front_file.time, "monotonic", lambda: now[0])
    return now


def test_the_content_is_that_of_a_whole_rewrite(tmp_path: Path, clock: list[float]) -> None:
    ours, whole = tmp_path / "ours.jsonl", tmp_path / "whole.jsonl"
    file = FrontFile(ours, recipe)
    for numbers in ([0], [0, 3], [3, 4, 5], [5, 9], [9]):
        front = [trial(number) for number in numbers]
        file.update(front)
        write_front(whole, [(each, recipe(each)) for each in front], None)
        assert ours.read_bytes() == whole.read_bytes()


def test_each_trial_is_expressed_once(tmp_path: Path, clock: list[float]) -> None:
    expressed = []
    file = FrontFile(tmp_path / "front.jsonl", lambda each: expressed.append(each.number) or recipe(each))
    front = [trial(0), trial(1)]
    file.update(front)
    file.update(front)
    file.update([*front, trial(2)])
    assert expressed == [0, 1, 2]


def test_it_rests_after_a_long_write_and_then_catches_up(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "front.jsonl", front_file.write_atomically

    def slow(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        clock[0] += 0.5

    def numbers() -> list[int]:
        return [entry["trial"] for entry in read_front(path)]

    monkeypatch.setattr(front_file, "write_atomically", slow)
    file = FrontFile(path, recipe)
    file.update([trial(0)])
    later = [trial(0), trial(1)]
    clock[0] += front_file.REST * 0.5 - 0.01
    file.update(later)
    assert numbers() == [0]
    clock[0] += 0.02
    file.update(later)  # nothing new, but not written yet
    assert numbers() == [0, 1]
