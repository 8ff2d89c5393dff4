"""Searchers: ask for genomes, tell objectives.

One file a searcher (``cma_es``, ``nsga2``, ``optuna_samplers``, ``qmc``, ``random_search``), each of which
enters itself into ``SEARCHERS``; ``base`` holds the contract. ``evomerge.testing.searchers`` tests any
searcher against it.
"""

from evomerge.searchers.base import (
    SEARCHERS,
    ItemSearcher,
    ObjectiveSpec,
    Searcher,
    SearcherConfig,
    SearcherEntry,
    Setting,
    build_searcher,
    read_searcher,
)

__all__ = [
    "SEARCHERS",
    "ItemSearcher",
    "ObjectiveSpec",
    "Searcher",
    "SearcherConfig",
    "SearcherEntry",
    "Setting",
    "build_searcher",
    "read_searcher",
]
