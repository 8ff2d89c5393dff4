"""Run folders: locks, refusals, atomic writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.experiments import run_folder
from evomerge.experiments.run_folder import RunFolder

HOLD = """
import sys, pathlib
from evomerge.experiments.run_folder import RunFolder
with RunFolder(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    folder = RunFolder(tmp_path)
    assert folder.is_running
    with pytest.raises(RunError, match="another process is working on"), folder.locked():
        pass
    holder.kill()
    holder.communicate()
    assert not folder.is_running
    with folder.locked():
        pass


def test_a_folder_that_holds_a_run_is_not_taken_for_another(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"already holds a run(.|\n)*evomerge resume"):
        run_folder.create(tmp_path)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run \(no experiment.yaml\): start one with"):
        RunFolder(tmp_path).read_experiment()


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there: Not a directory"):
        run_folder.create(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot write there: Permission denied"):
        run_folder.create(tmp_path / "run")


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "front.jsonl"
    run_folder.write_atomically(path, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; free some space, then resume"):
        run_folder.write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path], "no part of the new one takes room"
