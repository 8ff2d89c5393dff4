"""What a run writes, and whether there is room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from evomerge.checkpoints import cache_folder
from evomerge.experiments.preflight import RUN_BYTES_PER_RESPONSE
from evomerge.experiments.probe import Probed
from evomerge.reports.planned import DiskPlan, MemoryPlan, StagePlan

REPORTS = 4_850_000  # report.html with its plots, and the front; of one search
PER_TRIAL = 500  # what the report adds for a trial
RECIPE = 700  # bytes of stored responses besides those of items
FACTS = 5_000  # of the journal, besides trials
LINE, PER_GENE = 1_200, 170  # of the journal: a trial, and each of its genes


def disk_of(
    stages: Sequence[StagePlan], memory: MemoryPlan, out: Path, probes: Sequence[Probed], models: int
) -> DiskPlan:
    """Return what a run writes.

    Args:
        stages: what is evaluated.
        memory: what the merged model and the prepared states take.
        out: the run folder to be.
        probes: sizes as measured, of each stage; if there are none, usual ones are taken.
        models: merged models that stages export for the next.
    """
    responses = journal = reports = 0.0
    for number, stage in enumerate(stages):
        probed = probes[number] if probes else None
        item = RUN_BYTES_PER_RESPONSE if probed is None else probed.item_bytes
        recipe = RECIPE if probed is None else probed.recipe_bytes
        searched = sum(task.search for task in stage.tasks)
        asked, confirmed = sum(task.asked for task in stage.tasks), sum(task.confirmation for task in stage.tasks)
        share = stage.searches.high / stage.trials
        responses += stage.trials * (recipe + item * asked * share)
        responses += (stage.references + stage.calibration) * (recipe + item * searched)
        responses += stage.confirmed.high * (recipe + item * confirmed)
        line = LINE + PER_GENE * sum(stage.genes.values()) if probed is None else probed.trial_bytes
        journal += stage.merges * FACTS + stage.trials * line
        reports += stage.merges * REPORTS + stage.trials * PER_TRIAL
    folder = next(path for path in [out.resolve(), *out.resolve().parents] if path.exists())
    return DiskPlan(
        folder=str(folder),
        free=shutil.disk_usage(folder).free,
        responses=int(responses),
        journal=int(journal),
        reports=int(reports),
        models=models * memory.weights,
        prepared=memory.prepared,
        cache=str(cache_folder()),
        exported=memory.weights,
    )
