"""What `evomerge plan` says, as numbers: filled by ``evomerge.experiments.plan``, drawn by `plan_table`.

Bytes and seconds throughout. What cannot be known is None, or a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.errors import Problem


@dataclass(frozen=True)
class Span:
    """A range that the truth probably lies in."""

    low: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Span:
        return Span(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class TaskPlan:
    """One task: items of the search and the confirmation, and how many of them a trial is asked.

    ``prompt_tokens`` is the longest of some sampled inputs, ``answer_tokens`` how many are generated at most; None
    where only the task's code knows.
    """

    task: str
    asked: int
    search: int
    confirmation: int
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True)
class StagePlan:
    """One search, or as many alike as ``merges`` says: of ``trials`` together.

    Attributes:
        name: of the stage; empty if there is one.
        space: the search space in a line.
        genes: how many of each kind.
        searcher: its kind.
        trials: of all merges.
        searches: trials as full evaluations: fewer where a merge is scored on a part of the objectives.
        tasks: their items.
        references: models that are scored on all search items.
        calibration: random merges that are.
        confirmed: models that are scored on the confirmation items.
        merges: how many searches.
    """

    name: str
    space: str
    genes: Mapping[str, int]
    searcher: str
    trials: int
    searches: Span
    tasks: tuple[TaskPlan, ...]
    references: int
    calibration: int
    confirmed: Span
    merges: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a worker and of the machine.

    Attributes:
        weights: of the resident model.
        layers: of other parents that paths go through, kept beside it.
        cache: keys and values of a batch, where answers are generated.
        logits: of a batch.
        activations: of a batch, roughly.
        process: Python and its libraries.
        parents: mapped files, which all workers of a machine share, and which give way where memory is short.
        prepared: states that depend on the parents alone, shared likewise.
        measured: of the probe's worker, its own pages; None without a probe, or on another machine.
        device: bytes of the GPU; None on the CPU.
        machine: bytes of this machine.
        assumed: what was taken for granted.
    """

    weights: int
    layers: int
    cache: int
    logits: int
    activations: int
    process: int
    parents: int
    prepared: int
    batch: int
    machine: int
    device: int | None = None
    measured: int | None = None
    assumed: tuple[str, ...] = ()

    @property
    def on_device(self) -> int:
        """What a worker needs where it evaluates: on its GPU, or in the machine's memory."""
        return self.weights + self.layers + self.cache + self.logits + self.activations

    @property
    def worker(self) -> int:
        """What a worker needs of the machine's memory, without what is shared."""
        return self.process + (self.on_device if self.device is None else 0)


@dataclass(frozen=True)
class DiskPlan:
    """What is written: into the run folder, and into the cache."""

    folder: str
    free: int
    responses: int
    journal: int
    reports: int
    models: int
    prepared: int
    cache: str
    exported: int

    @property
    def run(self) -> int:
        """All that goes into the run folder."""
        return self.responses + self.journal + self.reports + self.models


@dataclass(frozen=True)
class TimePlan:
    """How long it takes on these workers: seconds by part, in their order.

    ``trial`` is of one trial on one worker, ``merge`` the part of it that merges. ``device_hours`` counts GPUs, or
    cores. ``slowest_part`` says what the range comes from.
    """

    probe: float
    trial: Span
    merge: Span
    parts: Mapping[str, Span]
    device_hours: Span

    @property
    def total(self) -> Span:
        """All parts."""
        return sum(self.parts.values(), Span(0, 0))


@dataclass(frozen=True)
class WorkersPlan:
    """The workers: how many, where, with what."""

    count: int
    device: str
    threads: int
    devices_each: float
    nodes: int


@dataclass(frozen=True)
class Plan:
    """All of it; parts that cannot be known, as there are problems, are None or empty."""

    name: str
    stages: tuple[StagePlan, ...] = ()
    workers: WorkersPlan | None = None
    memory: MemoryPlan | None = None
    disk: DiskPlan | None = None
    time: TimePlan | None = None
    fetched: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
