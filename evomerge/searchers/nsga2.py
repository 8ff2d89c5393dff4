"""NSGA-II: evolves a population towards the front, by non-dominated sorting and crowding distance.

Deb et al. 2002, *A fast and elitist multiobjective genetic algorithm: NSGA-II*; engine: Optuna's
``NSGAIISampler``, which replaces the population as results come in, so that no worker waits for a generation.
"""

from __future__ import annotations

from typing import Any, Literal

from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler, nsgaii
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, model_validator

from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.children import Children
from evomerge.searchers.optuna_study import OptunaSearcher, quiet_optuna

CROSSOVERS: dict[str, type[nsgaii.BaseCrossover]] = {
    "uniform": nsgaii.UniformCrossover,
    "blx-alpha": nsgaii.BLXAlphaCrossover,
    "sbx": nsgaii.SBXCrossover,
    "vsbx": nsgaii.VSBXCrossover,
    "spx": nsgaii.SPXCrossover,
    "undx": nsgaii.UNDXCrossover,
}
THREE_PARENTS = ("spx", "undx")


class Nsga2Config(SearcherConfig):
    """Options of NSGA-II. The first ``population`` trials are the starting points, then random genomes."""

    kind: Literal["nsga2"] = Field("nsga2", description="the searcher's name")
    population: int = Field(24, ge=2, description="survivors of a generation; a tenth of the trials or fewer")
    crossover: Literal["uniform", "blx-alpha", "sbx", "vsbx", "spx", "undx"] = Field(
        "uniform", description="how the genes of parents are mixed (choices always uniformly)"
    )
    crossover_probability: float = Field(0.9, ge=0, le=1, description="else the child copies one parent")
    swapping_probability: float = Field(0.5, ge=0, le=1, description="of each gene, in uniform crossover")
    mutation: Literal["resample", "polynomial"] = Field(
        "resample", description="draw a mutated gene anew in its bounds, or near its value"
    )
    mutation_probability: float | None = Field(None, ge=0, le=1, description="of each gene (left out: 1 / genes)")

    @model_validator(mode="after")
    def _population_feeds_the_crossover(self) -> Nsga2Config:
        if self.population < 3 and self.crossover in THREE_PARENTS:
            raise ValueError(f"the crossover {self.crossover!r} mixes three parents: population must be at least 3")
        return self


class Nsga2Sampler(NSGAIISampler):
    """Optuna's sampler, for a study whose trials all have the same genes: it need not look for those in common."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._common: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of all genes but constant ones, by name; none before there is a result."""
        if not self._common:
            finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            found = finished[0].distributions if finished else {}
            self._common = {name: found[name] for name in sorted(found) if not found[name].single()}
        return self._common


def build_nsga2(config: Nsga2Config, setting: Setting) -> OptunaSearcher:
    """Return an NSGA-II searcher."""
    with quiet_optuna():
        crossover = (
            nsgaii.UniformCrossover(config.swapping_probability)
            if config.crossover == "uniform"
            else CROSSOVERS[config.crossover]()
        )
        rates = (config.crossover_probability, config.swapping_probability, config.mutation_probability)
        polynomial = config.mutation == "polynomial"
        sampler = Nsga2Sampler(
            population_size=config.population,
            crossover=crossover,
            crossover_prob=config.crossover_probability,
            swapping_prob=config.swapping_probability,
            mutation=nsgaii.PolynomialMutation() if polynomial else None,
            mutation_prob=config.mutation_probability,
            seed=config.seed,
            child_generation_strategy=None if polynomial else Children(crossover, *rates, config.seed),
        )
    return OptunaSearcher(sampler, setting)


SEARCHERS.add(
    "nsga2",
    SearcherEntry(
        config=Nsga2Config,
        build=build_nsga2,
        summary="population that evolves towards the front: the all-rounder for several objectives",
        paper="Deb et al. 2002",
        multi_objective=True,
        needs_generations=False,
    ),
    origin=__name__,
)
