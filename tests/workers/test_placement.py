"""Placement: how many workers fit on which machines, and requests that cannot be met."""

import pytest

from evomerge.errors import WorkerError
from evomerge.workers import Node, Placement, place
from evomerge.workers.placement import slots

LAPTOP = [Node(cpus=2, gpus=0)]
SERVER = [Node(cpus=64, gpus=8)]
CLUSTER = [Node(cpus=8, gpus=0), Node(cpus=32, gpus=4), Node(cpus=16, gpus=4)]


def test_workers_share_the_cores() -> None:
    assert place(LAPTOP, "auto", count=None, threads=None, trials=1000) == Placement("cpu", 2, 1)
    assert place(LAPTOP, "cpu", count=1, threads=None, trials=1000) == Placement("cpu", 1, 2)
    assert place(LAPTOP, "cpu", count=None, threads=2, trials=1000) == Placement("cpu", 1, 2)
    assert place(CLUSTER, "cpu", count=None, threads=6, trials=1000) == Placement("cpu", 1 + 5 + 2, 6)


def test_no_more_workers_than_trials() -> None:
    assert place(LAPTOP, "cpu", count=None, threads=None, trials=1).workers == 1
    assert place(SERVER, "auto", count=None, threads=None, trials=3).workers == 3


@pytest.mark.parametrize(
    ("devices", "workers", "threads"),
    [(1.0, 8, 8), (0.5, 16, 4), (2.0, 4, 16), (3.0, 2, 32), (0.3, 24, 2), (8.0, 1, 64)],
)
def test_workers_take_a_part_of_a_gpu_or_several(devices: float, workers: int, threads: int) -> None:
    found = place(SERVER, "auto", count=None, threads=None, trials=1000, devices_per_worker=devices)
    assert found == Placement("cuda", workers, threads, devices)


def test_a_worker_does_not_reach_over_two_machines() -> None:
    assert place(CLUSTER, "cuda", count=None, threads=None, trials=1000, devices_per_worker=3).workers == 2
    with pytest.raises(WorkerError, match=r"devices_per_worker is 5, but no machine has so many GPUs \(the most: 4\)"):
        place(CLUSTER, "cuda", count=None, threads=None, trials=1000, devices_per_worker=5)


@pytest.mark.parametrize("share", [1 / n for n in range(1, 40)])
def test_a_gpu_holds_as_many_workers_as_its_shares(share: float) -> None:
    assert slots(1, share) == round(1 / share)
    assert slots(3, share) == 3 * round(1 / share)


def test_what_is_not_there_is_refused_instead_of_waited_for() -> None:
    with pytest.raises(WorkerError, match=r"workers\.devices is cuda, but Ray sees no GPU; use devices: cpu"):
        place(LAPTOP, "cuda", count=None, threads=None, trials=10)
    with pytest.raises(WorkerError, match=r"workers\.count is 999, but there are only 2 CPU cores"):
        place(LAPTOP, "cpu", count=999, threads=None, trials=1000)
    with pytest.raises(WorkerError, match=r"workers\.count is 9, but there is room for only 8 on 8 GPUs"):
        place(SERVER, "auto", count=9, threads=None, trials=1000)
    with pytest.raises(WorkerError, match=r"1 workers of 999 threads need 999 cores, but there are 2"):
        place(LAPTOP, "cpu", count=None, threads=999, trials=10)
    with pytest.raises(WorkerError, match=r"threads is 33, but no machine has more than 32 cores"):
        place(CLUSTER, "cpu", count=None, threads=33, trials=10)


def test_where_machines_join_more_may_be_asked_for_than_there_is() -> None:
    assert place([Node(2, 0)], "cpu", count=64, threads=1, trials=1000, growing=True).workers == 64
    assert place([Node(2, 0)], "cuda", count=16, threads=8, trials=1000, growing=True) == Placement("cuda", 16, 8)
