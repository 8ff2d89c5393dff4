"""A searcher around an Optuna sampler on a private study in memory.

Optuna does not store the sampler, and a reloaded sampler starts its random numbers anew and proposes the same
genomes again. Neither matters here: a new searcher is told the journal's trials from the first one on.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler

from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, IntGene, Value
from evomerge.searchers.base import Setting
from evomerge.searchers.optuna_trials import AskedTrials
from evomerge.searchers.results import InFlight, objective_values


class OptunaSearcher:
    """Asks and tells an Optuna study; the starting points are its first trials."""

    def __init__(self, sampler: BaseSampler, setting: Setting) -> None:
        self._genes = setting.genes
        self._distributions = {gene.name: _distribution(gene) for gene in setting.genes}
        self._objectives = setting.objectives
        self._starting_points = deque(setting.starting_points)
        self._in_flight: InFlight[int] = InFlight()
        self._sampler = sampler
        self._trials = AskedTrials(type(sampler).__name__ if isinstance(sampler, BaseGASampler) else None)
        with quiet_optuna():
            self._study = optuna.create_study(
                directions=[objective.direction for objective in setting.objectives],
                sampler=sampler,
                storage=self._trials,
            )

    def ask(self) -> dict[str, Value]:
        """Return the next starting point, or the genome that the sampler proposes."""
        with quiet_optuna():
            trial = self._study.ask()
            # Samplers of generations take note of a trial when asked for its parameters, those of starting points too,
            # which would else never join the population.
            proposed = self._starting_points.popleft() if self._starting_points else trial.relative_params
            _ = trial.relative_params
            genome = self._genome(trial.number, proposed)
        return self._in_flight.asked(genome, trial.number)

    def _genome(self, number: int, proposed: Mapping[str, Any]) -> dict[str, Value]:
        """Return what was proposed for the trial, and for other genes what the sampler draws for each alone."""
        genome: dict[str, Value] = {}
        self._trials.describe(number, genome, self._distributions)
        trial = self._trials.get_trial(number)
        for gene in self._genes:
            distribution = self._distributions[gene.name]
            if gene.name in proposed and _holds(gene, proposed[gene.name]):
                value = proposed[gene.name]
            elif distribution.single():
                value = gene.choices[0] if isinstance(gene, ChoiceGene) else gene.low
            else:
                value = self._sampler.sample_independent(self._study, trial, gene.name, distribution)
            genome[gene.name] = _plain(gene, value)
        return genome

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Tell the study the result of the longest-asked genome."""
        trial = self._in_flight.told(genome)
        values = objective_values(self._objectives, objectives)
        with quiet_optuna():
            if values is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, values)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's progress messages and its notes on experimental features off the terminal."""
    # Not by the logger's level, whose every change costs a look at each logger there is.
    handlers = tuple(logging.getLogger("optuna").handlers)
    for handler in handlers:
        handler.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _distribution(gene: Gene) -> BaseDistribution:
    if isinstance(gene, FloatGene):
        return FloatDistribution(gene.low, gene.high)
    return IntDistribution(gene.low, gene.high) if isinstance(gene, IntGene) else CategoricalDistribution(gene.choices)


def _holds(gene: Gene, value: Any) -> bool:
    """Whether a proposed value is one of the gene's; samplers that see genes as points may leave the bounds."""
    return value in gene.choices if isinstance(gene, ChoiceGene) else bool(gene.low <= value <= gene.high)


def _plain(gene: Gene, value: float | int | str) -> Value:
    if isinstance(gene, FloatGene):
        return min(max(float(value), float(gene.low)), float(gene.high))
    return int(value) if isinstance(gene, IntGene) else str(value)
