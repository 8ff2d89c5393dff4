"""The archives of a run whose searcher fills niches, from its trials alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evomerge.experiments.journal import Trial
from evomerge.searchers import ObjectiveSpec, SearcherConfig
from evomerge.searchers.cycle_qd import archives_of as cycle_qd
from evomerge.searchers.grids import GridArchive
from evomerge.searchers.map_elites import archives_of as map_elites

ARCHIVES: Mapping[str, Callable[[Any, Sequence[ObjectiveSpec]], dict[str, GridArchive]]] = {
    "cycle-qd": cycle_qd,
    "map-elites": map_elites,
}


def archives(
    config: SearcherConfig, objectives: Sequence[ObjectiveSpec], trials: Iterable[Trial]
) -> dict[str, GridArchive]:
    """Return what elites are judged by → their archive, filled by the trials; empty for searchers without niches."""
    if config.kind not in ARCHIVES:
        return {}
    found = ARCHIVES[config.kind](config, objectives)
    for trial in trials:
        for archive in found.values():
            if trial.objectives is not None:
                archive.add(trial.number, trial.objectives)
    return found
