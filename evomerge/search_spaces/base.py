"""What every kind of search space is, and how one is read from YAML and built for given parents.

A kind is a configuration class and a builder, entered in `SEARCH_SPACES` under the word that files write as
``kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from evomerge import library
from evomerge.errors import ConfigError, EvomergeError, Problem, UnknownNameError, suggest
from evomerge.recipes import Recipe, yaml
from evomerge.registry import Registry
from evomerge.search_spaces.genes import Gene, Genome

DEFAULT_KIND = "parameter"


class SearchSpaceConfig(BaseModel):
    """What a file says about a search space; each kind adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str


@dataclass(frozen=True)
class ParentsInfo:
    """What a search space must know about the models.

    Attributes:
        base: reference of the base, if the experiment has one.
        parents: nickname → reference.
        tensor_names: names of the tensors that are merged, as in the checkpoints.
        num_layers: number of layers those names speak of.
        dtype: dtype in which recipes are to be written; None leaves it out.
        common: further fields that every recipe has, such as ``tokenizer_source`` or ``statistics``.
    """

    base: str | None
    parents: Mapping[str, str]
    tensor_names: tuple[str, ...]
    num_layers: int
    dtype: str | None = None
    common: Mapping[str, Any] = field(default_factory=dict)


class SearchSpace(Protocol):
    """The map from genomes to recipes.

    ``express`` is a pure function that is defined for every genome within the genes' bounds.
    """

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, in an order that depends on nothing but configuration and parents."""

    def express(self, genome: Genome) -> Recipe:
        """Return the recipe that a genome stands for."""

    def starting_points(self) -> list[Genome]:
        """Return genomes worth evaluating first; may be empty."""


@dataclass(frozen=True)
class SearchSpaceKind:
    """One kind of search space: how its configuration is read and how it is built."""

    config: type[SearchSpaceConfig]
    build: Callable[[Any, ParentsInfo], SearchSpace]
    summary: str


SEARCH_SPACES: Registry[SearchSpaceKind] = Registry(
    "kind of search space",
    modules=tuple(f"evomerge.search_spaces.{name}" for name in ("hybrid", "layer_routing", "lineage", "parameter")),
)


def build_search_space(config: SearchSpaceConfig, info: ParentsInfo) -> SearchSpace:
    """Return the search space that ``config`` describes over the models of ``info``.

    Raises:
        ConfigError: it does not fit these models; lists every problem.
    """
    return SEARCH_SPACES[config.kind].build(config, info)


def check_genome(genes: Sequence[Gene], genome: Genome) -> None:
    """Refuse a genome that does not have exactly these genes.

    Raises:
        EvomergeError: a gene is missing or unknown.
    """
    known = {gene.name for gene in genes}
    for name in genome:
        if name not in known:
            raise EvomergeError(f"the search space has no gene {name!r}; {suggest(name, known)}")
    if missing := [gene.name for gene in genes if gene.name not in genome]:
        raise EvomergeError(f"the genome has no value for {len(missing)} genes, the first {missing[0]!r}")


def read_search_space(
    value: str | Mapping[str, Any], document: yaml.Document, prefix: yaml.Key = ()
) -> SearchSpaceConfig:
    """Return the search space that a file names or spells out.

    Args:
        value: a name or path of a file in ``search_spaces/``, or a mapping of fields.
        document: the file that ``value`` was found in, for messages.
        prefix: where in the document.

    Raises:
        ConfigError: every problem, with file and line.
    """
    if isinstance(value, str):
        try:
            path = library.find("search_spaces", value).path
        except UnknownNameError as error:
            raise ConfigError(Problem(str(error), document.where(prefix))) from error
        document, prefix = yaml.load(path), ()
        value = document.data
    if not isinstance(value, Mapping):
        raise ConfigError(Problem("a search space is a name or a mapping of fields", document.where(prefix)))
    kind = value.get("kind", DEFAULT_KIND)
    try:
        entry = SEARCH_SPACES[str(kind)]
    except UnknownNameError as error:
        raise ConfigError(Problem(str(error), document.where((*prefix, "kind")))) from error
    return yaml.validate(entry.config, document, value, prefix)
