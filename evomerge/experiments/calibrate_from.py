"""Item banks of an experiment before any run of it: the folder that `evomerge calibrate --from` writes.

0-OBJECTIVE.yaml and .safetensors, …   an item bank of each objective
responses/                             per-item responses of every model: none is evaluated twice
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import ConfigError, Problem
from evomerge.experiments import calibration, staging
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan
from evomerge.experiments.identity import settings_of
from evomerge.experiments.interrupts import watched
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.run_workers import open_workers
from evomerge.experiments.schema import ExperimentConfig
from evomerge.fitness import Fitness, Responses
from evomerge.fitness.estimate_config import CalibrationConfig, SoftConfig
from evomerge.fitness.estimation import require_unit, values_of
from evomerge.fitness.irt.bank import ItemBank
from evomerge.recipes import Recipe
from evomerge.reports.progress import Display

# Settings of a run that say which recipes it asks for, not what a recipe responds.
OF_THE_SEARCH = ("the search space", "the searcher")


def calibrate_from(
    experiment: ExperimentConfig,
    out: Path,
    config: CalibrationConfig,
    display: Display,
    *,
    soft: SoftConfig | None = None,
    ray_address: str | None = None,
) -> dict[str, ItemBank]:
    """Evaluate base, parents, uniform merge and random merges on all search items, and write a bank of each objective.

    A run with the same ``estimate.calibration`` makes the same banks by itself. Of a hybrid experiment the models are
    those of its first stage: the second's are merges with a model that is not there yet. Both stages share the items.

    Args:
        experiment: what to calibrate for; whatever its ``estimate`` section says.
        out: the folder of the banks; responses that an earlier call left there are used.
        config: how many merges, and the response model.
        display: told what is going on.
        soft: ask for soft responses too.
        ray_address: of a Ray cluster, instead of this machine.

    Raises:
        ConfigError: the experiment cannot work, its objectives cannot be estimated, or ``out`` holds a run.
        FitnessError: responses are not in [0, 1].
        RunError: another process works in ``out``.
        WorkerError: the workers cannot be built, or too few models can be evaluated.
        KeyboardInterrupt: the user asked to stop; what is done is kept.
    """
    folder = RunFolder(out)
    if folder.experiment.exists():
        raise ConfigError(Problem("the folder holds a run", str(out), "name another folder for the item banks"))
    fitness = experiment.fitness.model_copy(update={"estimate": None})
    prepared = prepare(staging.to_check(experiment.model_copy(update={"fitness": fitness}))[0], out=out)
    problems = calibration_problems(prepared.fitness, config, soft)
    if problems:
        raise ConfigError(problems)
    out.mkdir(parents=True, exist_ok=True)
    for warning in prepared.warnings:
        display.note(f"warning: {warning}")
    recipes = {name: recipe for name, (_, recipe) in prepared.reference_recipes.items()}
    recipes |= calibration.random_merges(prepared, config)
    parents = [name for name, (kind, _) in prepared.reference_recipes.items() if kind in ("parent", "base")]
    wanted = prepared.fitness.items("search") if soft else {}
    plan = _Plan("calibration", prepared.fitness, Asked(prepared.fitness.items("search"), wanted), _identity(prepared))
    with (
        folder.locked(),
        watched(display.note) as interrupts,
        open_workers(prepared, display, ray_address, interrupts.install) as workers,
    ):
        evaluations = Evaluations(workers.pool, plan, folder.responses)
        missing = _missing(recipes, plan, folder.responses)
        _evaluate(missing, recipes, evaluations, prepared.fitness, display.note, interrupts.stopping)
        found = calibration.gather(recipes, evaluations, display.note)
        banks = calibration.make_banks(prepared.fitness, found, [name for name in parents if name in found], config)
        calibration.write_banks(out, banks)
    return banks


def calibration_problems(fitness: Fitness, config: CalibrationConfig, soft: SoftConfig | None) -> list[Problem]:
    """Return why no item banks can be made of the objectives of ``fitness``, whatever the models respond."""
    problems = []
    if config.dimensions not in (1, "auto") and config.model != "2pl":
        what = f"{config.dimensions} dimensions are not known to the model {config.model!r}"
        problems.append(Problem(what, "--dimensions", "several abilities take --model 2pl; others have 1"))
    sizes = {task: len(items) for task, items in fitness.items("search").items()}
    fewest = 2 if config.dimensions == "auto" else max(2, config.dimensions)
    for objective in fitness.objectives:
        if objective.aggregation != "mean":
            what = f"{objective.name!r} is no mean over items ({objective.aggregation}), so items do not explain it"
            problems.append(Problem(what, "", "leave the objective out, for instance with --set"))
        elif sizes[objective.task] < fewest:
            what = f"{objective.name!r} has {sizes[objective.task]} search items; at least {fewest} are needed"
            problems.append(Problem(what, "", "raise search_items, or ask for fewer --dimensions"))
    if soft:
        problems += fitness.gold_problems(list(dict.fromkeys(objective.task for objective in fitness.objectives)))
    return problems


@dataclass(frozen=True)
class _Plan(FixedPlan):
    """The search items. No journal notices that models or settings have changed, so that the digest has to differ."""

    identity: str

    @property
    def digest(self) -> str:
        """Of the items, and of all else that responses depend on besides the recipe."""
        return hashlib.sha256(f"{super().digest} {self.identity}".encode()).hexdigest()[:16]


def _identity(prepared: Prepared) -> str:
    settings = settings_of(prepared, prepared.donor)
    kept = {name: value for name, value in settings.items() if name not in OF_THE_SEARCH}
    weights = {reference: parent.fingerprint for reference, parent in prepared.parents.checkpoints.items()}
    return json.dumps([kept, weights], sort_keys=True)


def _missing(recipes: Mapping[str, Recipe], plan: FixedPlan, folder: Path) -> list[str]:
    """Return the names of the recipes without stored responses."""
    store = ResponseStore(folder, plan.name, plan.digest)
    return [name for name, recipe in recipes.items() if store.read(recipe.hash) is None]


def _evaluate(
    missing: list[str],
    recipes: Mapping[str, Recipe],
    evaluations: Evaluations,
    fitness: Fitness,
    note: Callable[[str], None],
    stopping: Callable[[], bool],
) -> None:
    """Evaluate the missing models, and tell of each; the first whose responses cannot be calibrated on ends it."""
    before = len(recipes) - len(missing)
    known = f"; {before} of them already are" if before else ""
    note(f"{len(recipes)} models are to be evaluated on all search items{known}")
    for name in missing:
        evaluations.start(recipes[name])
    for number, name in enumerate(missing, before + 1):
        if stopping():
            raise KeyboardInterrupt
        outcome = evaluations.outcome(recipes[name])
        note(f"{number} of {len(recipes)}: {name}{' failed' if outcome.responses is None else ''}")
        if outcome.responses is not None:
            responses = Responses.from_json(outcome.responses)
            for objective in fitness.objectives:
                require_unit(objective.name, values_of(fitness, responses, objective.name))
