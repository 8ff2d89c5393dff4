"""From a run folder to the ``RunSummary`` that reports and tables are made of; needs neither parents nor tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from evomerge.experiments import fronts, staging
from evomerge.experiments.amortized import read_amortized
from evomerge.experiments.conditions import counted, warning
from evomerge.experiments.confirmation import Confirmation, read_confirmation
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.summarise_archives import archives
from evomerge.experiments.summarise_confirmed import confirmed_row
from evomerge.experiments.summarise_lineage import crossing
from evomerge.experiments.summarise_stages import check_last_began, merges_of
from evomerge.experiments.summarise_surrogates import surrogates
from evomerge.experiments.tracker import Tracker, row
from evomerge.fronts import Quality
from evomerge.kinship import Products
from evomerge.recipes import Recipe, write_recipes
from evomerge.reports.summary import (
    Comparison,
    Interval,
    ObjectiveInfo,
    ParentsKinship,
    ReferenceRow,
    RunSummary,
)

# A merge is flagged when it cuts off, or leaves unextracted, this much more of its answers than the best parent does.
SHARE_MARGIN = 0.05


def summarise(path: Path) -> RunSummary:
    """Return the summary of the run in ``path``, finished or not.

    Raises:
        RunError: there is no run, it holds nothing yet, or its last stage did not begin.
        ConfigError: the scores are estimated, and the item banks are missing or damaged.
    """
    folder = RunFolder(path)
    check_last_began(folder)
    experiment = folder.read_experiment()
    journal = Journal.read(folder.journal)
    facts, trials = journal.facts(), journal.trials()
    references = facts.get("references", [])
    corner = fronts.reference_point([r["objectives"] for r in references], journal.objectives) if references else {}
    tracker = Tracker(journal.objectives, corner or {o.name: 0.0 for o in journal.objectives})  # no trials yet, then
    for trial in trials:
        tracker.add(trial)
    confirmation = read_confirmation(folder.confirmation)
    if confirmation and confirmation.run_trials != len(trials):
        confirmation = None  # of the run before it was extended
    front = tracker.front
    if confirmation and "estimation" in facts:  # estimates are revised in the light of later trials
        front = [trial for trial in trials if trial.number in confirmation.candidates]
    amortized = read_amortized(folder.amortized)
    conditions = counted(trials)
    summary = RunSummary(
        name=experiment.name,
        folder=str(path),
        status=status(folder, len(trials), experiment.budget.trials, confirmation),
        experiment_yaml=folder.experiment.read_text(encoding="utf-8"),
        objectives=objective_infos(facts),
        genes=list(trials[0].genome) if trials else [],
        trials=[row(trial, on_front=trial in front) for trial in trials],
        references=reference_rows(references),
        hypervolume=tracker.hypervolume,
        reference_point=corner,
        confirmed=[confirmed_row(r) for r in confirmation.rows] if confirmation else [],
        pick=confirmation.pick if confirmation else None,
        pick_rule=confirmation.rule if confirmation else experiment.pick,
        comparisons=_comparisons(confirmation),
        winner_recipe_yaml=_winner_recipe(folder, confirmation) if confirmation else None,
        names={reference: name for name, reference in experiment.references.items()},
        flags=[*flags(front, references), *filter(None, [warning(conditions)])],
        versions=facts.get("versions", {}),
        facts=_facts(facts, experiment.searcher.model_dump(mode="json"))
        | {"evaluated on": "; ".join(map(str, conditions)) or "nothing yet"},
        wall_seconds=_wall_seconds(trials),
        budget=experiment.budget.trials,
        quality=_quality(tracker, trials),
        igd_plus=[(trial.number, trial.front["igd_plus"]) for trial in trials if "igd_plus" in trial.front],
        surrogates=surrogates(amortized, trials, confirmation, facts) if amortized else None,
        tree=merges_of(folder),
        archives=archives(experiment.searcher, journal.objectives, trials),
        kinship=_kinship(experiment.parents, facts),
        crossing=crossing(experiment, trials, confirmation.pick if confirmation else None),
    )
    estimate = experiment.fitness.estimate
    if estimate is None:
        return summary
    from evomerge.experiments.summarise_estimates import estimates  # Ray comes with it, and few runs need it

    hashes = {row.label: row.recipe_hash for row in confirmation.rows} if confirmation else {}
    found = estimates(summary, estimate, folder, facts, trials, hashes)
    return dataclasses.replace(summary, estimates=found)


def _winner_recipe(folder: RunFolder, confirmation: Confirmation) -> str:
    recipe = Recipe.model_validate(confirmation.recipe)
    return write_recipes(staging.whole(recipe, folder.read_written(), folder.path))


def _quality(tracker: Tracker, trials: Sequence[Trial]) -> Quality | None:
    """Return the front's quality as the run recorded it; None for a single objective, and before the first trial."""
    if len(tracker.objectives) == 1 or not tracker.front:
        return None
    recorded = trials[-1].front
    if not recorded:  # by a version that did not
        return tracker.quality
    return Quality(**{**recorded, "size": int(recorded["size"])})  # type: ignore[arg-type]


def status(folder: RunFolder, done: int, budget: int, confirmation: Confirmation | None) -> str:
    """Return ``running``, ``finished`` or ``interrupted``."""
    if folder.is_running:
        return "running"
    return "finished" if done >= budget and confirmation else "interrupted"


def _kinship(parents: Mapping[str, str], facts: Mapping[str, Any]) -> ParentsKinship | None:
    return ParentsKinship(tuple(parents), Products.from_json(facts["kinship"])) if "kinship" in facts else None


def objective_infos(facts: Mapping[str, Any]) -> list[ObjectiveInfo]:
    """Return the run's objectives as its journal recorded them."""
    return [ObjectiveInfo(**objective) for objective in facts["objectives"]]


def reference_rows(references: Sequence[Mapping[str, Any]]) -> list[ReferenceRow]:
    """Return the reference models as the journal recorded them."""
    return [ReferenceRow(**reference) for reference in references]


def flags(front: Sequence[Trial], references: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a warning for each front trial that may "win" by cut-off or unextracted answers."""
    found = []
    for kind, verb in (
        ("truncated", "cut off by the token limit"),
        ("unextracted", "without an answer that could be extracted"),
    ):
        for trial in front:
            for task, share in getattr(trial, kind).items():
                usual = max((r[kind].get(task, 0.0) for r in references if r["kind"] == "parent"), default=0.0)
                if share > usual + SHARE_MARGIN:
                    found.append(
                        f"trial {trial.number}: {share:.0%} of its answers to {task} were {verb} "
                        f"(parents: at most {usual:.0%})"
                    )
    return found


def _comparisons(confirmation: Confirmation | None) -> list[Comparison]:
    if confirmation is None:
        return []
    return [
        Comparison(c.against, Interval(d.value, d.low, d.high, d.items), c.p_value)
        for c in confirmation.comparisons
        for d in (c.difference,)
    ]


def _facts(facts: Mapping[str, Any], searcher: Mapping[str, Any]) -> dict[str, str]:
    placement, counts = facts["placement"], facts["item_counts"]
    return {
        "searcher": ", ".join(f"{key} {value}" for key, value in searcher.items() if value is not None),
        "workers": f"{placement['workers']} × {placement['device']}, {placement['threads']} threads each",
        "candidates in flight": str(facts["in_flight"]),
        **{
            f"{split} items": ", ".join(f"{count} {task}" for task, count in tasks.items())
            for split, tasks in counts.items()
        },
    }


def _wall_seconds(trials: Sequence[Trial]) -> float:
    """Return the time from the first trial's start to the last one's end, pauses over ten minutes left out."""
    moments = sorted(t for trial in trials for t in (trial.started, trial.finished) if t is not None)
    gaps = [(b - a).total_seconds() for a, b in pairwise(moments)]
    return sum(gap for gap in gaps if gap < 600)
