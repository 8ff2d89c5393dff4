"""Search spaces: the genes that a search varies, and the recipe that each genome stands for."""

from evomerge.search_spaces.base import (
    SEARCH_SPACES,
    ParentsInfo,
    SearchSpace,
    SearchSpaceConfig,
    SearchSpaceKind,
    build_search_space,
    read_search_space,
)
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, IntGene, Value

__all__ = [
    "SEARCH_SPACES",
    "ChoiceGene",
    "FloatGene",
    "Gene",
    "Genome",
    "IntGene",
    "ParentsInfo",
    "SearchSpace",
    "SearchSpaceConfig",
    "SearchSpaceKind",
    "Value",
    "build_search_space",
    "read_search_space",
]
