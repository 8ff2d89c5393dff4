"""What a run's trials depend on, recorded when it starts, so that it never goes on under other conditions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import RunError
from evomerge.experiments.evaluations import SPLITS, digest
from evomerge.experiments.journal import Journal
from evomerge.experiments.preflight import Prepared
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.run_workers import RunWorkers
from evomerge.merging.statistics import Statistics
from evomerge.reports.progress import Display
from evomerge.searchers import SEARCHERS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
LIBRARIES = ("evomerge", "torch", "transformers", "lm_eval", "optuna", "cma", "numpy", "scipy", "scikit-learn")


def facts_of(
    folder: RunFolder, journal: Journal, prepared: Prepared, workers: RunWorkers, display: Display
) -> dict[str, Any]:
    """Return the run's facts, recorded when it first started, after checking that they still hold."""
    now = {
        "parents": {folder.name_of(ref): parent.fingerprint for ref, parent in prepared.parents.checkpoints.items()},
        "settings": settings_of(prepared, folder.name_of(prepared.donor)),
        "items": {split: digest(prepared.fitness.items(split)) for split in SPLITS},
    }
    facts = journal.facts()
    if "identity" in facts:
        _check_identity(facts["identity"], now)
        changed = {k: (v, _versions()[k]) for k, v in facts["versions"].items() if _versions().get(k) != v}
        for library, (then, current) in changed.items():
            display.note(f"warning: the run began with {library} {then}, this is {current}; results may differ")
        return facts
    placement = workers.placement
    in_flight = prepared.experiment.workers.in_flight or usual_in_flight(
        placement.workers, learns=SEARCHERS[prepared.experiment.searcher.kind].learns
    )
    journal.note("objectives", [_objective(o) for o in prepared.fitness.objectives])
    journal.note("versions", _versions())
    journal.note("placement", asdict(placement))
    journal.note("item_counts", {s: {t: len(i) for t, i in prepared.fitness.items(s).items()} for s in SPLITS})
    journal.note("in_flight", in_flight)
    journal.note("identity", now)  # last: a journal that holds it holds all of the above
    return journal.facts()


def usual_in_flight(workers: int, *, learns: bool) -> int:
    """Return how many candidates are open at once: the more workers, the longer the slowest of them is waited for.

    With log-normal times (sigma 0.5) it keeps 97% and more of 8 to 256 workers busy (docs/workers.md). A searcher that
    does not learn loses nothing by many open candidates, which keep workers busy whatever the times (sigma 1).
    """
    if not learns:
        return 32 * workers
    return max(8, round(workers * (1 + math.log2(workers) / 2)))


def settings_of(prepared: Prepared, donor: str) -> dict[str, str]:
    """Return digests of everything else that a trial's result depends on, named for messages."""
    experiment = prepared.experiment
    unused = {"estimate"} if experiment.fitness.estimate is None else None
    settings: dict[str, Any] = {
        "the objectives": [_objective(o) for o in prepared.fitness.objectives],
        "the fitness settings": experiment.fitness.model_dump(mode="json", exclude=unused),
        "the search space": experiment.search_space.model_dump(mode="json"),
        "the searcher": experiment.searcher.model_dump(mode="json"),
        "the dtype": prepared.dtype,
    }
    if prepared.known_front is not None:
        settings["the known front"] = prepared.known_front.tolist()
    for name, bank in (prepared.banks or {}).items():
        settings[f"the item bank of {name}"] = bank.fingerprint
    if experiment.merge.fields:
        settings["the merge settings"] = experiment.merge.model_dump(mode="json")
    if experiment.merge.statistics:
        settings["the statistics"] = Statistics.open(experiment.merge.statistics).fingerprint
    for objective in experiment.fitness.objectives:
        file = Path((objective.function or "").rpartition(":")[0])
        if file.suffix == ".py":
            settings[f"the source of {file}"] = file.read_text(encoding="utf-8")
    folder = prepared.parents[prepared.donor].folder
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            settings[f"{name} of {donor}"] = (folder / name).read_text(encoding="utf-8", errors="replace")
    return {name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for name, value in settings.items()}


def _objective(objective: Any) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in ("name", "direction", "weight", "task", "metric")}


def _check_identity(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"the weights of {name}" for name in now["parents"] if then["parents"].get(name) != now["parents"][name]]
    changed += [name for name in now["settings"] if then["settings"].get(name) != now["settings"][name]]
    changed += [f"the {split} items" for split in now["items"] if then["items"].get(split) != now["items"][split]]
    if changed:
        raise RunError(
            f"changed since this run began: {', '.join(changed)}. Its trials cannot be compared with new ones: "
            "restore what changed, or start a new run"
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}
