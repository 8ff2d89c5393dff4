"""The contract of a searcher, the table of searchers, and how an experiment's ``searcher:`` becomes one.

A searcher proposes genomes and learns from their objectives. It is a deterministic function of its config
(seed included), the genes, the objectives, the starting points and the sequence of ``ask`` and ``tell``
calls: no global random generator is read or written, no clock, no hash order. So it needs no saved state: a
run is resumed by asking and telling a new searcher the journal's trials again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.kinship import Products
from evomerge.recipes.yaml import Document, Key, validate
from evomerge.registry import Registry
from evomerge.search_spaces.genes import FloatGene, Gene, Genome, IntGene, Value


@dataclass(frozen=True)
class ObjectiveSpec:
    """One number that a trial is judged by; ``weight`` counts for searchers that want a single number."""

    name: str
    direction: Literal["maximize", "minimize"]
    weight: float = 1.0


class Searcher(Protocol):
    """Proposes genomes (``ask``) and learns from their objectives (``tell``).

    The driver asks whenever fewer than W trials are in flight, and tells results in the order of asking, each
    asked genome once, however late they finish. Both calls come from one thread.
    """

    def ask(self) -> dict[str, Value] | None:
        """Return a new genome: plain ``float``, ``int`` and ``str`` values in bounds, in gene order.

        ``None`` means: not before more results are told (a generation is open). It is never returned when
        nothing is in flight. The dict belongs to the caller.
        """

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Learn the result of the longest-asked genome in flight: objective → value; ``None`` if it failed.

        ``standard_errors`` are those of objectives that are estimated; values of others are exact.

        Raises:
            RunError: ``genome`` is not the longest-asked one in flight.
        """


class ItemSearcher(Searcher, Protocol):
    """A searcher that learns from each item's score (``SearcherEntry.per_item``)."""

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
        items: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Learn the result of the longest-asked genome in flight; see `Searcher.tell`.

        ``items`` holds objective → float64 scores of its items, in the same order for every genome, higher is better
        whatever the objective's direction; ``None`` if the trial failed.
        """


class SearcherConfig(BaseModel):
    """What every ``searcher:`` mapping may say; each kind adds its own options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="the searcher's name")
    seed: int = Field(0, ge=0, lt=2**32, description="same seed, same search; 0 is a seed like any other")


@dataclass(frozen=True)
class Setting:
    """What a searcher is built for.

    Attributes:
        genes: what it varies; at least one gene has more than one possible value.
        objectives: what it is told for each genome.
        budget: trials planned. Proposals must not depend on it, or a finished run could not be extended.
        starting_points: known genomes worth starting from, such as the uniform merge; may be empty.
        parents: nicknames, in order: to searchers of lineage, -1 is the first of them, -2 the second, …
        between: t to the genes, but for the sources, of the child of (1 - t) times the first source's task vector and t
            times the second's; None where the search space has no such children.
        kinship: what the kinship of the parents follows from, to searchers that ask for it; None until a run begins.
    """

    genes: tuple[Gene, ...]
    objectives: tuple[ObjectiveSpec, ...]
    budget: int
    starting_points: tuple[Genome, ...] = ()
    parents: tuple[str, ...] = ()
    between: Callable[[float], Genome] | None = None
    kinship: Products | None = None


@dataclass(frozen=True)
class SearcherEntry:
    """One row of the table of searchers.

    Attributes:
        config: the model of its options; its docstring and field descriptions are shown to users.
        build: makes the searcher from an instance of ``config`` and a setting.
        summary: what it is for, in one line.
        paper: where the method comes from; empty if nowhere in particular.
        multi_objective: whether it seeks a front; else it seeks the best weighted sum of the objectives.
        needs_generations: whether it waits for a whole generation before it proposes again.
        weighs_errors: whether it weighs results by their standard errors. Then it is told each trial's own estimate,
            not one that is smoothed over its neighbours.
        learns: whether its proposals depend on results.
        per_item: whether it is told each item's score; it is an `ItemSearcher` then.
        lineage: whether its genomes name their sources among the trials that it was told: the genes ``first`` and
            ``second`` are the number of a trial (counted from 0 as they are told; of one that did not fail), or
            negative for a parent (``Setting.parents``). It searches spaces of kind ``lineage``, and only these.
        kinship: whether it asks for the kinship of the parents; its children are weighted sums of task vectors then
            (``Setting.between``), so that theirs follows.
    """

    config: type[SearcherConfig]
    build: Callable[[Any, Setting], Searcher]
    summary: str
    paper: str
    multi_objective: bool
    needs_generations: bool
    weighs_errors: bool = False
    learns: bool = True
    per_item: bool = False
    lineage: bool = False
    kinship: bool = False


SEARCHERS: Registry[SearcherEntry] = Registry(
    "searcher",
    modules=(
        "evomerge.searchers.cma_es",
        "evomerge.searchers.cycle_qd",
        "evomerge.searchers.kinship",
        "evomerge.searchers.m2n2",
        "evomerge.searchers.map",
        "evomerge.searchers.map_elites",
        "evomerge.searchers.nsga2",
        "evomerge.searchers.optuna_samplers",
        "evomerge.searchers.qmc",
        "evomerge.searchers.random_search",
    ),
)


def read_searcher(value: str | Mapping[str, Any], document: Document | None = None, prefix: Key = ()) -> SearcherConfig:
    """Return the config that an experiment's ``searcher:`` means: a name alone, or a mapping with ``kind``.

    Args:
        value: the name or the mapping.
        document: the file that ``value`` was read from, for the lines in messages.
        prefix: where in ``document`` the value stands, such as ``("searcher",)``.

    Raises:
        ConfigError: unknown kind, or an unknown or unfit option; says the line and the nearest valid name.
    """
    if document is None:
        document, prefix = Document(value, "searcher"), ()
    data = {"kind": value} if isinstance(value, str) else value
    if not isinstance(data, Mapping) or "kind" not in data:
        what = "a searcher is a name, or a mapping with the field 'kind'"
        raise ConfigError(Problem(what, document.where(prefix), "valid kinds: " + ", ".join(SEARCHERS)))
    kind = data["kind"]
    if not isinstance(kind, str) or kind not in SEARCHERS:
        where = document.where(prefix if isinstance(value, str) else (*prefix, "kind"))
        raise ConfigError(Problem(f"unknown searcher {kind!r}", where, suggest(str(kind), SEARCHERS)))
    return validate(SEARCHERS[kind].config, document, data, prefix)


def build_searcher(
    config: SearcherConfig,
    genes: Sequence[Gene],
    objectives: Sequence[ObjectiveSpec],
    budget: int,
    starting_points: Sequence[Genome] = (),
    parents: Sequence[str] = (),
    *,
    between: Callable[[float], Genome] | None = None,
    kinship: Products | None = None,
) -> Searcher:
    """Return a new searcher, ready to be asked.

    Args:
        config: from ``read_searcher``, or a kind's config class.
        genes: what to vary.
        objectives: what the searcher will be told for each genome; at least one.
        budget: trials planned.
        starting_points: known genomes worth starting from; docs/searchers.md says what each kind does with
            them.
        parents: nicknames of the experiment's parents.
        between: see `Setting`.
        kinship: see `Setting`.

    Raises:
        ConfigError: the genes, the objectives or the starting points cannot be searched; every problem at
            once.
        UnknownNameError: no searcher has the config's kind.
    """
    entry = SEARCHERS[config.kind]
    problems = _gene_problems(genes) + _objective_problems(objectives, entry.multi_objective)
    for number, point in enumerate(starting_points):
        problems += _point_problems(genes, point, f"starting point {number}")
    if problems:
        raise ConfigError(problems)
    setting = Setting(tuple(genes), tuple(objectives), budget, tuple(starting_points), tuple(parents), between, kinship)
    return entry.build(config, setting)


def _gene_problems(genes: Sequence[Gene]) -> list[Problem]:
    problems = [
        Problem(f"the gene {name!r} occurs twice", "search space", "give each gene its own name")
        for name in _repeated(gene.name for gene in genes)
    ]
    for gene in genes:
        if isinstance(gene, (FloatGene, IntGene)):
            if not (math.isfinite(gene.low) and math.isfinite(gene.high) and gene.low <= gene.high):
                what = f"the bounds [{gene.low}, {gene.high}] of the gene {gene.name!r} are not an interval"
                problems.append(Problem(what, "search space", "bounds are two finite numbers, the lower first"))
                continue
        elif not gene.choices:
            problems.append(Problem(f"the gene {gene.name!r} has no choices", "search space"))
            continue
        if not _holds(gene, gene.initial):
            what = f"the initial value {gene.initial!r} of the gene {gene.name!r} is not in {_domain(gene)}"
            problems.append(Problem(what, "search space"))
    if not problems and all(_is_constant(gene) for gene in genes):
        what = "there is nothing to search: no gene has more than one possible value"
        problems.append(Problem(what, "search space", "widen the bounds of at least one gene"))
    return problems


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _is_constant(gene: Gene) -> bool:
    return gene.low == gene.high if isinstance(gene, (FloatGene, IntGene)) else len(gene.choices) == 1


def _objective_problems(objectives: Sequence[ObjectiveSpec], multi_objective: bool) -> list[Problem]:
    if not objectives:
        return [Problem("a search needs at least one objective", "objectives")]
    problems = [
        Problem(f"two objectives have the name {name!r}", "objectives", "give each objective its own `name`")
        for name in _repeated(objective.name for objective in objectives)
    ]
    weights = [objective.weight for objective in objectives]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        what = f"weights must be finite and not negative (found {weights})"
        problems.append(Problem(what, "objectives", "the objective's direction says what is better"))
    elif not multi_objective and not any(weights):
        problems.append(Problem("all objectives have weight 0", "objectives", "give at least one a weight above 0"))
    return problems


def _point_problems(genes: Sequence[Gene], point: Genome, where: str) -> list[Problem]:
    names = {gene.name for gene in genes}
    problems = [Problem(f"unknown gene {name!r}", where, suggest(name, names)) for name in point if name not in names]
    for gene in genes:
        if gene.name not in point:
            problems.append(Problem(f"no value for the gene {gene.name!r}", where))
        elif not _holds(gene, point[gene.name]):
            what = f"{gene.name!r} = {point[gene.name]!r} is not in {_domain(gene)}"
            problems.append(Problem(what, where))
    return problems


def _holds(gene: Gene, value: Value) -> bool:
    if isinstance(gene, (FloatGene, IntGene)):
        kinds = int if isinstance(gene, IntGene) else (int, float)
        return isinstance(value, kinds) and gene.low <= value <= gene.high
    return value in gene.choices


def _domain(gene: Gene) -> str:
    return f"[{gene.low}, {gene.high}]" if isinstance(gene, (FloatGene, IntGene)) else f"{gene.choices}"
