"""How far a run in stages is: what earlier stages did, and whether the last one began."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge.errors import RunError
from evomerge.experiments import nested, staging
from evomerge.experiments.confirmation import Confirmation, read_confirmation
from evomerge.experiments.journal import Journal
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.summarise_confirmed import confirmed_row
from evomerge.reports import tree
from evomerge.reports.summary import MergeOfTwo


def merges_of(folder: RunFolder) -> list[MergeOfTwo]:
    """Return the merges in the tree of a nested run, the run itself last; none of another run.

    Raises:
        RunError: the tree is not known yet, or damaged.
    """
    experiment = folder.read_written()
    if not nested.is_nested(experiment):
        return []
    *below, root = nested.read_tree(folder.tree)
    merges = [_merge(node, RunFolder(nested.model_of(folder.path, node.name).parent), node.trials) for node in below]
    merges = [
        replace(merge, report=f"{nested.FOLDER}/{merge.name}/{folder.report.name}" if merge.done else "")
        for merge in merges
    ]
    return [*merges, _merge(root, folder, experiment.budget.trials - sum(node.trials for node in below))]


def earlier_stages(folder: RunFolder) -> list[str]:
    """Return a line for each stage before the last: what it does, and how far it is; none of a run without stages.

    Raises:
        RunError: the stages are not known yet, or damaged.
    """
    experiment = folder.read_written()
    if nested.is_nested(experiment):
        return [tree.in_words(merge) for merge in merges_of(folder)[:-1]]
    lines = []
    for name, model in staging.merged_models(experiment, folder.path).items():
        stage = RunFolder(model.parent)
        done, confirmation = _done(stage)
        planned = stage.read_written().budget.trials if stage.experiment.is_file() else 0
        picked = f", picked {confirmation.picked.label}" if confirmation else ""
        lines.append(f"{name}, by a search in {stage.path.name}: {_of(done, planned)} trials{picked}")
    return lines


def check_last_began(folder: RunFolder) -> None:
    """Check that a run in stages has come to the last of them, whose trials are the run's own.

    Raises:
        RunError: it has not, with how far it is; or there is no run.
    """
    experiment = folder.read_written()
    if folder.journal.exists() or not staging.is_staged(experiment):
        return
    planned = staging.is_planned(experiment, folder.path)
    told = "; ".join(earlier_stages(folder)) if planned else "not all parents are evaluated"
    after = "wait for it" if folder.is_running else f"go on with `evomerge resume {folder.path}`"
    begun = [path for path in _folders(folder) if (path / folder.journal.name).exists()] if planned else []
    instead = f", or look at a stage: `evomerge report {begun[-1]}`" if begun else ""
    raise RunError(f"{folder.path} has not begun its last stage yet ({told}): {after}{instead}")


def _folders(folder: RunFolder) -> list[Path]:
    models = staging.merged_models(folder.read_written(), folder.path)
    inside = [model.parent.relative_to(folder.path.resolve()) for model in models.values()]
    return [folder.path / path for path in inside]


def _merge(node: nested.Node, folder: RunFolder, budget: int) -> MergeOfTwo:
    done, confirmation = _done(folder)
    found = MergeOfTwo(node.name, node.left, node.right, node.objectives, done, budget)
    if confirmation is None:
        return found
    return replace(found, pick=confirmation.pick, confirmed=confirmed_row(confirmation.picked))


def _done(folder: RunFolder) -> tuple[int, Confirmation | None]:
    """Return how many trials a stage has, and its confirmation if that is of all of them."""
    try:
        done = len(Journal.read(folder.journal).trials())
    except RunError:  # not begun
        return 0, None
    confirmation = read_confirmation(folder.confirmation)
    return done, confirmation if confirmation and confirmation.run_trials == done else None


def _of(done: int, planned: int) -> str:
    return str(done) if done == planned else f"{done} of {planned}" if planned else "no"
