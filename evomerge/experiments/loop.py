"""The search, on one page: ask, express, evaluate, record, tell.

Results are told in ask order, and candidate k is asked once exactly the trials up to k − W are told (W candidates are
in flight), so the outcome depends neither on timing nor on how often the run was killed and resumed: trials that the
journal already holds are told to the fresh searcher as if they had just come in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np

from evomerge.errors import RunError, WorkerError
from evomerge.experiments.journal import Trial
from evomerge.recipes import Recipe
from evomerge.search_spaces import SearchSpace
from evomerge.search_spaces.genes import Genome, Value
from evomerge.searchers import ItemSearcher, Searcher

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A genome on its way: its number in ask order and its recipe."""

    number: int
    genome: dict[str, Value]
    recipe: Recipe


class Evaluator(Protocol):
    """What the loop needs of the workers."""

    def start(self, recipe: Recipe, genome: Genome) -> None:
        """Begin to evaluate ``recipe``, unless its responses are known or on their way."""

    def finish(self, candidate: Candidate) -> Trial | None:
        """Wait for the candidate's evaluation and return it as a trial; a failure is a trial without objectives.

        None if `wind_up` came before anybody began with it.
        """

    def wind_up(self) -> None:
        """Finish what is being evaluated, and begin nothing more."""


def search(
    searcher: Searcher,
    space: SearchSpace,
    evaluator: Evaluator,
    *,
    recorded: Iterable[Trial],
    record: Callable[[Trial], None],
    told: Callable[[Trial, int], None],
    budget: int,
    in_flight: int,
    stop: Callable[[], bool] = lambda: False,
    own: bool = False,
    item_scores: Callable[[Trial], Mapping[str, np.ndarray]] | None = None,
) -> int:
    """Run trials until ``budget`` of them are told, or ``stop()``; return how many were told.

    Args:
        recorded: the journal's trials, in ask order; taken one by one, not before they are asked.
        record: called with each new trial before it is told.
        told: called after each trial is told, recorded ones included, with the number of candidates still open.
        in_flight: W, the number of candidates open at once.
        own: tell trials' own estimates, where these are smoothed.
        item_scores: returns what an `ItemSearcher` is told of a trial that did not fail; None for other searchers.

    Raises:
        RunError: the searcher does not repeat the journal's genomes.
        WorkerError: every trial failed.
    """
    open_candidates: deque[tuple[dict[str, Value], Candidate | Trial]] = deque()
    replay = iter(recorded)
    known = next(replay, None)  # of the candidate that is asked next
    asked = done = 0
    while True:
        stopping = known is None and stop()
        if stopping:
            evaluator.wind_up()
        while asked < budget and len(open_candidates) < in_flight and not stopping:
            genome = searcher.ask()
            if genome is None:
                break
            if known is None:
                candidate = Candidate(asked, genome, space.express(genome))
                evaluator.start(candidate.recipe, genome)
                open_candidates.append((genome, candidate))
            else:
                open_candidates.append((genome, known))
                known = next(replay, None)
            asked += 1
        if not open_candidates:
            return done
        genome, opened = open_candidates.popleft()
        if isinstance(opened, Candidate):
            finished = evaluator.finish(opened)
            if finished is None:
                return done
            trial = finished
            record(trial)
        else:
            trial = _replayed(genome, opened)
        found = trial.alone if own else (trial.objectives, trial.standard_errors)
        if item_scores is None:
            searcher.tell(genome, *found)
        else:
            cast(ItemSearcher, searcher).tell(genome, *found, None if trial.failed else item_scores(trial))
        done += 1
        told(trial, len(open_candidates))


def _replayed(genome: Genome, trial: Trial) -> Trial:
    if trial.genome != genome:
        changed = next(g for g in genome if trial.genome.get(g) != genome[g])
        raise RunError(
            f"the journal's trial {trial.number} has {changed} = {trial.genome.get(changed)!r}, but the searcher now "
            f"proposes {genome[changed]!r}: the experiment or a library changed since the run began. "
            "Restore experiment.yaml and the versions that the report names, or start a new run."
        )
    return trial


def drained(trials: deque[T]) -> Iterator[T]:
    """Yield ``trials`` in order and let go of each, as a long journal need not be held for the whole run."""
    while trials:
        yield trials.popleft()


class AllFailed:
    """Stops a run whose first trials all fail: further ones would fail as well.

    Args:
        limit: how many failures in a row, from the first trial on, are too many.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._failed, self._first = limit, 0, ""
        self._over = False

    def check(self, trial: Trial, *, last: bool) -> None:
        """Count ``trial``.

        Raises:
            WorkerError: the limit is reached, or the last trial is in, and none succeeded.
        """
        if not trial.failed:
            self._over = True
        if self._over:
            return
        self._failed += 1
        self._first = self._first or (trial.error or "no reason given")
        if self._failed >= self.limit or last:
            raise WorkerError(
                f"all {self._failed} trials failed, so the run stops here. The first one failed with:\n{self._first}"
            )
