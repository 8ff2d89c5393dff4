"""What a run's summary says of trials that are crossed from earlier ones."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.experiments.journal import Trial
from evomerge.experiments.schema import ExperimentConfig
from evomerge.reports.summary import Crossing
from evomerge.search_spaces.lineage import LABELS, LINEAGE, SOURCES


def crossing(experiment: ExperimentConfig, trials: Sequence[Trial], pick: int | None) -> Crossing | None:
    """Return the genes that are names and the sources of the trial ``pick``; None for other search spaces."""
    if experiment.search_space.kind != LINEAGE:
        return None
    if pick is None:
        return Crossing(LABELS)
    parents = list(experiment.parents)
    numbers = [int(trials[pick].genome[gene]) for gene in SOURCES]
    return Crossing(LABELS, [f"the parent {parents[-n - 1]}" if n < 0 else f"trial {n}" for n in numbers])
