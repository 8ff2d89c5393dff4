"""The Ray pool of workers that merge and evaluate recipes."""

from evomerge.workers.actor import Outcome, Worker, WorkerSpec
from evomerge.workers.connection import connect
from evomerge.workers.pool import Placement, Pool, place
from evomerge.workers.states import WorkerPhase, WorkerState

__all__ = ["Outcome", "Placement", "Pool", "Worker", "WorkerPhase", "WorkerSpec", "WorkerState", "connect", "place"]
