"""Placement: how many workers there is room for on a machine or cluster, and what each of them gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ray

from evomerge.errors import WorkerError


@dataclass(frozen=True)
class Placement:
    """Where the workers run.

    Attributes:
        device: of all of them.
        workers: how many.
        threads: CPU threads of each.
        devices_per_worker: GPUs of each: a part of one, one, or several; without a meaning on the CPU.
    """

    device: Literal["cpu", "cuda"]
    workers: int
    threads: int
    devices_per_worker: float = 1.0


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster offers."""

    cpus: int
    gpus: int


def nodes() -> list[Node]:
    """Return the machines that the connected cluster has now."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]


def place(
    cluster: Sequence[Node],
    devices: Literal["auto", "cpu", "cuda"],
    *,
    count: int | None,
    threads: int | None,
    trials: int,
    devices_per_worker: float = 1.0,
    growing: bool = False,
) -> Placement:
    """Choose device, number of workers and threads a worker from what the machines offer.

    Args:
        cluster: the machines there are now.
        devices: what to use; auto prefers GPUs.
        count: workers wanted; None takes as many as there is room for.
        threads: CPU threads wanted for each; None shares the cores out.
        trials: more workers than these would idle.
        devices_per_worker: GPUs wanted for each.
        growing: machines may join later, so that ``count`` may be more than there is room for now.

    Raises:
        WorkerError: more was asked for than there is.
    """
    gpus, cpus = sum(node.gpus for node in cluster), max(1, sum(node.cpus for node in cluster))
    if devices == "cuda" and not gpus and not (growing and count):
        raise WorkerError("workers.devices is cuda, but Ray sees no GPU; use devices: cpu, or check nvidia-smi")
    if devices == "cuda" or (gpus and devices == "auto"):
        room = sum(slots(node.gpus, devices_per_worker) for node in cluster)
        if not room and not growing:
            raise WorkerError(
                f"workers.devices_per_worker is {devices_per_worker:g}, but no machine has so many GPUs (the most: "
                f"{max(node.gpus for node in cluster)})"
            )
        if count is not None and count > room and not growing:
            raise WorkerError(f"workers.count is {count}, but there is room for only {room} on {gpus} GPUs")
        workers = count or min(room, max(1, trials))
        fullest = max((slots(node.gpus, devices_per_worker) for node in cluster), default=1) or 1
        least = min((node.cpus for node in cluster if node.gpus), default=1)
        return Placement("cuda", workers, threads or max(1, least // min(workers, fullest)), devices_per_worker)
    needed = (count or 1) * (threads or 1)
    if count is not None and count > cpus and not growing:
        raise WorkerError(f"workers.count is {count}, but there are only {cpus} CPU cores for workers")
    if needed > cpus and not growing:
        raise WorkerError(
            f"{count or 1} workers of {threads} threads need {needed} cores, but there are {cpus}; "
            "set a smaller workers.threads or workers.count"
        )
    if count is None:
        room = sum(node.cpus // threads for node in cluster) if threads else cpus
        if not room and not growing:
            most = max(node.cpus for node in cluster)
            raise WorkerError(f"workers.threads is {threads}, but no machine has more than {most} cores")
        count = min(max(1, room), max(1, trials))
    most = max((node.cpus for node in cluster), default=1)
    return Placement("cpu", count, threads or max(1, min(most, cpus // count)))


def slots(gpus: int, devices_per_worker: float) -> int:
    """Return how many workers fit on a machine's GPUs; a worker that shares a GPU stays on one."""
    if devices_per_worker >= 1:
        return int(gpus // devices_per_worker)
    return gpus * int(1 / devices_per_worker + 1e-9)


def may_grow() -> bool:
    """Whether the cluster was there before this process, so that machines may join and leave."""
    node = ray._private.worker._global_node
    return node is None or not node.is_head()
