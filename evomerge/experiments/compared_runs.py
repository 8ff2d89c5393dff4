"""The runs that a comparison of searchers takes: reading them, whether they can be compared, what they are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.experiments import staging
from evomerge.experiments.confirmation import Confirmation, read_confirmation
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.summarise_stages import check_last_began
from evomerge.searchers import ObjectiveSpec

By = Literal["searcher", "name", "folder"]
NAMED = 3  # runs that a message names before it counts the others


@dataclass(frozen=True)
class RunRecord:
    """What a comparison reads of a run, finished or not.

    Attributes:
        folder: the run's.
        name: the experiment's.
        searcher: the searcher's options, its seed included.
        objectives: what the trials are scored on.
        facts: the journal's.
        trials: the journal's.
        confirmation: of all these trials; None before that.
        budget: trials planned.
        is_staged: whether the trials are those of the last stage of several.
    """

    folder: str
    name: str
    searcher: Mapping[str, Any]
    objectives: tuple[ObjectiveSpec, ...]
    facts: Mapping[str, Any]
    trials: tuple[Trial, ...]
    confirmation: Confirmation | None
    budget: int
    is_staged: bool = False

    @property
    def seed(self) -> int:
        """The searcher's seed."""
        return int(self.searcher["seed"])

    @property
    def references(self) -> list[dict[str, float]]:
        """The reference models' objectives on the search items."""
        return [reference["objectives"] for reference in self.facts["references"]]

    @property
    def calibration_items(self) -> int:
        """Item evaluations of the random merges that an estimated run calibrates its items on."""
        known = {reference["name"] for reference in self.facts["references"]}
        merges = sum(name not in known for name in self.facts.get("calibration", ()))
        return merges * sum(self.facts["item_counts"]["search"].values()) if merges else 0

    @property
    def is_estimated(self) -> bool:
        """Whether trials' scores are estimates."""
        return "estimation" in self.facts

    def items(self, split: str) -> str | None:
        """Return the digest of the items of a split."""
        digest: str | None = self.facts["identity"].get("items", {}).get(split)
        return digest

    @property
    def settings(self) -> dict[str, Any]:
        """What the run depends on beside the seed, named for messages, with digests or plain values."""
        identity = self.facts["identity"]
        return {
            **identity.get("settings", {}),
            "the searcher": canonical(without_seed(self.searcher)),
            "the parents": sorted(identity.get("parents", {}).values()),
            "the trials in flight": self.facts.get("in_flight"),
        }


def read_run(path: Path) -> RunRecord:
    """Read a run.

    Raises:
        RunError: there is none, or it has no trial yet.
    """
    folder = RunFolder(path)
    check_last_began(folder)
    experiment = folder.read_experiment()
    journal = Journal.read(folder.journal)
    facts, trials = journal.facts(), tuple(journal.trials())
    if "references" not in facts or not trials:
        raise RunError(f"{path} has no trial yet: resume it (`evomerge resume {path}`), or leave it out")
    confirmation = read_confirmation(folder.confirmation)
    return RunRecord(
        folder=str(path),
        name=experiment.name,
        searcher=experiment.searcher.model_dump(mode="json"),
        objectives=journal.objectives,
        facts=facts,
        trials=trials,
        confirmation=confirmation if confirmation and confirmation.run_trials == len(trials) else None,
        budget=experiment.budget.trials,
        is_staged=staging.is_staged(folder.read_written()),
    )


def check_comparable(runs: Sequence[RunRecord]) -> None:
    """Check that the runs have the same objectives and search items, and that none is there twice.

    Raises:
        ConfigError: which run differs from the first, and in what.
    """
    first, problems = runs[0], list[Problem]()
    for run in runs[1:]:
        if _objectives(run) != _objectives(first):
            what = f"scored on {_in_words(run)}; {first.folder} on {_in_words(first)}"
            problems.append(Problem(what, run.folder, "compare runs on the same objectives"))
        elif run.items("search") != first.items("search"):
            what = f"searched on {_counted(run)} other than the {_counted(first)} of {first.folder}"
            problems.append(Problem(what, run.folder, "compare runs on the same search items"))
    seen: dict[str, RunRecord] = {}
    for run in runs:
        same = seen.setdefault(canonical([run.settings, run.seed]), run)
        if same is not run:
            what = f"the same search as {same.folder}: equal settings and seed {run.seed}"
            problems.append(Problem(what, run.folder, "leave one of them out; repetitions need seeds of their own"))
    if problems:
        raise ConfigError(problems)


def grouped(runs: Sequence[RunRecord], by: By) -> dict[str, list[RunRecord]]:
    """Return the runs by what they are called, in the order of their first runs; in a group by seed.

    They are called after their searcher, their experiment's name or the folder that the run folder is in.
    """
    match by:
        case "searcher":
            labels = searcher_labels([run.searcher for run in runs])
        case "name":
            labels = [run.name for run in runs]
        case "folder":
            labels = [Path(run.folder).absolute().parent.name for run in runs]
    groups: dict[str, list[RunRecord]] = {}
    for label, run in zip(labels, runs, strict=True):
        groups.setdefault(label, []).append(run)
    return {label: sorted(group, key=lambda run: run.seed) for label, group in groups.items()}


def searcher_labels(searchers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each searcher is called: its kind, and those options in which others of its kind differ.

    An option that is left to the searcher (None) is not told, nor is the seed. An Optuna sampler is always named.
    """
    options = [_flat(without_seed(searcher)) for searcher in searchers]
    titles = [" ".join([each.pop("kind"), *filter(None, [each.pop("sampler", None)])]) for each in options]
    labels = []
    for title, own in zip(titles, options, strict=True):
        alike = [other for other_title, other in zip(titles, options, strict=True) if other_title == title]
        told = [
            f"{name}={value}"
            for name, value in own.items()
            if value is not None and any(other.get(name) != value for other in alike)
        ]
        labels.append(" ".join([title, *told]))
    return labels


def differences(groups: Mapping[str, Sequence[RunRecord]], by: By) -> list[str]:
    """Return a sentence for each thing in which runs differ that should not.

    Runs of one group should differ in their seeds alone, and runs of different searchers in the searcher alone.
    """
    found = [
        f"The runs of {label} are no repetitions: {_names(other)} and {group[0].folder} differ in {name}. "
        "Group runs otherwise with --by."
        for label, group in groups.items()
        for name, other in _differing(group)
    ]
    if by == "searcher":
        firsts = [group[0] for group in groups.values()]
        found += [
            f"Not only the searchers differ: {_names(other)} and {firsts[0].folder} also differ in {name}."
            for name, other in _differing(firsts)
            if name != "the searcher"
        ]
    return found


def names(runs: Sequence[RunRecord]) -> str:
    """Return the runs' folders as a list in words, cut after some."""
    return _names([run.folder for run in runs])


def without_seed(searcher: Mapping[str, Any]) -> dict[str, Any]:
    """Return a searcher's options without its seed."""
    return {name: value for name, value in searcher.items() if name != "seed"}


def canonical(value: Any) -> str:
    """Return equal text for equal data."""
    return json.dumps(value, sort_keys=True)


def _differing(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return each setting in which some runs differ from the first, with these runs' folders."""
    first = runs[0].settings
    settings = list(dict.fromkeys(name for run in runs for name in run.settings))
    found = ((name, [r.folder for r in runs if r.settings.get(name) != first.get(name)]) for name in settings)
    return [(name, other) for name, other in found if other]


def _names(folders: Sequence[str]) -> str:
    shown = list(folders[:NAMED]) if len(folders) > NAMED + 1 else list(folders)
    if len(shown) < len(folders):
        return f"{', '.join(shown)} and {len(folders) - len(shown)} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _objectives(run: RunRecord) -> list[tuple[str, ...]]:
    """Return what has to agree; the weights need not, as only searchers use them."""
    return [tuple(str(o.get(key, "")) for key in ("name", "direction", "task", "metric")) for o in _infos(run)]


def _infos(run: RunRecord) -> list[dict[str, Any]]:
    return list(run.facts["objectives"])


def _in_words(run: RunRecord) -> str:
    return ", ".join(f"{o['name']} ({o['direction']} {o.get('metric', '')})".replace(" )", ")") for o in _infos(run))


def _counted(run: RunRecord) -> str:
    counts = run.facts.get("item_counts", {}).get("search", {})
    return ", ".join(f"{count} items of {task}" for task, count in counts.items()) or "items"


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the entries of those that are mappings in their place."""
    return {
        name: value
        for outer, held in options.items()
        for name, value in (held.items() if isinstance(held, Mapping) else [(outer, held)])
    }
