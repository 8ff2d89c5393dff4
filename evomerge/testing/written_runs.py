"""Run folders with made-up trials, written without a search: for tests of what reads runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from evomerge.experiments.confirmation import Confirmation, Confirmed
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run_folder import RunFolder, write_json
from evomerge.experiments.statistics import Estimate
from evomerge.recipes import yaml
from evomerge.search_spaces.genes import FloatGene
from evomerge.searchers import ObjectiveSpec

GENE = FloatGene("w", 0.0, 1.0, 0.5)
START = datetime(2026, 1, 1)
Scores = Mapping[str, float]


def write_run(
    path: Path,
    trials: Sequence[Scores | None],
    *,
    searcher: Mapping[str, Any],
    directions: Mapping[str, Any],
    references: Sequence[Scores],
    name: str = "made",
    budget: int | None = None,
    items: Sequence[int] | None = None,
    facts: Mapping[str, Any] | None = None,
    confirmed: Sequence[Scores] = (),
) -> Path:
    """Write a run and return its folder.

    Args:
        path: the folder.
        trials: each trial's objectives; None for a failed one.
        searcher: its options, with ``kind`` and ``seed``.
        directions: objective → ``maximize`` or ``minimize``.
        references: the reference models' objectives; on the confirmation items they are the same.
        name: the experiment's.
        budget: trials planned; all that there are if None.
        items: how many items each trial was asked, 0 where it was seen before; 10 each if None.
        facts: further facts for the journal, or others in place of those that are written.
        confirmed: the front's objectives on the confirmation items; the run is not finished if there are none.
    """
    folder = RunFolder(path)
    path.mkdir(parents=True)
    experiment = {
        "name": name,
        "parents": {"a": "a", "b": "b"},
        "search_space": {"kind": "parameter", "method": "linear"},
        "fitness": {"objectives": [{"task": objective} for objective in directions]},
        "searcher": dict(searcher),
        "budget": {"trials": budget or len(trials)},
    }
    folder.experiment.write_text(yaml.dumps(experiment), encoding="utf-8")
    journal = Journal.write(folder.journal, name, [ObjectiveSpec(o, way) for o, way in directions.items()])
    told: dict[str, Any] = {
        "objectives": [
            {"name": o, "direction": way, "weight": 1.0, "task": o, "metric": "acc"} for o, way in directions.items()
        ],
        "item_counts": {"search": {"t": 10}},
        "references": [
            {"name": f"model {i}", "kind": "parent", "objectives": scores} for i, scores in enumerate(references)
        ],
        "identity": {"items": {"search": "10 items", "confirmation": "20 items"}},
        **(facts or {}),
    }
    for key, value in told.items():
        journal.note(key, value)
    asked = [10] * len(trials) if items is None else items
    for number, (scores, count) in enumerate(zip(trials, asked, strict=True)):
        of_task = {} if scores is None else {"t": count or 10}
        trial = Trial(
            number=number,
            genome={"w": 0.5},
            objectives=None if scores is None else dict(scores),
            recipe_hash=f"{number:016x}",
            error="it failed" if scores is None else None,
            items=of_task,
            cached=count == 0,
            started=START,
            finished=START,
        )
        journal.append(trial, [GENE])
    if confirmed:
        rows = [_confirmed(f"model {i}", None, scores) for i, scores in enumerate(references)]
        rows += [_confirmed(f"trial {i}", i, scores) for i, scores in enumerate(confirmed)]
        write_json(folder.confirmation, Confirmation(tuple(rows), 0, "best-mean", (), len(trials), {}).to_json())
    return path


def _confirmed(label: str, trial: int | None, scores: Scores) -> Confirmed:
    nothing = Estimate(0.0, 0.0, 0.0, 1)
    kind = "parent" if trial is None else "trial"
    return Confirmed(label, kind, trial, "0" * 16, dict(scores), {}, nothing, {}, {})
