"""The Ray pool of workers that merge and evaluate recipes."""

from evomerge.workers.actor import Outcome, Worker, WorkerSpec
from evomerge.workers.pool import Placement, Pool, connect, place

__all__ = ["Outcome", "Placement", "Pool", "Worker", "WorkerSpec", "connect", "place"]
