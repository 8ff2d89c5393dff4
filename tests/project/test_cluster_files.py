"""The example files for clusters are well-formed, and the SLURM script does what it says on a make-believe SLURM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evomerge.errors import RunError
from evomerge.experiments.journal import Journal
from evomerge.testing.tiny_experiment import tiny_experiment

FOLDER = Path(__file__).parents[2] / "docs" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
SECONDS = 300  # that a search may take on a busy machine

SRUN = """#!/usr/bin/env bash
# Runs a step on this machine; tells all of its processes to end when it is told to, and kills them if they do not.
echo "srun $*" >> "$SLURM_CALLS"
while [[ $1 == --* ]]; do shift; done
setsid "$@" &
step=$!
stop() {
  kill -TERM -- "-$step"
  sleep 5
  kill -KILL -- "-$step" 2>/dev/null
  exit 143
}
trap stop TERM
wait "$step"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$SLURM_CALLS"
if [[ $1 == show ]]; then echo node-1; echo node-2; fi
"""
SLEEPY = """

import time

def sleepy(model, tokenizer):
    time.sleep(0.6)
    return near(model, tokenizer, TEXTS)[0]
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "--severity=warning", script], check=True)


def test_the_cluster_file_is_one_that_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text()))
    validate_config(prepared)
    worker, head = (prepared["available_node_types"][name] for name in ("worker", "head"))
    assert (worker["min_workers"], worker["max_workers"], head["resources"]["CPU"]) == (0, prepared["max_workers"], 0)
    starts = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid (util-linux) is not installed")
def test_the_slurm_script_stops_in_time_is_requeued_and_goes_on(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bin_folder, calls, run = tmp_path / "bin", tmp_path / "calls", tmp_path / "run"
    bin_folder.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("evomerge", f'#!/bin/sh\nexec {sys.executable} -m evomerge "$@"\n'),
    ):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    file = tiny_experiment(tmp_path)
    with (tmp_path / "score.py").open("a") as score:
        score.write(SLEEPY)
    text = file.read_text().replace("score.py:near", "score.py:sleepy").replace("trials: 18", "trials: 30")
    file.write_text(text + "workers: {devices: cpu, threads: 1}\n")
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_CALLS": str(calls),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "0",
    }
    environment.pop("RAY_ADDRESS", None)

    def job() -> subprocess.Popen[str]:
        started = subprocess.Popen(
            ["bash", str(FOLDER / "slurm.sh"), str(file), str(run)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        request.addfinalizer(started.terminate)
        return started

    def trials() -> int:
        try:
            return len(Journal.read(run / "journal.log").trials())
        except RunError:  # there is none yet
            return 0

    first, deadline = job(), time.monotonic() + SECONDS
    while trials() < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=SECONDS)
    assert first.returncode == 130, output
    assert "2 nodes, 2 CPU cores" in output
    assert f"scontrol requeue {os.getpid()}" in calls.read_text()
    assert 2 <= trials() < 30
    second = job()
    output, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, output
    assert trials() == 30
    assert calls.read_text().count("requeue") == 1
    left = subprocess.run(["pgrep", "-f", f"/tmp/ray-{os.getpid()}/"], capture_output=True, text=True, check=False)
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)
    assert left.stdout.split() == []
