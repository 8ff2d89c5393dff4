"""Evaluations: every recipe once per set of items, its per-item responses kept on disk as soon as they come in.

A recipe whose responses are stored is not evaluated again, so nothing that a worker finished is lost when the run is
killed before the result was told.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, get_args

import numpy as np

from evomerge.errors import RunError, WorkerError
from evomerge.experiments.confirmation import shares
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import Candidate
from evomerge.experiments.response_store import ResponseStore
from evomerge.fitness import Fitness, Responses, Split
from evomerge.recipes import Recipe, pack_recipe, sources_of
from evomerge.redaction import redact
from evomerge.search_spaces.genes import Genome
from evomerge.search_spaces.lineage import LineageSpace
from evomerge.workers import Outcome, Pool

SPLITS: tuple[Split, ...] = get_args(Split)
POLL_SECONDS = 0.5
KEPT = 4096  # packed recipes of sources; members of an archive are crossed again and again
NO_GENOME: Genome = MappingProxyType({})  # of models that the searcher did not propose


class Scored(NamedTuple):
    """Objectives, and the standard errors of those that are estimated.

    ``own`` holds value and standard error as the recipe's own responses have them, where these were smoothed.
    """

    objectives: dict[str, float]
    standard_errors: dict[str, float]
    own: Mapping[str, tuple[float, float]]


class Asked(NamedTuple):
    """What a recipe is asked: items to respond to, and items whose soft responses are wanted, by task."""

    items: Mapping[str, Sequence[str]]
    gold: Mapping[str, Sequence[str]]


# From the responses so far (None before the first) to what to ask next; None when they are enough.
Asking = Callable[[Responses | None], Asked | None]


# Called now and then while a result is waited for, with a function from a recipe's hash to what to call it.
Polled = Callable[[Callable[[str], str]], None]


def unwatched(label: Callable[[str], str]) -> None:
    """Do nothing: nobody watches."""


class Plan(Protocol):
    """What the recipes of one part of a run are asked, and how that is scored."""

    @property
    def name(self) -> str:
        """Of the part: a folder's name."""

    @property
    def digest(self) -> str:
        """Differs where other items may be asked; responses stored under another digest are not used."""

    @property
    def asks_again(self) -> bool:
        """Whether more may be asked of a recipe once its responses are in."""

    def begin(self, recipe: Recipe, genome: Genome) -> Asking:
        """Return what decides on the items of the recipe, which is started now."""

    def score(self, responses: Responses, genome: Genome, recipe_hash: str) -> Scored:
        """Return the objectives of a recipe with these responses."""


@dataclass(frozen=True)
class FixedPlan:
    """The same items for every recipe.

    Args:
        name: of the part of the run.
        fitness: scores responses.
        asked: the items.
    """

    name: str
    fitness: Fitness
    asked: Asked
    asks_again: ClassVar[bool] = False

    @property
    def digest(self) -> str:
        """Of the items."""
        return digest(*self.asked)

    def begin(self, recipe: Recipe, genome: Genome) -> Asking:
        """Return a function that asks once."""
        return lambda responses: self.asked if responses is None else None

    def score(self, responses: Responses, genome: Genome, recipe_hash: str) -> Scored:
        """Return the exact objectives."""
        return Scored(self.fitness.score(responses), {}, {})


class Evaluations:
    """Asks the pool for evaluations by one plan, and remembers them (an ``Evaluator`` of the loop).

    Args:
        pool: returns the workers, built when first needed.
        plan: which items, and how they are scored.
        folder: the run's responses.
        polled: called now and then while a result is waited for.
        lineage: knows the recipes of trials that recipes name as sources.

    Attributes:
        waited: seconds spent waiting for workers.
    """

    def __init__(
        self,
        pool: Callable[[], Pool],
        plan: Plan,
        folder: Path,
        polled: Polled = unwatched,
        lineage: LineageSpace | None = None,
    ) -> None:
        self._pool, self._plan, self._polled, self._lineage = pool, plan, polled, lineage
        self._packed = lru_cache(maxsize=KEPT)(self._pack)
        self.waited = 0.0
        self._next_trial = 0
        self._store = ResponseStore(folder, plan.name, plan.digest)
        self._pending: dict[str, _Pending] = {}
        self._failed: dict[str, Outcome] = {}
        self._asked: set[str] = set()
        self._dropped: set[str] = set()
        self._new: dict[str, Outcome] = {}  # stored, and not asked for yet
        self._latest: tuple[str, Responses] | None = None  # of the last trial; its item scores are often wanted next

    def start(self, recipe: Recipe, genome: Genome = NO_GENOME, label: str = "") -> None:
        """Begin to evaluate ``recipe``, unless its responses are known or on their way.

        Args:
            recipe: what to merge.
            genome: of a trial; trials are started in the order of their numbers.
            label: what to call another model.
        """
        key = recipe.hash
        if genome is not NO_GENOME:
            label, self._next_trial = f"trial {self._next_trial}", self._next_trial + 1
        if key in self._pending or key in self._failed or self._store.read(key) is not None:
            return
        asking = self._plan.begin(recipe, genome)
        first = asking(None)
        assert first is not None, "a plan asks something"
        self._pending[key] = pending = _Pending(recipe, pack_recipe(recipe), asking, label or key[:8], first)
        with self._waiting():  # for the workers to be built, the first time
            pool = self._pool()
        pool.submit(key, pending.packed, *first, lineage=self._sources(recipe))

    def recall(self, trials: Sequence[Trial]) -> None:
        """Take note of the journal's trials: a recipe that failed then has failed now too."""
        self._next_trial = len(trials)
        self._asked |= {trial.recipe_hash for trial in trials}
        self._failed |= {t.recipe_hash: Outcome(None, t.error) for t in trials if t.failed}

    def outcome(self, recipe: Recipe) -> Outcome:
        """Wait for the recipe's evaluation and return its outcome."""
        return self._outcome(recipe.hash)

    def _outcome(self, key: str) -> Outcome:
        while key in self._pending:
            with self._waiting():
                finished = self._pool().next(POLL_SECONDS)
            if finished is not None:
                self._receive(*finished)
            self._polled(self._label)
        return self._failed.get(key) or self._new.pop(key, None) or self._stored(key)

    def responses(self, recipe: Recipe) -> Responses:
        """Wait for the recipe's evaluation and return its responses.

        Raises:
            WorkerError: it failed.
        """
        outcome = self.outcome(recipe)
        if outcome.responses is None:
            raise WorkerError(f"a recipe could not be evaluated:\n{outcome.error}")
        return Responses.from_json(outcome.responses)

    def item_scores(self, trial: Trial, fitness: Fitness) -> dict[str, np.ndarray]:
        """Return objective → float64 scores of the items, higher is better, of a trial that did not fail.

        Raises:
            RunError: its responses are no longer there.
        """
        responses = self._stored_responses(trial)
        signs = {each.name: 1.0 if each.direction == "maximize" else -1.0 for each in fitness.objectives}
        return {name: sign * np.array(fitness.item_values(responses, name)) for name, sign in signs.items()}

    def _stored_responses(self, trial: Trial) -> Responses:
        if self._latest is not None and self._latest[0] == trial.recipe_hash:
            return self._latest[1]
        stored = self._store.read(trial.recipe_hash)
        if stored is None or stored.responses is None:
            raise RunError(
                f"the responses of trial {trial.number}, which the searcher learns from, are not in {self._store.path} "
                f"(recipe {trial.recipe_hash}): restore the file, or start a new run"
            )
        return Responses.from_json(stored.responses)

    def finish(self, candidate: Candidate) -> Trial | None:
        """Wait for the candidate's evaluation and return it as a trial; a failure is a trial without objectives.

        None if `wind_up` came before anybody began with it.
        """
        if candidate.recipe.hash in self._dropped:
            return None
        return self.trial(candidate.number, candidate.genome, candidate.recipe)

    def wind_up(self) -> None:
        """Finish what is being evaluated, and begin nothing more."""
        if not self._pending:
            return
        self._dropped |= set(self._pool().withdraw())
        for key in self._dropped:
            self._pending.pop(key, None)
        for key in list(self._pending):
            self._outcome(key)

    def trial(self, number: int, genome: Genome, recipe: Recipe) -> Trial:
        """Wait for the recipe's evaluation and return it as trial ``number``."""
        key = recipe.hash
        outcome = self._outcome(key)
        cached, error = key in self._asked, outcome.error
        scored: Scored | None = None
        truncated: dict[str, float] = {}
        unextracted: dict[str, float] = {}
        items: dict[str, int] = {}
        self._asked.add(key)
        if outcome.responses is not None:
            responses = Responses.from_json(outcome.responses)
            self._latest = key, responses
            scored, error = self._score(responses, genome, key)
            truncated, unextracted = shares(responses, "truncated"), shares(responses, "unextracted")
            items = {task: len(found.items) for task, found in responses.tasks.items()}
        now = datetime.now()
        return Trial(
            number=number,
            genome=dict(genome),
            objectives=None if scored is None else scored.objectives,
            standard_errors={} if scored is None else scored.standard_errors,
            own={} if scored is None else {name: list(each) for name, each in scored.own.items()},
            recipe_hash=key,
            error=None if error is None else redact(error),
            seconds=outcome.seconds,
            merge_seconds=outcome.merge_seconds,
            forward_seconds=outcome.forward_seconds,
            queue_seconds=outcome.queue_seconds,
            cached=cached,
            worker=outcome.worker,
            device=outcome.device,
            batch_size=outcome.batch_size,
            items=items,
            truncated=truncated,
            unextracted=unextracted,
            started=now - timedelta(seconds=outcome.seconds),
            finished=now,
        )

    def _score(self, responses: Responses, genome: Genome, key: str) -> tuple[Scored | None, str | None]:
        """Return the objectives, or None and why they cannot be computed (a metric of a broken merge may overflow)."""
        try:
            scored = self._plan.score(responses, genome, key)
        except Exception:
            return None, traceback.format_exc()
        numbers = (*scored.objectives.items(), *scored.standard_errors.items())
        unusable = [name for name, value in numbers if not math.isfinite(value)]
        return (None, f"not a finite number: {', '.join(unusable)}") if unusable else (scored, None)

    def _receive(self, key: str, outcome: Outcome) -> None:
        """Take in what came back for a recipe, and ask for more of it, or be done with it."""
        pending = self._pending[key]
        if outcome.missing:
            lineage = self._ancestors(outcome.missing)
            self._pool().submit(key, pending.packed, *pending.asked, ahead=True, lineage=lineage)
            return
        # Ends of one clock: that of the worker may be another machine's.
        waited = max(0.0, time.monotonic() - pending.began - outcome.seconds)
        outcome = replace(outcome, queue_seconds=waited)
        if outcome.responses is None:
            self._failed[key] = outcome
            del self._pending[key]
            return
        if pending.outcome is not None:
            outcome = joined(pending.outcome, outcome)
        try:
            more = pending.asking(Responses.from_json(outcome.responses or "")) if self._plan.asks_again else None
        except Exception:
            self._failed[key] = replace(outcome, responses=None, error=traceback.format_exc())
            del self._pending[key]
            return
        if more is None:
            self._store.write(key, outcome)
            self._new[key] = outcome
            del self._pending[key]
            self._pool().dispatch()
        else:
            pending.outcome, pending.asked, pending.began = outcome, more, time.monotonic()
            self._pool().submit(key, pending.packed, *more, ahead=True, lineage=self._sources(pending.recipe))

    def _sources(self, recipe: Recipe) -> dict[str, str]:
        """Return the packed recipes of a recipe's sources: mostly all that a worker needs, and little to send."""
        return {source: self._packed(source) for source in sources_of(recipe)}

    def _ancestors(self, trials: Sequence[str]) -> dict[str, str]:
        """Return the packed recipes of these trials and of all that they are made of."""
        assert self._lineage is not None, "only recipes of a lineage space name trials as sources"
        known = self._lineage.lineage([self._lineage.recipe_of(trial) for trial in trials])
        return {trial: self._packed(trial) for trial in (*known, *trials)}

    def _pack(self, trial: str) -> str:
        assert self._lineage is not None, "only recipes of a lineage space name trials as sources"
        return pack_recipe(self._lineage.recipe_of(trial))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def _label(self, key: str) -> str:
        """Return what to call a recipe that is on its way."""
        pending = self._pending.get(key)
        return key[:8] if pending is None else pending.label

    def _stored(self, key: str) -> Outcome:
        outcome = self._store.read(key)
        if outcome is None:
            raise LookupError(f"no stored responses of recipe {key}")
        return outcome


@dataclass
class _Pending:
    """A recipe on its way: what decides on its items, and what came back so far."""

    recipe: Recipe
    packed: str
    asking: Asking
    label: str
    asked: Asked
    outcome: Outcome | None = None
    began: float = field(default_factory=time.monotonic)


def joined(first: Outcome, more: Outcome) -> Outcome:
    """Return two successful outcomes of one recipe, on different items, as one."""
    responses = Responses.from_json(first.responses or "").with_more(Responses.from_json(more.responses or ""))
    return replace(
        more,
        responses=responses.to_json(),
        seconds=first.seconds + more.seconds,
        merge_seconds=first.merge_seconds + more.merge_seconds,
        forward_seconds=first.forward_seconds + more.forward_seconds,
        queue_seconds=first.queue_seconds + more.queue_seconds,
    )


def digest(items: Mapping[str, Sequence[str]], gold: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a short hash of the items asked, their order included."""
    canonical: Any = {task: list(names) for task, names in sorted(items.items())}
    if gold:
        canonical = [canonical, {task: list(names) for task, names in sorted(gold.items())}]
    return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:16]
