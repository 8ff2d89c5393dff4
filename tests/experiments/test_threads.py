"""Proposals do not depend on the number of cores."""

import os
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_info

from evomerge.experiments.threads import one_thread

PROPOSALS = """
import hashlib, sys
from contextlib import nullcontext
from evomerge.experiments.threads import one_thread
from evomerge.search_spaces import FloatGene
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher

genes = [FloatGene(f"g{n}", 0.0, 1.0, 0.5) for n in range(400)]
searcher = build_searcher(read_searcher({"kind": "cma-es", "seed": 1}), genes, [ObjectiveSpec("x", "maximize")], 4000)
digest = hashlib.sha256()
with one_thread() if sys.argv[1] == "limited" else nullcontext():
    for _ in range(1500):
        genome = searcher.ask()
        digest.update(repr(genome).encode())
        searcher.tell(genome, {"x": -sum((value - 0.3) ** 2 for value in genome.values())})
print(digest.hexdigest())
"""


def proposals(threads: int, how: str = "limited") -> str:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", PROPOSALS, how]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_one_thread_inside_and_as_many_as_before_after() -> None:
    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    before = threads()
    with one_thread():
        assert threads() == [1] * len(before)
    assert threads() == before


@pytest.mark.slow
def test_machines_with_other_numbers_of_cores_propose_the_same() -> None:
    assert proposals(1) == proposals(2)
