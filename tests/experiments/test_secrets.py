"""A run whose fitness function shows tokens in its errors: none of them is recorded or displayed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.testing.tiny_experiment import tiny_experiment

pytestmark = pytest.mark.slow

HUB = "hf_" + "plantedtoken" * 3
PASSWORD = "open-sesame-1"
KEY = "wandb0123456789"
SECRETS = (HUB, PASSWORD, KEY)

LEAKY = f"""
def leaky(model, tokenizer):
    value = near(model, tokenizer, TEXTS)[0]
    if int(value * 1e6) % 3 == 0:
        address = "postgresql://me:{PASSWORD}@db/runs"
        raise ValueError("refused: Authorization: Bearer {HUB}, " + address + ", key " + os.environ["WANDB_API_KEY"])
    return value
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and everything that was shown of it."""
    folder = tmp_path_factory.mktemp("leaky")
    experiment = tiny_experiment(folder)
    with (folder / "score.py").open("a") as file:
        file.write(LEAKY)
    text = experiment.read_text().replace("score.py:near", "score.py:leaky").replace("trials: 18", "trials: 10")
    experiment.write_text(text)
    environment = {**os.environ, "WANDB_API_KEY": KEY, "HF_TOKEN": HUB, "EVOMERGE_CACHE": str(folder / "cache")}
    shown = ""
    for command in (
        ["run", str(experiment), "--out", str(folder / "run")],
        ["status", str(folder / "run")],
        ["front", str(folder / "run"), "--json"],
        ["export", str(folder / "run"), str(folder / "model")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "evomerge", *command],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        shown += done.stdout + done.stderr
        assert done.returncode == 0, shown
    return folder, shown


def test_a_failed_trial_is_recorded_without_the_tokens_that_its_error_showed(finished: tuple[Path, str]) -> None:
    folder, shown = finished
    journal = (folder / "run" / "journal.log").read_text()
    assert "refused: Authorization: Bearer ***, postgresql://me:***@db/runs, key ***" in journal, "no trial failed"
    assert "refused: Authorization" in shown
    files = [file for name in ("run", "model") for file in (folder / name).rglob("*") if file.is_file()]
    assert len(files) > 10
    for secret in SECRETS:
        assert secret not in shown
        assert [str(file) for file in files if secret.encode() in file.read_bytes()] == []


def test_an_error_that_ends_the_run_shows_none_either(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    shutil.copytree(folder / "models", tmp_path / "models")
    text = (folder / "score.py").read_text().replace("% 3 == 0", ">= -1e9")  # the base fails too
    (tmp_path / "score.py").write_text(text)
    shutil.copy(folder / "experiment.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "run", "experiment.yaml"],
        env={**os.environ, "WANDB_API_KEY": KEY},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "postgresql://me:***@db/runs" in done.stderr
    assert not any(secret in done.stderr + done.stdout for secret in SECRETS)
