"""The Ray pool of workers that merge and evaluate recipes."""

from evomerge.workers.actor import Outcome, Ready, Worker, WorkerSpec
from evomerge.workers.connection import connect
from evomerge.workers.placement import Node, Placement, may_grow, nodes, place
from evomerge.workers.pool import Pool
from evomerge.workers.states import WorkerPhase, WorkerState

__all__ = [
    "Node",
    "Outcome",
    "Placement",
    "Pool",
    "Ready",
    "Worker",
    "WorkerPhase",
    "WorkerSpec",
    "WorkerState",
    "connect",
    "may_grow",
    "nodes",
    "place",
]
