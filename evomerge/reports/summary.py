"""What a report is made from: one frozen record of a run, filled by ``evomerge.experiments``.

Everything in ``evomerge.reports`` is a function of these classes, so a report can be drawn from a finished
run, from one that is still going, and from made-up numbers in a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from evomerge.fronts import Quality
from evomerge.kinship import Products
from evomerge.search_spaces.genes import Genome
from evomerge.searchers.grids import GridArchive
from evomerge.searchers.surrogates.explanation import Prediction, SurrogateFacts

Direction = Literal["maximize", "minimize"]
ReferenceKind = Literal["parent", "base", "uniform"]
ConfirmedKind = Literal["parent", "base", "uniform", "trial", "prediction"]
Z95 = 1.96  # standard errors to either side of a value in its 95% interval


@dataclass(frozen=True)
class ObjectiveInfo:
    """One objective: its name, which way is better, and the task and metric behind it."""

    name: str
    direction: Direction = "maximize"
    weight: float = 1.0
    task: str = ""
    metric: str = ""

    @property
    def sign(self) -> int:
        """+1 when larger is better, -1 when smaller is."""
        return 1 if self.direction == "maximize" else -1

    @property
    def title(self) -> str:
        """The name, with the direction where it is not the usual one."""
        return self.name if self.direction == "maximize" else f"{self.name} (smaller is better)"


@dataclass(frozen=True)
class TrialRow:
    """One finished trial as the journal has it.

    ``objectives`` is None for a failed trial, whose ``error`` is a traceback. ``truncated`` and
    ``unextracted`` map a task to the share (0 to 1) of its generations cut off by the token
    limit and of its answers that could not be extracted. ``seconds`` is wall time; ``merge_seconds`` and
    ``forward_seconds`` are parts of it; ``queue_seconds`` passed between question and answer besides. Since the trial
    before, the driver worked ``driver_seconds`` and waited ``wait_seconds`` for its ``workers``. A ``cached`` trial
    had a recipe that was evaluated before.
    ``standard_errors`` are of the objectives that are estimated from a few items.
    """

    number: int
    genome: Genome
    objectives: Mapping[str, float] | None
    state: Literal["complete", "failed"] = "complete"
    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    queue_seconds: float = 0.0
    driver_seconds: float = 0.0
    wait_seconds: float = 0.0
    workers: int = 0
    finished: datetime | None = None
    error: str | None = None
    truncated: Mapping[str, float] = field(default_factory=dict)
    unextracted: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False
    worker: str = ""
    on_front: bool = False
    standard_errors: Mapping[str, float] = field(default_factory=dict)

    def interval(self, objective: str) -> Interval:
        """Return an objective's value with the 95% interval of its estimate; without one where it is exact."""
        value = (self.objectives or {})[objective]
        return Interval.estimated(value, self.standard_errors.get(objective, 0.0))


@dataclass(frozen=True)
class ReferenceRow:
    """A parent (by nickname), the base or the uniform merge, scored on the search items."""

    name: str
    kind: ReferenceKind
    objectives: Mapping[str, float]
    truncated: Mapping[str, float] = field(default_factory=dict)
    unextracted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """An estimate from ``items`` items with the ends of its 95% interval."""

    value: float
    low: float
    high: float
    items: int = 0

    @classmethod
    def estimated(cls, value: float, standard_error: float) -> Interval:
        """Return a score in [0, 1] that is estimated; the interval has no width where the standard error is 0."""
        reach = Z95 * standard_error
        return cls(value, max(value - reach, min(value, 0.0)), min(value + reach, max(value, 1.0)))

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return self.high > self.low


@dataclass(frozen=True)
class ConfirmedRow:
    """A model on the confirmation items, which the search never saw.

    A prediction is a point of the front that surrogates predict, numbered on after the trials; ``predicted`` is what
    it was predicted to be. ``mean`` is over the objectives by their weights, each turned so that larger is better.
    """

    label: str
    trial: int | None
    kind: ConfirmedKind
    objectives: Mapping[str, Interval]
    mean: Interval
    truncated: Mapping[str, float] = field(default_factory=dict)
    unextracted: Mapping[str, float] = field(default_factory=dict)
    predicted: Prediction | None = None


@dataclass(frozen=True)
class Comparison:
    """The winner minus ``against`` (a confirmed row's label) on the mean over objectives, paired by item.

    ``p_value`` is corrected for having picked the winner among several trials; the interval is not.
    """

    against: str
    difference: Interval
    p_value: float

    @property
    def beats(self) -> bool:
        """Whether the winner is better: the interval lies above zero and the corrected p is below 0.05."""
        return self.difference.low > 0 and self.p_value < 0.05

    @property
    def loses(self) -> bool:
        """Whether the winner is worse: the 95% interval lies below zero."""
        return self.difference.high < 0


@dataclass(frozen=True)
class ItemsSpent:
    """How many items of one task a run with estimated scores asked.

    Args:
        search: the task's search items.
        calibration: asked of the models that only calibration needed.
        trials: asked of the trials.
        exact: what the same trials would have been asked without estimation.
        soft: probabilities of right answers, of all models; exact evaluation asks for none.
    """

    search: int
    calibration: int
    trials: int
    exact: int
    soft: int = 0

    @property
    def total(self) -> int:
        """All items asked because of the search."""
        return self.calibration + self.trials


@dataclass(frozen=True)
class EstimateCheck:
    """A confirmed trial: its estimate, its score on the confirmation items, and the estimate minus that."""

    trial: int
    estimate: Interval
    confirmed: Interval
    difference: Interval


@dataclass(frozen=True)
class AbilityRow:
    """A model's ability by objective, as (value, standard error)."""

    label: str
    kind: ConfirmedKind
    values: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Estimates:
    """How a run estimated its trials' scores, what that cost, and how good it was.

    Args:
        kind: the estimator.
        items: of each task asked of a trial; at most, where ``adaptive``.
        adaptive: whether clearly dominated trials were asked fewer.
        bank: the item bank that the experiment names; empty where the run made its own.
        merges: random merges that the run calibrated items on, beside its reference models.
        evaluated: the trials that were asked anything: failed ones and recipes known before were not.
        spent: by task.
        checks: by objective, once the front is confirmed.
        abilities: of the reference models and the winner, once there is one.
        dimensions: objective to the number of abilities. Of several, ``abilities`` hold the expected score.
    """

    kind: str
    items: int
    adaptive: bool
    bank: str
    merges: int
    evaluated: int
    spent: Mapping[str, ItemsSpent]
    checks: Mapping[str, Sequence[EstimateCheck]] = field(default_factory=dict)
    abilities: Sequence[AbilityRow] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> ItemsSpent:
        """Over all tasks."""
        names = ("search", "calibration", "trials", "exact", "soft")
        return ItemsSpent(*(sum(getattr(one, name) for one in self.spent.values()) for name in names))


@dataclass(frozen=True)
class Foretelling:
    """What an objective of a trial or prediction was foretold to be, with the standard error, and its score."""

    trial: int
    foretold: float
    standard_error: float
    score: float

    @property
    def miss(self) -> float:
        """The score minus what was foretold."""
        return self.score - self.foretold

    @property
    def errors(self) -> float:
        """How many standard errors the miss is large."""
        if self.standard_error > 0:
            return abs(self.miss) / self.standard_error
        return math.inf if self.miss else 0.0

    @property
    def holds(self) -> bool:
        """Whether the 95% interval of the prediction holds the score."""
        return self.errors <= Z95


@dataclass(frozen=True)
class Surrogates:
    """What the surrogates that a searcher fitted say, and how it turned out.

    Args:
        facts: how well each objective's surrogate fits.
        front: the predicted objectives of points that nobody evaluated.
        foretold: by objective, the trials that were predicted before they were evaluated, in order.
        confirmed: by objective, the points of the predicted front that were confirmed; errors are of the difference
            between a prediction and a score on the confirmation items.
    """

    facts: Mapping[str, SurrogateFacts]
    front: Sequence[Mapping[str, float]] = ()
    foretold: Mapping[str, Sequence[Foretelling]] = field(default_factory=dict)
    confirmed: Mapping[str, Sequence[Foretelling]] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """How many the surrogates are fitted to."""
        return max((facts.evaluations for facts in self.facts.values()), default=0)


@dataclass(frozen=True)
class MergeOfTwo:
    """One merge in the tree of a nested run, which is a run of its own; the last of a tree is the run itself.

    Args:
        name: what the merges above call it.
        left: a parent or another merge, as is ``right``.
        right: see ``left``.
        objectives: those that its trials are scored on.
        done: trials finished.
        budget: trials planned.
        pick: the trial that it picked; None before.
        confirmed: the pick on the confirmation items.
        report: where its report lies, relative to that of the run; empty where it has none of its own.
    """

    name: str
    left: str
    right: str
    objectives: Sequence[str]
    done: int
    budget: int
    pick: int | None = None
    confirmed: ConfirmedRow | None = None
    report: str = ""


@dataclass(frozen=True)
class ParentsKinship:
    """The parents, by name, and what their kinship follows from."""

    models: Sequence[str]
    products: Products


@dataclass(frozen=True)
class Crossing:
    """What is particular to a run whose trials are crossed from earlier ones.

    ``labels`` are the genes whose numbers are names, of trials and of random draws: they are no amounts, to be drawn or
    correlated. ``sources`` says in words what the pick was crossed from; empty before there is one.
    """

    labels: Sequence[str]
    sources: Sequence[str] = ()


@dataclass(frozen=True)
class RunSummary:
    """A run, finished or not.

    ``hypervolume`` holds (trial number, volume dominated up to and including that trial), measured against
    ``reference_point``. ``pick`` is the trial or prediction chosen by ``pick_rule`` on the confirmation items; None
    before.
    ``names`` maps references to what the experiment calls these models.
    ``flags`` are warnings in words; ``facts`` are label → text pairs shown as they are (seed, items).
    ``estimates`` is None where scores are exact, and before the items are chosen. ``quality`` is the front's after the
    last trial, None for a single objective; ``igd_plus`` holds (trial number, IGD+ up to that trial) where a front is
    known. ``surrogates`` is None unless the searcher fits any, and before it told of them. ``tree`` holds the merges of
    a nested run, each after those that it merges. ``archives`` holds the grids of a searcher that fills niches, by what
    their elites are judged by; elites are named by their trials. ``kinship`` is None unless the searcher asks for it,
    ``crossing`` unless trials are crossed from earlier ones.
    """

    name: str
    folder: str
    status: str
    experiment_yaml: str
    objectives: Sequence[ObjectiveInfo]
    genes: Sequence[str]
    trials: Sequence[TrialRow]
    references: Sequence[ReferenceRow]
    hypervolume: Sequence[tuple[int, float]] = ()
    reference_point: Mapping[str, float] = field(default_factory=dict)
    confirmed: Sequence[ConfirmedRow] = ()
    pick: int | None = None
    pick_rule: str = ""
    comparisons: Sequence[Comparison] = ()
    winner_recipe_yaml: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    wall_seconds: float = 0.0
    budget: int = 0
    estimates: Estimates | None = None
    quality: Quality | None = None
    igd_plus: Sequence[tuple[int, float]] = ()
    surrogates: Surrogates | None = None
    tree: Sequence[MergeOfTwo] = ()
    archives: Mapping[str, GridArchive] = field(default_factory=dict)
    kinship: ParentsKinship | None = None
    crossing: Crossing | None = None

    @property
    def labels(self) -> Sequence[str]:
        """The genes whose numbers are names."""
        return () if self.crossing is None else self.crossing.labels

    @property
    def complete(self) -> list[TrialRow]:
        """The trials that have objectives, in order."""
        return [trial for trial in self.trials if trial.objectives is not None]

    @property
    def failed(self) -> list[TrialRow]:
        """The trials that failed, in order."""
        return [trial for trial in self.trials if trial.objectives is None]

    @property
    def front(self) -> list[TrialRow]:
        """The non-dominated trials, in order."""
        return [trial for trial in self.complete if trial.on_front]

    @property
    def winner(self) -> ConfirmedRow | None:
        """The confirmed row of the pick."""
        return next((row for row in self.confirmed if row.trial is not None and row.trial == self.pick), None)

    @property
    def predictions(self) -> list[ConfirmedRow]:
        """The confirmed points of the predicted front."""
        return [row for row in self.confirmed if row.predicted is not None]

    def best_parent(self, objective: ObjectiveInfo) -> ReferenceRow | None:
        """Return the parent that is best in ``objective`` on the search items."""
        return best_parent(self.references, objective)


def best_parent(references: Sequence[ReferenceRow], objective: ObjectiveInfo) -> ReferenceRow | None:
    """Return the parent among ``references`` that is best in ``objective``; None if there is none."""
    parents = [row for row in references if row.kind == "parent" and objective.name in row.objectives]
    return max(parents, key=lambda row: objective.sign * row.objectives[objective.name], default=None)
