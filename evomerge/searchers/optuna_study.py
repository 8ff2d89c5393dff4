"""A searcher around an Optuna sampler on a private study in memory.

Optuna does not store the sampler, and a reloaded sampler starts its random numbers anew and proposes the same
genomes again. Neither matters here: a new searcher is told the journal's trials from the first one on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna.samplers import BaseSampler

from evomerge.search_spaces.genes import FloatGene, Gene, Genome, IntGene, Value
from evomerge.searchers.base import Setting
from evomerge.searchers.results import InFlight, objective_values


class OptunaSearcher:
    """Asks and tells an Optuna study; the starting points are its first trials."""

    def __init__(self, sampler: BaseSampler, setting: Setting) -> None:
        self._genes = setting.genes
        self._objectives = setting.objectives
        self._in_flight: InFlight[optuna.Trial] = InFlight()
        with quiet_optuna():
            self._study = optuna.create_study(
                directions=[objective.direction for objective in setting.objectives], sampler=sampler
            )
            for point in setting.starting_points:
                self._study.enqueue_trial(dict(point))

    def ask(self) -> dict[str, Value]:
        """Return the next starting point, or the genome that the sampler proposes."""
        with quiet_optuna():
            trial = self._study.ask()
            # Samplers of generations take note of a trial when asked for its parameters, and are not asked for those of
            # starting points, which would then never join the population.
            _ = trial.relative_params
            genome = {gene.name: _plain(gene, _suggested(trial, gene)) for gene in self._genes}
        return self._in_flight.asked(genome, trial)

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
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)


def _suggested(trial: optuna.Trial, gene: Gene) -> float | int | str:
    if isinstance(gene, FloatGene):
        return trial.suggest_float(gene.name, gene.low, gene.high)
    if isinstance(gene, IntGene):
        return trial.suggest_int(gene.name, gene.low, gene.high)
    return str(trial.suggest_categorical(gene.name, gene.choices))


def _plain(gene: Gene, value: float | int | str) -> Value:
    if isinstance(gene, FloatGene):
        return min(max(float(value), float(gene.low)), float(gene.high))
    return int(value) if isinstance(gene, IntGene) else str(value)
