"""`evomerge plan`: what a run would take, and every reason for which it would be refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.testing.tiny_experiment import tiny_experiment


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("prototype")).parent


@pytest.fixture
def folder(prototype: Path, tmp_path: Path) -> Path:
    shutil.copytree(prototype, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a command on the experiment; return the exit status, and what was printed to both outputs."""
    monkeypatch.chdir(folder)

    def run(command: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", command, "experiment.yaml", *options])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def listed(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_without_a_probe(call: Any, folder: Path) -> None:
    before = listed(folder)
    code, out, _ = call("plan", "--no-probe", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["problems"] == []
    assert plan["time"] is None
    (stage,) = plan["stages"]
    assert stage["trials"] == 18
    assert {task["task"] for task in stage["tasks"]} == {str(folder / f"score.py:{name}") for name in ("near", "far")}
    assert plan["workers"]["device"] == "cpu"
    assert plan["memory"]["parents"] == 4 * plan["memory"]["weights"]  # a base and three parents
    assert plan["disk"]["free"] > 0
    assert listed(folder) == before


def test_all_that_is_wrong_comes_at_once_and_as_run_says_it(call: Any, folder: Path) -> None:
    file = folder / "experiment.yaml"
    file.write_text(file.read_text().replace("./models/c", "./models/nowhere").replace("near}", "near, metric: x}"))
    file.write_text(file.read_text() + "pick: objective:nothing\n")
    before = listed(folder)
    code, _, err = call("plan")
    assert code == 2
    assert listed(folder) == before
    assert "no such folder" in err
    assert "'nothing'" in err
    assert "Traceback" not in err
    for command in ("run", "validate"):
        refused = call(command)
        assert refused[0] == 2
        assert refused[2] == err


def test_a_run_that_is_there_is_refused_beside_the_rest(call: Any, folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there" / "experiment.yaml").write_text("")
    code, _, err = call("plan", "--out", "there", "--set", "pick=objective:nothing")
    assert code == 2
    assert "2 problems" in err
    assert "the folder already holds a run" in err
    assert "'nothing'" in err


def test_what_resources_refuse(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.experiments.plan.memory_bytes", lambda: 2**20)
    code, out, err = call("plan", "--no-probe", "--json", "--set", "workers.count=999")
    assert code == 2
    assert "workers.count is 999, but there are only" in err
    whats = [problem["what"] for problem in json.loads(out)["problems"]]
    assert len(whats) == 1  # how many workers would share the memory is not known
    code, _, err = call("plan", "--no-probe", "--set", "workers.count=1")
    assert code == 2
    assert "1 workers need 700 MiB of memory, but this machine has 1.0 MiB" in err


def test_parents_that_are_not_here_are_told_before_they_are_fetched(
    call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.experiments.plan.to_fetch", lambda references: {"alice/model": 3 * 2**30})
    code, out, _ = call("plan")
    assert code == 0
    assert "alice/model" in out
    assert "3.0 GiB" in out
    monkeypatch.setattr("evomerge.experiments.plan.to_fetch", lambda references: {"alice/model": 2**60})
    code, _, err = call("plan")
    assert code == 2
    assert "are to be fetched, but only" in err


@pytest.mark.slow
def test_with_a_probe(call: Any, folder: Path) -> None:
    before = listed(folder)
    code, out, err = call("plan", "--json")
    plan = json.loads(out)
    assert (code, plan["problems"]) == (0, [])
    assert "probing" in err
    time = plan["time"]
    assert 0 < time["trial"]["low"] <= time["trial"]["high"]
    assert set(time["parts"]) == {"building the workers", "reference models", "search", "confirmation"}
    assert all(part["low"] <= part["high"] for part in time["parts"].values())
    assert plan["memory"]["measured"] > 2**26
    assert listed(folder) == before


@pytest.mark.slow
def test_a_merge_that_cannot_be_evaluated_is_a_reason(call: Any) -> None:
    code, _, err = call("plan", "--set", 'fitness.objectives=[{function: "./score.py:fails"}]')
    assert code == 2
    assert "this function always fails" in err
