"""Preflight: everything that can be known to be wrong before work starts, all at once.

Reads configurations, safetensors headers, tokenizers, tasks and free space; weights only to look for NaN and Inf.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from evomerge import loggers
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, EvomergeError, Problem
from evomerge.experiments import picks
from evomerge.experiments.known_front import read_known_front
from evomerge.experiments.schema import ExperimentConfig
from evomerge.fitness import Fitness
from evomerge.fitness.estimation import estimate_problems, open_banks, partial_banks
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.overlap import overlaps
from evomerge.kinship import Products
from evomerge.merging import Parents, check_recipe
from evomerge.merging.members import member_problems
from evomerge.merging.paths import path_problems
from evomerge.merging.tokenizer_files import merged_tokenizer
from evomerge.recipes import Alignment, ModelInput, Recipe, path_of, routed_recipe
from evomerge.search_spaces import ChoiceGene, Genome, ParentsInfo, SearchSpace, build_search_space
from evomerge.search_spaces.lineage import LINEAGE, LineageSpace, lineage_of
from evomerge.searchers import SEARCHERS, ObjectiveSpec, Searcher, build_searcher

T = TypeVar("T")

# Beyond this much the search for NaN would delay the start; `evomerge merge` and the export check every tensor.
FINITE_CHECK_BYTES = 8 * 2**30
RUN_BYTES_PER_RESPONSE = 64


@dataclass(frozen=True)
class Prepared:
    """An experiment that passed: its parts, built.

    ``dtype`` is that of every merged model, in memory and exported. ``donor`` is the model that gives configuration and
    tokenizer, in memory and exported. ``like`` is one of the recipes to come: they differ in their numbers only.
    ``banks`` are those that the experiment names, by objective; ``known_front`` holds the gains of the one it names.
    """

    experiment: ExperimentConfig
    parents: Parents
    fitness: Fitness
    space: SearchSpace
    objectives: tuple[ObjectiveSpec, ...]
    warnings: tuple[str, ...]
    dtype: str
    donor: str
    like: Recipe
    banks: Mapping[str, ItemBank] | None = None
    known_front: np.ndarray | None = None

    def searcher(self, trials: int, kinship: Products | None = None) -> Searcher:
        """Return a fresh searcher, as it was before the first trial; ``kinship`` is the parents', if it asks for it."""
        return build_searcher(
            self.experiment.searcher,
            self.space.genes,
            self.objectives,
            trials,
            self.space.starting_points(),
            tuple(self.experiment.parents),
            between=_between(self.space),
            kinship=kinship,
        )

    @property
    def reference_recipes(self) -> dict[str, tuple[str, Recipe]]:
        """Name to (kind, recipe) of the models that the search is compared with: base, parents, uniform merge."""
        experiment = self.experiment
        shared = self.like.parents() if experiment.merge.vocabulary else tuple(experiment.references.values())
        models = {
            name: ("base" if name == "base" else "parent", alone(reference, self.dtype))
            for name, reference in experiment.references.items()
            if reference in shared  # another cannot be run with a vocabulary that was made without it
        }
        average = uniform(list(experiment.parents.values()), self.dtype, align=experiment.merge.align)
        return {**models, "uniform": ("uniform", average)}


def alone(reference: str, dtype: str | None) -> Recipe:
    """Return the recipe of a parent as it is."""
    return Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": reference}], "dtype": dtype})


def uniform(references: list[str], dtype: str | None, *, align: Alignment | None = None) -> Recipe:
    """Return the recipe of the plain average of the parents, aligned with each other if ``align``."""
    models = tuple(ModelInput(model=r, parameters={"weight": 1.0 / len(references)}) for r in references)
    return Recipe.model_validate({"merge_method": "linear", "models": models, "dtype": dtype, "align": align})


def prepare(experiment: ExperimentConfig, *, out: Path | None = None) -> Prepared:
    """Check the experiment and build its parts.

    Args:
        out: the run folder to be, whose disk must have room.

    Raises:
        ConfigError: with every problem found.
    """
    problems = _unfit_searcher(experiment)
    parents = _attempt(problems, lambda: _open(experiment))
    fitness = _attempt(problems, lambda: Fitness(experiment.fitness, locate=experiment.where))
    objectives = tuple(ObjectiveSpec(o.name, o.direction, o.weight) for o in fitness.objectives) if fitness else ()
    if fitness:
        _attempt(problems, lambda: _check_pick(experiment, objectives))
    space = like = None
    dtype = donor = ""
    if parents:
        dtype = experiment.dtype or common_dtype(parents)
        info = _info(experiment, parents, dtype)
        space = _attempt(problems, lambda: build_search_space(experiment.search_space, info))
    if space and parents:
        like = space.express({gene.name: gene.initial for gene in space.genes})
        problems += _problems_of(like, parents, fitness) or _path_problems(space, like, parents.viewed(like))
        if lineage_of(space):
            crossed = [*filter(None, [experiment.base]), *experiment.parents.values()]
            problems += member_problems({reference: parents[reference] for reference in crossed})
        donor = like.base_model or like.parents()[0]
    if space and objectives:
        names, between = tuple(experiment.parents), _between(space)
        _attempt(
            problems,
            lambda: build_searcher(
                experiment.searcher, space.genes, objectives, experiment.budget.trials, [], names, between=between
            ),
        )
    banks = _attempt(problems, lambda: _banks(fitness, experiment)) if fitness else None
    known = _attempt(problems, lambda: _known_front(experiment, objectives)) if objectives else None
    problems += loggers.missing(experiment.loggers, experiment.where(("loggers",)))
    if fitness and out:
        problems += _disk(out, fitness, experiment.budget.trials)
    if problems or parents is None or fitness is None or space is None or like is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    found = (*fitness.warnings, *overlaps(fitness), *partial_banks(fitness, banks or {}), *_childless(experiment))
    warnings = tuple(str(problem) for problem in found)
    return Prepared(experiment, parents, fitness, space, objectives, warnings, dtype, donor, like, banks, known)


def _unfit_searcher(experiment: ExperimentConfig) -> list[Problem]:
    """Return why the searcher cannot search this kind of space, or cannot be told what it learns from."""
    entry, kind = SEARCHERS[experiment.searcher.kind], experiment.search_space.kind
    problems = []
    if entry.lineage and kind != LINEAGE:
        what = (
            f"the searcher {experiment.searcher.kind!r} crosses earlier trials, which a {kind} space has no genes for"
        )
        hint = "use a search space of kind lineage: {kind: lineage, crossover: slerp}"
        problems.append(Problem(what, experiment.where(("search_space",)), hint))
    elif kind == LINEAGE and not entry.lineage:
        what = f"the searcher {experiment.searcher.kind!r} cannot choose which earlier trials are crossed"
        able = ", ".join(name for name, other in SEARCHERS.items() if other.lineage) or "none of those installed"
        problems.append(Problem(what, experiment.where(("searcher",)), f"searchers of lineage: {able}"))
    if entry.kinship and experiment.base is None:
        what = f"the searcher {experiment.searcher.kind!r} compares task vectors, and the experiment has no base"
        hint = "name the model that the parents were fine-tuned from"
        problems.append(Problem(what, experiment.where(("base",)), hint))
    if experiment.fitness.estimate is not None and (entry.per_item or kind == LINEAGE):
        what = "scores of trials that are crossed again cannot be estimated from a few items: children differ in all"
        if entry.per_item:
            what = f"the searcher {experiment.searcher.kind!r} learns from every item, and trials would be asked few"
        problems.append(Problem(what, experiment.where(("fitness", "estimate")), "leave out fitness.estimate"))
    return problems


def _childless(experiment: ExperimentConfig) -> list[Problem]:
    """Return a warning where the budget is spent before any two parents are crossed."""
    parents, trials = len(experiment.parents), experiment.budget.trials
    if experiment.search_space.kind != LINEAGE or trials > parents:
        return []
    what = f"the first {parents} trials are the parents as they are, so {trials} make no child"
    return [Problem(what, experiment.where(("budget", "trials")), f"raise it above {parents}")]


def _between(space: SearchSpace) -> Callable[[float], Genome] | None:
    return space.between if isinstance(space, LineageSpace) else None


def _banks(fitness: Fitness, experiment: ExperimentConfig) -> Mapping[str, ItemBank] | None:
    """Return the banks that the experiment names, after checking that its objectives can be estimated."""
    estimate = experiment.fitness.estimate
    if estimate is None:
        return None

    def where(field: str) -> str:
        return experiment.where(("fitness", *field.split(".")))

    problems = estimate_problems(fitness, estimate, where)
    if problems:
        raise ConfigError(problems)
    return open_banks(fitness, estimate, where("estimate.bank"))


def _known_front(experiment: ExperimentConfig, objectives: tuple[ObjectiveSpec, ...]) -> np.ndarray | None:
    if experiment.known_front is None:
        return None
    if len(objectives) == 1:
        what = "of a single objective there is no front to be compared with a known one"
        raise ConfigError(Problem(what, experiment.where(("known_front",)), "leave it out"))
    return read_known_front(Path(experiment.known_front), objectives, experiment.where(("known_front",)))


def not_finite(parents: Parents) -> list[Problem]:
    """Return a problem for each parent with NaN or Inf in its weights."""
    checkpoints = list(parents.checkpoints.values())
    if sum(size_of(checkpoint) for checkpoint in checkpoints) > FINITE_CHECK_BYTES:
        return []
    problems = []
    for checkpoint in checkpoints:
        if names := checkpoint.check_finite():
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            problems.append(
                Problem(
                    f"NaN or Inf in the weights: {listed}",
                    checkpoint.name,
                    "a merge with it would be NaN as well; use another checkpoint of this model",
                )
            )
    return problems


def size_of(checkpoint: Checkpoint) -> int:
    """Return the bytes of a checkpoint's tensors."""
    total = 0
    for info in checkpoint.tensors.values():
        count = 1
        for extent in info.shape:
            count *= extent
        total += count * info.dtype.itemsize
    return total


def _open(experiment: ExperimentConfig) -> Parents:
    problems: list[Problem] = []
    checkpoints: dict[str, Checkpoint] = {}
    for name, reference in experiment.references.items():
        try:
            checkpoints |= Parents.open([reference]).checkpoints
        except CheckpointError as error:
            key = ("base",) if name == "base" else ("parents" if name in experiment.parents else "also_score", name)
            problems.append(Problem(str(error), experiment.where(key)))
    if problems:
        raise ConfigError(problems)
    return Parents(checkpoints)


def common_dtype(parents: Parents) -> str:
    """Return the dtype that holds every model's usual one: that of most of its weights."""
    usual = []
    for checkpoint in parents.checkpoints.values():
        sizes: Counter[torch.dtype] = Counter()
        for info in checkpoint.tensors.values():
            if info.dtype.is_floating_point:
                sizes[info.dtype] += info.stop - info.start
        usual += [dtype for dtype, _ in sizes.most_common(1)]
    return str(functools.reduce(torch.promote_types, usual, usual[0])).removeprefix("torch.")


def _problems_of(recipe: Recipe, parents: Parents, fitness: Fitness | None) -> list[Problem]:
    """Return what is wrong with the recipe, with all models together, and with the tasks for their tokenizer."""
    if problems := _mixed(parents):
        return problems
    problems = check_recipe(recipe, parents)
    try:
        seen = parents.viewed(recipe)
        # A model that takes no part in the merges needs to fit in only where it can be run with their vocabulary.
        others = () if recipe.tokenizer or recipe.tokenizer_source else tuple(parents.checkpoints)
        problems += Parents({reference: seen[reference] for reference in (*recipe.parents(), *others)}).problems()
        problems = problems or not_finite(parents)
        tokenizer = merged_tokenizer(recipe, seen.checkpoints)
    except ConfigError as error:
        return [*problems, *error.problems]
    except CheckpointError as error:
        return [*problems, Problem(str(error))]
    if fitness is None or problems:
        return problems
    donor = recipe.base_model or recipe.parents()[0]
    if parents[donor].is_plain:
        return fitness.plain_problems()
    if tokenizer is None:
        return [Problem("it has no tokenizer", donor, "use a folder that holds the model's tokenizer too")]
    return fitness.problems(tokenizer)


def _mixed(parents: Parents) -> list[Problem]:
    """Return a problem for each model that is plain tensors where others are models of transformers."""
    plain = [reference for reference, checkpoint in parents.checkpoints.items() if checkpoint.is_plain]
    if len(plain) in (0, len(parents.checkpoints)):
        return []
    what = "a folder of plain tensors (no config.json that names an architecture), and other models here are not"
    return [Problem(what, reference, "add its config.json, if it is a model of transformers") for reference in plain]


def ends_of(space: SearchSpace) -> tuple[Recipe, Recipe]:
    """Return the recipes of all genes at their lowest and at their highest; of paths, the second is the longest."""
    lowest, highest = (
        {g.name: g.choices[end] if isinstance(g, ChoiceGene) else (g.low, g.high)[end] for g in space.genes}
        for end in (0, -1)
    )
    return space.express(lowest), space.express(highest)


def _path_problems(space: SearchSpace, like: Recipe, parents: Parents) -> list[Problem]:
    """Return why the longest of the space's paths, with a scale if it has any, could not be run or exported."""
    if path_of(like) is None:
        return []
    lowest, highest = ends_of(space)
    path = path_of(highest) or ()
    found = [step.scale for step in (*path, *(path_of(lowest) or ())) if step.scale != 1]
    # One scale, as all of them at their bounds might overflow.
    scaled = [*(step._replace(scale=1.0) for step in path[:-1]), path[-1]._replace(scale=found[0] if found else 1.0)]
    return path_problems(routed_recipe(scaled, outside=highest.outside), parents)


def _info(experiment: ExperimentConfig, parents: Parents, dtype: str) -> ParentsInfo:
    reference = experiment.base or next(iter(experiment.parents.values()))
    checkpoint = parents.checkpoints[reference]
    return ParentsInfo(
        base=experiment.base,
        parents=experiment.parents,
        tensor_names=tuple(checkpoint.tensors),
        num_layers=checkpoint.num_layers,
        dtype=dtype,
        common=experiment.merge.fields,
    )


def _check_pick(experiment: ExperimentConfig, objectives: tuple[ObjectiveSpec, ...]) -> None:
    if experiment.pick.startswith("trial:"):
        if int(experiment.pick.removeprefix("trial:")) >= experiment.budget.trials:
            last = experiment.budget.trials - 1
            raise ConfigError(
                Problem(f"there will be no {experiment.pick}", experiment.where(("pick",)), f"the last is {last}")
            )
    else:
        picks.pick(experiment.pick, {0: {o.name: 0.0 for o in objectives}}, objectives)


def _disk(out: Path, fitness: Fitness, trials: int) -> list[Problem]:
    folder = next(path for path in [out.resolve(), *out.resolve().parents] if path.exists())
    items = sum(len(names) for names in fitness.items("search").values())
    needed = (trials + 100) * (items * RUN_BYTES_PER_RESPONSE + 4096)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        Problem(
            f"the run may write {needed / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free",
            str(folder),
            "free some space, or name a folder on another disk with --out",
        )
    ]


def _attempt(problems: list[Problem], action: Callable[[], T]) -> T | None:
    try:
        return action()
    except ConfigError as error:
        problems.extend(error.problems)
    except EvomergeError as error:
        problems.append(Problem(str(error)))
    return None
