"""What workers of a cluster are given, and what is said of those that differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import __version__, library
from evomerge.errors import WorkerError
from evomerge.workers.runtime import copy_package, runtime_env
from evomerge.workers.shared_paths import check_paths
from evomerge.workers.versions import differences, versions


def test_the_copy_of_the_package_is_whole(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    script = (
        "import evomerge; from evomerge import library\n"
        "print(evomerge.__file__); print(*[e.name for k in library.KINDS for e in library.entries(k)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, names = run.stdout.splitlines()
    assert where == str(copy / "__init__.py")
    assert names.split() == [entry.name for kind in library.KINDS for entry in library.entries(kind)]
    assert not list(copy.rglob("__pycache__"))


def test_what_a_job_sets_itself_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def given(name: str, **job: object) -> dict[str, object]:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
        (tmp_path / name).mkdir()
        return runtime_env(tmp_path / name)

    assert given("a")["working_dir"] == str(tmp_path / "a")
    with_folder = given("b", working_dir="gcs://x.zip", env_vars={"HF_HUB_OFFLINE": "0"})
    assert with_folder["py_modules"] == [str(tmp_path / "b" / "evomerge")]
    assert "working_dir" not in with_folder
    assert "HF_HUB_OFFLINE" not in with_folder["env_vars"]  # type: ignore[operator]
    assert set(given("c", py_modules=["gcs://y.zip"], working_dir="gcs://x.zip")) == {"env_vars"}


def test_tokens_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "planted-secret")
    assert "planted-secret" not in json.dumps(runtime_env(tmp_path))


def test_versions_that_differ_are_named() -> None:
    here = versions()
    assert here["evomerge"] == __version__
    assert differences(here, here) == []
    there = {**here, "torch": "1.0"}
    del there["lm_eval"]
    assert differences(here, there) == [
        f"torch is 1.0 there and {here['torch']} here",
        f"lm_eval is none there and {here['lm_eval']} here",
    ]


def test_paths_that_a_node_lacks_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "with+plus").mkdir()
    references = {
        "hub": "org/name@main",
        "zoo": "zoo/base",
        "here": f"{tmp_path}/model",
        "plus": f"{tmp_path}/with+plus",
        "adapted": f"{tmp_path}/model+{tmp_path}/adapter",
    }
    objectives = [{"task": "arithmetic"}, {"function": f"{tmp_path}/score.py:near"}, {"function": "module:near"}]
    with pytest.raises(WorkerError) as caught:
        check_paths(references, {"objectives": objectives})
    text = str(caught.value)
    assert f"{os.uname().nodename} does not have {tmp_path}/adapter, {tmp_path}/score.py: " in text
    (tmp_path / "adapter").mkdir()
    (tmp_path / "score.py").touch()
    check_paths(references, {"objectives": objectives})
