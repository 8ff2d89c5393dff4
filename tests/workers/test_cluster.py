"""Searches on Ray clusters of several nodes (raylets on this machine): nodes go and join, the result is the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from evomerge.errors import RunError
from evomerge.experiments.journal import Journal, Trial
from evomerge.testing.tiny_experiment import tiny_experiment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

ONE_CORE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
SECONDS = 300  # that a search may take on a busy machine

SLOW = """

import time

def slow(model, tokenizer):
    time.sleep(PAUSE)
    return near(model, tokenizer, TEXTS)[0]
"""


@dataclass
class Search:
    """A search in a process of its own."""

    process: subprocess.Popen[str]
    run: Path

    def trials(self) -> list[Trial]:
        """Return the trials that are recorded so far."""
        try:
            return Journal.read(self.run / "journal.log").trials()
        except RunError:
            return []

    def await_trials(self, count: int) -> None:
        """Wait until so many trials are recorded."""
        deadline = time.monotonic() + SECONDS
        while len(self.trials()) < count and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.process.poll() is None, self.process.communicate()[0]

    def end(self) -> str:
        """Wait for the end and return what was printed."""
        output, _ = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, output
        return output


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with one core."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args=ONE_CORE)
    yield cluster
    cluster.shutdown()


def experiment(folder: Path, trials: int, pause: float) -> Path:
    folder.mkdir()
    file = tiny_experiment(folder)
    with (folder / "score.py").open("a") as score:
        score.write(SLOW.replace("PAUSE", str(pause)))
    text = file.read_text().replace("score.py:near", "score.py:slow").replace("trials: 18", f"trials: {trials}")
    file.write_text(text + "workers: {devices: cpu, threads: 1, in_flight: 8}\n")
    return file


def launch(file: Path, run: Path, address: str) -> Search:
    """Start a search."""
    command = [sys.executable, "-m", "evomerge", "run", str(file), "--out", str(run), "--ray-address", address]
    environment = {**os.environ, "RAY_ADDRESS": "", "EVOMERGE_CACHE": str(file.parent / "cache")}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return Search(subprocess.Popen(command, env=environment, cwd=file.parent, **pipe), run)


def outcome(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """Return what must not depend on where a search ran."""
    return [(t.number, t.genome, t.objectives, t.recipe_hash) for t in trials]


def test_a_search_on_three_nodes_ends_as_one_on_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(**ONE_CORE)
    file = experiment(tmp_path / "tiny", trials=18, pause=0.3)
    there = launch(file, tmp_path / "there", cluster.address)
    output = there.end()
    assert f"connected to the Ray cluster at {cluster.address}: 3 nodes, 3 CPU cores, 0 GPUs" in output
    assert "starting 3 cpu workers (1 thread each)" in output
    assert len({trial.worker for trial in there.trials()}) == 3
    here = launch(file, tmp_path / "here", "local")
    here.end()
    assert outcome(there.trials()) == outcome(here.trials())


def test_a_node_that_is_lost_takes_nothing_with_it(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(**ONE_CORE)
    file = experiment(tmp_path / "tiny", trials=30, pause=0.5)
    search = launch(file, tmp_path / "there", cluster.address)
    search.await_trials(4)
    cluster.remove_node(node, allow_graceful=False)
    search.end()
    trials = search.trials()
    assert [trial.number for trial in trials] == list(range(30))
    assert not any(trial.failed for trial in trials)
    assert len({trial.worker for trial in trials[-8:]}) == 1
    here = launch(file, tmp_path / "here", "local")
    here.end()
    assert outcome(trials) == outcome(here.trials())


def test_a_node_that_joins_gets_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    file = experiment(tmp_path / "tiny", trials=60, pause=0.8)
    search = launch(file, tmp_path / "there", cluster.address)
    search.await_trials(2)
    first = {trial.worker for trial in search.trials()}
    assert len(first) == 1
    cluster.add_node(**ONE_CORE)
    search.end()
    trials = search.trials()
    assert [trial.number for trial in trials] == list(range(60))
    assert not any(trial.failed for trial in trials)
    assert len({trial.worker for trial in trials[-10:]}) == 2
