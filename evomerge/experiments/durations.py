"""How long a run takes on its workers, from what a probe measured in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.experiments.probe import Probed
from evomerge.reports.planned import Span, StagePlan, TimePlan, WorkersPlan

CROWDED = 1.4  # workers of one machine hold each other up: memory and its caches are shared
SEARCHER = 0.02  # seconds that the searcher, the journal and the display take for a trial, at most


def time_of(stages: Sequence[StagePlan], workers: WorkersPlan, probes: Sequence[Probed]) -> TimePlan:
    """Return the time of a run.

    The lower ends hold if workers are never idle and do not slow each other down, the upper ends if rounds wait for
    their slowest and workers crowd.

    Args:
        stages: what is evaluated.
        workers: on how many workers.
        probes: what was measured, of each stage.
    """
    crowd = CROWDED if workers.count > 1 else 1.1
    trial = Span(math.inf, 0.0)
    building = references = calibration = search = confirmation = Span(0.0, 0.0)

    def of(models: Span, each: Span) -> Span:
        """Return the time of so many models."""
        rounds = math.ceil(models.high / workers.count)
        return Span(models.low / workers.count * each.low, rounds * each.high * crowd)

    for stage, probed in zip(stages, probes, strict=True):
        on_all = probed.merge + probed.evaluation({task.task: task.search for task in stage.tasks})
        one = probed.merge + probed.evaluation({task.task: task.asked for task in stage.tasks})
        confirmed = probed.merge + probed.evaluation({task.task: task.confirmation for task in stage.tasks})
        trial = Span(min(trial.low, one.low), max(trial.high, one.high))
        first = Span(probed.first, probed.first * crowd) * stage.merges
        building += Span(probed.build, probed.build * crowd) * stage.merges
        references += first + of(Span(stage.references, stage.references), on_all)
        calibration += of(Span(stage.calibration, stage.calibration), on_all)
        search += of(stage.searches, one) + Span(0, SEARCHER * stage.trials)
        confirmation += of(stage.confirmed, confirmed)
    parts = {"building the workers": building, "reference models": references}
    parts |= {"calibration": calibration} if calibration.high else {}
    parts |= {"search": search, "confirmation": confirmation}
    total = sum(parts.values(), Span(0, 0))
    units = workers.count * (workers.devices_each if workers.device == "cuda" else workers.threads)
    merge = Span(min(probed.merge.low for probed in probes), max(probed.merge.high for probed in probes))
    spent = sum(probed.seconds for probed in probes)
    return TimePlan(spent, trial, merge, parts, total * (units / 3600))
