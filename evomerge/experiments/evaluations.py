"""Evaluations: every recipe once per set of items, its per-item responses kept on disk as soon as they come in.

A recipe whose responses are stored is not evaluated again, so nothing that a worker finished is lost when the run is
killed before the result was told.
"""

from __future__ import annotations

import hashlib
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from evomerge.experiments.confirmation import shares
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import Candidate
from evomerge.experiments.run_folder import write_json
from evomerge.fitness import Fitness, Responses, Split
from evomerge.recipes import Recipe, write_recipe
from evomerge.search_spaces.genes import Genome
from evomerge.workers import Outcome, Pool

SPLITS: tuple[Split, ...] = get_args(Split)
POLL_SECONDS = 0.5


class ResponseStore:
    """The ``responses/`` folder: one JSON file per recipe and split.

    Args:
        folder: the folder.
        digests: split to a digest of its items; a file made with other items is not used.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self._folder, self._digests = folder, digests

    def read(self, split: Split, recipe_hash: str) -> Outcome | None:
        """Return the stored outcome, or None."""
        try:
            data = json.loads(self._path(split, recipe_hash).read_text(encoding="utf-8"))
            return Outcome(**data["outcome"]) if data["items"] == self._digests[split] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, split: Split, recipe_hash: str, outcome: Outcome) -> None:
        """Store a successful outcome, in one step."""
        write_json(self._path(split, recipe_hash), {"items": self._digests[split], "outcome": asdict(outcome)})

    def _path(self, split: Split, recipe_hash: str) -> Path:
        return self._folder / split / f"{recipe_hash}.json"


class Evaluations:
    """Asks the pool for evaluations on one split's items, and remembers them (an ``Evaluator`` of the loop).

    Args:
        pool: returns the workers, built when first needed.
        fitness: scores responses.
        store: where responses are kept.
        split: which items.
    """

    def __init__(
        self,
        pool: Callable[[], Pool],
        fitness: Fitness,
        store: ResponseStore,
        split: Split,
    ) -> None:
        self._pool, self._fitness, self._store, self._split = pool, fitness, store, split
        self._items = fitness.items(split)
        self._pending: set[str] = set()
        self._failed: dict[str, Outcome] = {}
        self._asked: set[str] = set()

    def start(self, recipe: Recipe) -> None:
        """Begin to evaluate ``recipe``, unless its responses are known or on their way."""
        key = recipe.hash
        if key in self._pending or key in self._failed or self._store.read(self._split, key) is not None:
            return
        self._pending.add(key)
        self._pool().submit(key, write_recipe(recipe), self._items)

    def recall(self, trials: Sequence[Trial]) -> None:
        """Take note of the journal's trials: a recipe that failed then has failed now too."""
        self._asked |= {trial.recipe_hash for trial in trials}
        self._failed |= {t.recipe_hash: Outcome(None, t.error) for t in trials if t.failed}

    def outcome(self, recipe: Recipe) -> Outcome:
        """Wait for the recipe's evaluation and return its outcome."""
        key = recipe.hash
        while key in self._pending:
            finished = self._pool().next(POLL_SECONDS)
            if finished is not None:
                self._receive(*finished)
        return self._failed.get(key) or self._stored(recipe)

    def finish(self, candidate: Candidate) -> Trial:
        """Wait for the candidate's evaluation and return it as a trial; a failure is a trial without objectives."""
        return self.trial(candidate.number, candidate.genome, candidate.recipe)

    def trial(self, number: int, genome: Genome, recipe: Recipe) -> Trial:
        """Wait for the recipe's evaluation and return it as trial ``number``."""
        key, outcome = recipe.hash, self.outcome(recipe)
        cached, error, objectives = key in self._asked, outcome.error, None
        truncated: dict[str, float] = {}
        unextracted: dict[str, float] = {}
        self._asked.add(key)
        if outcome.responses is not None:
            responses = Responses.from_json(outcome.responses)
            objectives, error = self._score(responses)
            truncated, unextracted = shares(responses, "truncated"), shares(responses, "unextracted")
        now = datetime.now()
        return Trial(
            number=number,
            genome=dict(genome),
            objectives=objectives,
            recipe_hash=key,
            error=error,
            seconds=outcome.seconds,
            merge_seconds=outcome.merge_seconds,
            forward_seconds=outcome.forward_seconds,
            cached=cached,
            worker=outcome.worker,
            device=outcome.device,
            batch_size=outcome.batch_size,
            truncated=truncated,
            unextracted=unextracted,
            started=now - timedelta(seconds=outcome.seconds),
            finished=now,
        )

    def _score(self, responses: Responses) -> tuple[dict[str, float] | None, str | None]:
        """Return the objectives, or None and why they cannot be computed (a metric of a broken merge may overflow)."""
        try:
            objectives = self._fitness.score(responses)
        except Exception:
            return None, traceback.format_exc()
        unusable = [name for name, value in objectives.items() if not math.isfinite(value)]
        return (None, f"not a finite number: {', '.join(unusable)}") if unusable else (objectives, None)

    def _receive(self, key: str, outcome: Outcome) -> None:
        if outcome.responses is None:
            self._failed[key] = outcome
        else:
            self._store.write(self._split, key, outcome)
        self._pending.discard(key)

    def _stored(self, recipe: Recipe) -> Outcome:
        outcome = self._store.read(self._split, recipe.hash)
        if outcome is None:
            raise LookupError(f"no stored responses of recipe {recipe.hash}")
        return outcome


def digest(items: Mapping[str, Sequence[str]]) -> str:
    """Return a short hash of the items asked, their order included."""
    canonical: Any = {task: list(names) for task, names in sorted(items.items())}
    return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:16]
