"""Evo-Merging's search: CMA-ES over the densities, then, with the best of them, CMA-ES over the weights.

Chen et al. 2025, "Black-box model merging for Language-Model-as-a-Service with massive model repositories",
https://arxiv.org/abs/2509.12951 (Algorithm 1); numbers that the paper leaves open are those of the authors' code
(Chansl-Lucky/Black-Box-Merging). The merge method is `evomerge.merging.methods.evo_merging`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from evomerge.errors import ConfigError, Problem
from evomerge.search_spaces.genes import FloatGene, Gene, Genome, Value
from evomerge.searchers.base import SEARCHERS, ObjectiveSpec, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.box import UnitBox
from evomerge.searchers.cma_es import CmaEsConfig, CmaEsSearcher
from evomerge.searchers.results import InFlight, objective_values, weighted_cost

DENSITY, WEIGHT = "density", "weight"
COST = ObjectiveSpec("cost", "minimize")


class EvoMergingConfig(SearcherConfig):
    """Options of Evo-Merging. Several objectives are added up, each times its weight, signed by direction."""

    kind: Literal["evo-merging"] = Field("evo-merging", description="the searcher's name")
    population: int = Field(20, ge=4, description="genomes in a generation")
    denoising: int = Field(
        400, ge=4, description="trials of the first stage, over the densities; rounded up to whole generations"
    )
    density_sigma0: float = Field(
        0.05, gt=0, le=1, description="first step size over densities, as a share of the range"
    )
    weight_sigma0: float = Field(
        0.0167, gt=0, le=1, description="first step size over weights, as a share of the range (0.05 of -1.5 to 1.5)"
    )
    density_penalty: float = Field(
        0.05, ge=0, description="λ₁: what a mean density of 1 costs, in the objectives' units"
    )
    weight_penalty: float = Field(
        0.05, ge=0, description="λ₂: what a mean |weight| of 1 costs, in the objectives' units"
    )


class EvoMergingSearcher:
    """Two stages of CMA-ES; genes of the other stage stay as they are.

    The first searches the genes with the word ``density`` in their names, the second all others. A stage without genes
    that could vary is left out.

    Raises:
        ConfigError: the budget ends with the first stage.
    """

    def __init__(self, config: EvoMergingConfig, setting: Setting) -> None:
        self._config, self._setting = config, setting
        initial: Genome = {gene.name: gene.initial for gene in setting.genes}
        self._genome: dict[str, Value] = dict(next(iter(setting.starting_points), initial))
        self._in_flight: InFlight[dict[str, Value]] = InFlight()
        free = [gene for gene in setting.genes if UnitBox([gene]).dimensions]
        self._densities = tuple(gene for gene in free if _named(gene, DENSITY))
        self._others = tuple(gene for gene in free if not _named(gene, DENSITY))
        self._best: tuple[float, Mapping[str, Value]] = (math.inf, {})
        generations = math.ceil(config.denoising / config.population)
        both = bool(self._densities and self._others)
        self._left = generations * config.population if both else None  # trials to ask before the second stage
        if self._left is not None and self._left >= setting.budget:
            what = f"the first stage, over densities, takes all {setting.budget} trials of the budget"
            hint = f"raise budget.trials above {self._left}, or set denoising to about a third of it"
            raise ConfigError(Problem(what, "searcher.denoising", hint))
        self._start(self._densities or self._others)

    def ask(self) -> dict[str, Value] | None:
        """Return the open generation's next genome; ``None`` when all of it is in flight."""
        if self._left == 0:
            if len(self._in_flight):
                return None
            self._left = None
            self._genome |= self._best[1]
            self._start(self._others)
        part = self._search.ask()
        if part is None:
            return None
        if self._left is not None:
            self._left -= 1
        return self._in_flight.asked({**self._genome, **part}, part)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Learn the result of the longest-asked genome."""
        part = self._in_flight.told(genome)
        values = objective_values(self._setting.objectives, objectives)
        if values is None:
            self._search.tell(part, None)
            return
        cost = weighted_cost(self._setting.objectives, values) + self._penalty(part)
        self._search.tell(part, {COST.name: cost})
        if self._left is not None and cost < self._best[0]:
            self._best = (cost, part)

    def _start(self, genes: Sequence[Gene]) -> None:
        densities = genes is self._densities
        word = DENSITY if densities else WEIGHT
        self._penalised = [gene.name for gene in genes if isinstance(gene, FloatGene) and _named(gene, word)]
        self._factor = self._config.density_penalty if densities else self._config.weight_penalty
        sigma0 = self._config.density_sigma0 if densities else self._config.weight_sigma0
        fields = {"seed": self._config.seed, "population": self._config.population, "sigma0": sigma0}
        config = CmaEsConfig.model_validate({**fields, "restarts": "none"})
        start = {gene.name: self._genome[gene.name] for gene in genes}
        self._search = CmaEsSearcher(config, Setting(tuple(genes), (COST,), self._setting.budget, (start,)))

    def _penalty(self, part: Mapping[str, Value]) -> float:
        """Return λ times the mean magnitude of the stage's densities or weights."""
        if not self._penalised:
            return 0.0
        return self._factor * sum(abs(float(part[name])) for name in self._penalised) / len(self._penalised)


def _named(gene: Gene, word: str) -> bool:
    return word in gene.name.split(".")


SEARCHERS.add(
    "evo-merging",
    SearcherEntry(
        config=EvoMergingConfig,
        build=EvoMergingSearcher,
        summary="first the densities, then the weights: many LoRA adapters, one (weighted) objective",
        paper="Chen et al. 2025",
        multi_objective=False,
        needs_generations=True,
    ),
    origin=__name__,
)
