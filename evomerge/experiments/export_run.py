"""Export a run's model: write it, load it again as a stranger would, and see that it answers as it did in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.view import BesideFiles
from evomerge.errors import ConfigError, ExportError, Problem
from evomerge.experiments import picks, staging
from evomerge.experiments.confirmation import read_confirmation
from evomerge.experiments.evaluations import SPLITS
from evomerge.experiments.front_file import read_front, recipe_of
from evomerge.experiments.journal import Journal
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run_card import card_of
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import PICK, PICKS
from evomerge.experiments.summarise_stages import check_last_began, earlier_stages
from evomerge.export.card_data import CardData
from evomerge.export.folder import read_plain, verify_loads, write_model
from evomerge.fitness import Responses
from evomerge.merging import Parents
from evomerge.merging.members import Members
from evomerge.recipes import NamedRecipe, Recipe, pack_recipe, path_of, sources_of, trial_of
from evomerge.search_spaces.lineage import lineage_of

# Log-likelihoods depend on the order of additions in the last digits; answers and choices must not.
TOLERANCE = 1e-4
MOST_ROUNDED = 0.2  # share of the responses that may differ where the exported weights are rounded once more


@dataclass(frozen=True)
class Exported:
    """What an export did: where, which trial or prediction, and the number of responses found equal to its own."""

    folder: Path
    trial: int
    label: str
    responses_checked: int


def label(path: Path, number: int) -> str:
    """Return what the model with this number is called: ``trial 3``, ``prediction 81``."""
    confirmation = read_confirmation(RunFolder(path).confirmation)
    predicted = confirmation is not None and number in confirmation.predictions
    return f"{'prediction' if predicted else 'trial'} {number}"


def choose(path: Path, *, trial: int | None, pick: str | None) -> int:
    """Return the number of the trial or confirmed prediction to export: the one named, else the confirmed pick.

    Raises:
        ConfigError: no such number, or the trial failed.
        RunError: there is no run, or its last stage did not begin.
    """
    folder = RunFolder(path)
    check_last_began(folder)
    if trial is not None and pick is not None:
        raise ConfigError(Problem("give either --trial or --pick"))
    if pick is not None and not PICK.match(pick):
        raise ConfigError(Problem(f"cannot pick by {pick!r}", "--pick", PICKS))
    journal, confirmation = Journal.read(folder.journal), read_confirmation(folder.confirmation)
    if trial is not None:
        trials = journal.trials()
        if confirmation and trial in confirmation.predictions:
            return trial
        if trial >= len(trials) or trials[trial].failed:
            state = "failed" if trial < len(trials) else "does not exist"
            raise ConfigError(Problem(f"trial {trial} {state}", "--trial", f"see `evomerge front {path}`"))
        return trial
    if confirmation is None:
        front = {entry["trial"]: entry["objectives"] for entry in read_front(folder.front)}
        hint = f"`evomerge resume {path}` finishes the run; --trial N exports one as it is"
        if not front:
            raise ConfigError(Problem("the run has no trials yet", str(path), hint))
        raise ConfigError(Problem("the run is not finished, so no trial is confirmed", str(path), hint))
    if pick is None:
        return confirmation.pick
    return picks.pick(pick, {n: row.scores for n, row in confirmation.candidates.items()}, journal.objectives)


def describe(path: Path, number: int) -> tuple[Prepared, Recipe, CardData]:
    """Return the run's parts, and the recipe and model card of a trial or a confirmed prediction.

    A space of lineage has been told the run's trials.
    """
    folder = RunFolder(path)
    prepared = prepare(folder.read_experiment())
    entry = next((e for e in read_front(folder.front) if e["trial"] == number), None)
    journal, confirmation = Journal.read(folder.journal), read_confirmation(folder.confirmation)
    if (lineage := lineage_of(prepared.space)) is not None:
        for trial in journal.trials():
            lineage.told(trial.genome, trial.recipe_hash, failed=trial.failed)
    predictions = confirmation.predictions if confirmation else {}
    if entry and not staging.is_staged(folder.read_written()):
        recipe = recipe_of(entry)
    else:  # a stage's recipes name models inside the run's folder, which may have been moved
        recipe = prepared.space.express((predictions.get(number) or journal.trials()[number]).genome)
    stages = staging.whole(recipe, folder.read_written(), folder.path)
    several, before = stages if len(stages) > 1 else (), earlier_stages(folder)
    card = card_of(prepared, journal, confirmation, number, recipe, several, before)
    return prepared, recipe, card


def export(path: Path, out: Path | None, number: int, report: Callable[[str], None] = lambda text: None) -> Exported:
    """Write the trial or confirmed prediction ``number`` of the run in ``path`` to ``out``, and verify it.

    Args:
        out: a folder that does not exist or is empty; None for the run's own ``model/``, which is replaced.
        report: called with a line of text at each stage.

    Raises:
        ExportError: the folder cannot be written or loaded, or does not answer as it did in the run.
    """
    prepared, recipe, card = describe(path, number)
    called = label(path, number)
    folder = out or RunFolder(path).model
    report(f"writing {called} to {folder}")
    parents = _with_sources(recipe, prepared, card.stages)
    write_model(recipe, folder, card=card, parents=parents, overwrite=out is None)
    alone = "" if prepared.parents[prepared.donor].is_plain else " with transformers alone"
    report(f"loading it{alone} and asking it the same items")
    journal = Journal.read(RunFolder(path).journal)
    try:
        checked = _verify(RunFolder(path), folder, recipe, prepared, journal.facts())
    except ExportError:
        set_aside(folder)
        raise
    return Exported(folder, number, called, checked)


def _with_sources(recipe: Recipe, prepared: Prepared, stages: Sequence[NamedRecipe]) -> Parents:
    """Return the parents and the trials that the recipe names as sources, whose lineage the stages are.

    All are seen with the run's tokenizer, which is that of the model that every trial was scored with.
    """
    if not sources_of(recipe):
        return prepared.parents
    donor = prepared.parents[prepared.donor]
    members = Members(prepared.parents, prepared.donor, int(prepared.experiment.workers.members_gb * 10**9))
    members.learn({trial: pack_recipe(s.recipe) for s in stages if s.name and (trial := trial_of(s.name))})
    parents = prepared.parents.with_members(members.of(recipe))
    return Parents({reference: BesideFiles(one, donor) for reference, one in parents.checkpoints.items()})


def set_aside(folder: Path) -> Path:
    """Rename an export that did not pass, so that nobody takes it for a good one; return its new name."""
    aside = next(p for n in range(1000) if not (p := folder.with_name(f"{folder.name}.unverified{n or ''}")).exists())
    return folder.rename(aside)


def _verify(folder: RunFolder, out: Path, recipe: Recipe, prepared: Prepared, facts: Mapping[str, Any]) -> int:
    torch.set_num_threads(facts["placement"]["threads"])
    prepared.fitness.use_batch_sizes(facts.get("batch_sizes", {}))
    model: Any
    if prepared.parents[prepared.donor].is_plain:
        model, tokenizer = read_plain(out), None
    else:
        model, tokenizer = verify_loads(out)
    if facts["placement"]["device"] == "cuda" and torch.cuda.is_available():
        model = {n: t.cuda() for n, t in model.items()} if isinstance(model, dict) else model.to("cuda")
    checked = 0
    for split in SPLITS:
        stored = ResponseStore(folder.responses, split).read(recipe.hash)
        if stored is None or stored.responses is None:
            continue
        trial = Responses.from_json(stored.responses)
        known = {task: prepared.fitness.known_items(task) for task in trial.tasks}
        if gone := [task for task, part in trial.tasks.items() if not known[task].issuperset(part.items)]:
            raise ExportError(f"the items of {gone[0]} have changed since the run: restore them, or start a new run")
        asked = {task: part.items for task, part in trial.tasks.items()}
        exported = prepared.fitness.evaluate(model, tokenizer, asked)
        checked += _compare(trial, exported, out, rounded=_is_rounded(recipe, prepared.dtype))
    return checked


def _is_rounded(recipe: Recipe, dtype: str) -> bool:
    """Whether the exported weights are rounded where the search's were not: scales folded into half precision."""
    return dtype != "float32" and any(step.scale != 1 for step in path_of(recipe) or ())


def _compare(trial: Responses, exported: Responses, out: Path, *, rounded: bool) -> int:
    """Return the number of responses found equal.

    Args:
        rounded: single responses may differ, if their mean does by no more than noise.

    Raises:
        ExportError: one differs.
    """
    count = 0
    for task, part in trial.tasks.items():
        place = {item: n for n, item in enumerate(exported.tasks[task].items)}
        for metric, values in part.values.items():
            others = [exported.tasks[task].values[metric][place[item]] for item in part.items]
            pairs = zip(part.items, values, others, strict=True)
            differing = [item for item, trial_value, value in pairs if not _equal(trial_value, value)]
            if differing and not (rounded and _is_rounding(values, others, len(differing))):
                raise ExportError(
                    f"the model written to {out} answers {len(differing)} of {len(values)} items of {task} ({metric}) "
                    f"differently than in the run, first {differing[0]!r}. It is kept beside it as *.unverified; do "
                    "not use it. This happens when the run was made on another device or with other versions: "
                    "`evomerge report` names them"
                )
            count += len(values) - len(differing)
    return count


def _is_rounding(values: Sequence[Any], others: Sequence[Any], differing: int) -> bool:
    """Whether few responses differ, and numbers in the mean by at most three standard errors."""
    if differing > MOST_ROUNDED * len(values):
        return False
    if not all(isinstance(value, (int, float)) for value in (*values, *others)):
        return True
    differences = torch.tensor(values, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)
    error = differences.std(correction=0) / len(values) ** 0.5
    return bool(differences.mean().abs() <= 3 * error)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= TOLERANCE * max(1.0, abs(a))
    return bool(a == b)
