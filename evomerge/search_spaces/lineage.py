"""The search space of population searchers: children of two sources, which are parents or earlier trials.

A genome names its sources (`SOURCES`): the number of a trial, or -1 for the experiment's first parent, -2 for the
second, …; then come the genes of the crossover and of the mutation. What a genome means depends on the trials before
it: the space must be told these, in order. A trial is named by its recipe's hash in the recipes that it is a source of,
so that equal recipes make equal models whichever run they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.recipes import Recipe, sources_of, trial_reference, with_ancestors
from evomerge.search_spaces.base import (
    SEARCH_SPACES,
    ParentsInfo,
    SearchSpace,
    SearchSpaceConfig,
    SearchSpaceKind,
    check_genome,
)
from evomerge.search_spaces.crossovers import CROSSOVERS, MUTATION_SEED, MUTATIONS
from evomerge.search_spaces.genes import Gene, Genome, IntGene, Value

LINEAGE = "lineage"
SOURCES = ("first", "second")
LABELS = (*SOURCES, MUTATION_SEED)  # genes whose numbers are names: how large they are means nothing
LAST_TRIAL = 10_000_000  # bounds must be finite
KEPT = ("seed", "chat_template")  # of an experiment's `merge`: what a child of children can have too


class LineageSpaceConfig(SearchSpaceConfig):
    """Fields of a search space of kind ``lineage`` (search_spaces/README.md explains them).

    Attributes:
        crossover: how two sources make a child.
        mutation: how the child is changed after that; None: not at all.
    """

    kind: Literal["lineage"]
    crossover: str
    mutation: str | None = None


class LineageSpace:
    """Genomes that name their sources, with the trials that these may be.

    Args:
        config: which crossover and mutation.
        info: the parents.

    Raises:
        ConfigError: it does not fit the experiment; lists every problem.
    """

    def __init__(self, config: LineageSpaceConfig, info: ParentsInfo) -> None:
        _check(config, info)
        self._crossover = CROSSOVERS[config.crossover]
        self._mutation = None if config.mutation is None else MUTATIONS[config.mutation]
        self._base, self._parents = info.base, tuple(info.parents.values())
        self._common = {**info.common, **({"dtype": info.dtype} if info.dtype else {})}
        count = len(self._parents)
        own = (*self._crossover.genes, *(self._mutation.genes if self._mutation else ()))
        self._genes: tuple[Gene, ...] = (
            *(IntGene(name, -count, LAST_TRIAL, max(-count, -1 - place)) for place, name in enumerate(SOURCES)),
            *own,
        )
        self._trials: list[str | None] = []  # recipe hashes; None for a trial that failed
        self._genomes: dict[str, Genome] = {}

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The sources, then the genes of the crossover and of the mutation."""
        return self._genes

    @property
    def between(self) -> Callable[[float], Genome] | None:
        """The crossover's genes of a child between its sources (`Crossover.between`); None if it is mutated, too."""
        return self._crossover.between if self._mutation is None else None

    @property
    def genes_of_founders(self) -> tuple[Gene, ...]:
        """The genes of children of the parents alone, which mean something before any trial is told."""
        return tuple(replace(g, high=-1) if g.name in SOURCES and isinstance(g, IntGene) else g for g in self._genes)

    def starting_points(self) -> list[Genome]:
        """Return the parents as they are."""
        neutral: dict[str, Value] = {gene.name: gene.initial for gene in self._genes}
        return [{**neutral, **dict.fromkeys(SOURCES, -number)} for number in range(1, len(self._parents) + 1)]

    def told(self, genome: Genome, recipe_hash: str, *, failed: bool = False) -> None:
        """Take in the next trial of the run; later genomes may name it as a source unless it failed."""
        self._trials.append(None if failed else recipe_hash)
        self._genomes.setdefault(recipe_hash, genome)

    def express(self, genome: Genome) -> Recipe:
        """Return the recipe of a child; sources that are trials are named by the hashes of their recipes.

        Raises:
            RunError: a source is a trial that failed or that the space was not told.
        """
        check_genome(self._genes, genome)
        first, second = (self._reference(int(genome[name])) for name in SOURCES)
        fields = self._crossover.fields(first, second, genome, self._base)
        if self._mutation is not None:
            fields = self._mutation.fields(fields, genome, self._base)
        return Recipe.model_validate({**self._common, **fields})

    def lineage(self, of: Sequence[Recipe]) -> dict[str, Recipe]:
        """Return recipe hash → recipe of all trials that these recipes are made of, each after its own sources.

        Raises:
            RunError: they name a trial that the space was not told.
        """
        recipes: dict[str, Recipe] = {}

        def sources(recipe_hash: str) -> list[str]:
            recipes[recipe_hash] = self.recipe_of(recipe_hash)
            return sources_of(recipes[recipe_hash])

        order = with_ancestors([source for recipe in of for source in sources_of(recipe)], sources)
        return {recipe_hash: recipes[recipe_hash] for recipe_hash in order}

    def recipe_of(self, recipe_hash: str) -> Recipe:
        """Return the recipe of a told trial.

        Raises:
            RunError: no told trial has this recipe.
        """
        if recipe_hash not in self._genomes:
            raise RunError(f"a recipe names trial:{recipe_hash} as a source, but the run has no such trial")
        return self.express(self._genomes[recipe_hash])

    def _reference(self, source: int) -> str:
        if source < 0:
            return self._parents[-source - 1]
        recipe_hash = self._trials[source] if source < len(self._trials) else None
        if recipe_hash is None:
            why = "failed" if source < len(self._trials) else "was not told yet"
            raise RunError(f"the searcher names trial {source} as a source, which {why}")
        return trial_reference(recipe_hash)


def lineage_of(space: SearchSpace) -> LineageSpace | None:
    """Return the space if it is one of lineage, which must be told the trials, else None."""
    return space if isinstance(space, LineageSpace) else None


def _check(config: LineageSpaceConfig, info: ParentsInfo) -> None:
    problems = []
    for table, name, field in ((CROSSOVERS, config.crossover, "crossover"), (MUTATIONS, config.mutation, "mutation")):
        if name is not None and name not in table:
            known = ", ".join(table) or "none"
            problems.append(Problem(f"unknown {field} {name!r}", f"search_space.{field}", f"there are: {known}"))
    if problems:
        raise ConfigError(problems)
    mutation = None if config.mutation is None else MUTATIONS[config.mutation]
    if mutation and mutation.crossovers is not None and config.crossover not in mutation.crossovers:
        what = f"the mutation {config.mutation!r} cannot follow the crossover {config.crossover!r}"
        fit = " or ".join(mutation.crossovers)
        problems.append(Problem(what, "search_space.mutation", f"it goes with {fit}"))
    if CROSSOVERS[config.crossover].needs_base and info.base is None:
        what = f"the crossover {config.crossover!r} needs a base, and the experiment has none"
        problems.append(Problem(what, "search_space.crossover", "name the model that the parents were fine-tuned from"))
    for field in (field for field in info.common if field not in KEPT):
        what = f"merge.{field} cannot be had in a search space of kind lineage"
        problems.append(Problem(what, f"merge.{field}", "merge models of one vocabulary, trained from one base"))
    if problems:
        raise ConfigError(problems)


SEARCH_SPACES.add(
    LINEAGE,
    SearchSpaceKind(LineageSpaceConfig, LineageSpace, "children of parents and of earlier trials"),
    origin=__name__,
)
