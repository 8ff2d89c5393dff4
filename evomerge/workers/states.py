"""What each worker of a pool is doing: for displays, and for whoever asks a running experiment how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WorkerPhase = Literal["starting", "idle", "busy"]


@dataclass(frozen=True)
class WorkerState:
    """One worker.

    Attributes:
        name: node and process id; empty while it starts.
        node: the machine's host name; empty while it starts.
        device: as trials record it, for instance ``cpu (1 threads)``; empty while it starts.
        phase: what it does.
        key: of the recipe (its hash) that it works on; empty if none.
        seconds: how long it has been in this phase.
        done: evaluations that it finished.
        failed: of these, how many failed.
    """

    name: str
    node: str
    device: str
    phase: WorkerPhase
    key: str = ""
    seconds: float = 0.0
    done: int = 0
    failed: int = 0
