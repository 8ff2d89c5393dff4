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
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, EvomergeError, Problem
from evomerge.experiments import fronts
from evomerge.experiments.schema import ExperimentConfig
from evomerge.fitness import Fitness
from evomerge.merging import Parents, check_recipe
from evomerge.recipes import ModelInput, Recipe
from evomerge.search_spaces import ParentsInfo, SearchSpace, build_search_space
from evomerge.searchers import ObjectiveSpec, Searcher, build_searcher

T = TypeVar("T")

# Beyond this much the search for NaN would delay the start; `evomerge merge` and the export check every tensor.
FINITE_CHECK_BYTES = 8 * 2**30
RUN_BYTES_PER_RESPONSE = 64


@dataclass(frozen=True)
class Prepared:
    """An experiment that passed: its parts, built.

    ``dtype`` is that of every merged model, in memory and exported. ``donor`` is the model that gives configuration and
    tokenizer, in memory and exported.
    """

    experiment: ExperimentConfig
    parents: Parents
    fitness: Fitness
    space: SearchSpace
    objectives: tuple[ObjectiveSpec, ...]
    warnings: tuple[str, ...]
    dtype: str
    donor: str

    def searcher(self, trials: int) -> Searcher:
        """Return a fresh searcher, as it was before the first trial."""
        return build_searcher(
            self.experiment.searcher, self.space.genes, self.objectives, trials, self.space.starting_points()
        )

    @property
    def reference_recipes(self) -> dict[str, tuple[str, Recipe]]:
        """Name to (kind, recipe) of the models that the search is compared with: base, parents, uniform merge."""
        experiment = self.experiment
        models = {
            name: ("base" if name == "base" else "parent", self._alone(reference))
            for name, reference in experiment.references.items()
        }
        return {**models, "uniform": ("uniform", self._uniform())}

    def _alone(self, reference: str) -> Recipe:
        """Return the recipe of one model: as it is, or with the vocabulary that all models share in this run."""
        if not changes_vocabulary(self.experiment):
            return alone(reference, self.dtype)
        return together(self.experiment, self.dtype, {reference: 1.0})

    def _uniform(self) -> Recipe:
        references = list(self.experiment.parents.values())
        if changes_vocabulary(self.experiment):
            return together(self.experiment, self.dtype, dict.fromkeys(references, 1 / len(references)))
        return uniform(references, self.dtype, {"align": self.experiment.merge.fields.get("align")})


def alone(reference: str, dtype: str | None) -> Recipe:
    """Return the recipe of a parent as it is."""
    return Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": reference}], "dtype": dtype})


def together(experiment: ExperimentConfig, dtype: str | None, weights: Mapping[str, float]) -> Recipe:
    """Return a linear recipe of all models of the experiment, with its vocabulary; those without a weight get 0."""
    fields = {
        "merge_method": "linear",
        "base_model": experiment.base,
        "models": [
            {"model": reference, "parameters": {"weight": weights.get(reference, 0.0)}}
            for reference in experiment.references.values()
        ],
        "dtype": dtype,
        **experiment.merge.vocabulary,
    }
    return Recipe.model_validate(fields)


def changes_vocabulary(experiment: ExperimentConfig) -> bool:
    """Whether the models of the run get a vocabulary that may not be their own."""
    return bool(experiment.merge.vocabulary)


def uniform(references: list[str], dtype: str | None, further: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Return the recipe of the plain average of the parents; ``further`` are fields of the recipe."""
    models = tuple(ModelInput(model=r, parameters={"weight": 1.0 / len(references)}) for r in references)
    return Recipe.model_validate({"merge_method": "linear", "models": models, "dtype": dtype, **further})


def prepare(experiment: ExperimentConfig, *, out: Path | None = None) -> Prepared:
    """Check the experiment and build its parts.

    Args:
        out: the run folder to be, whose disk must have room.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[Problem] = []
    parents = _attempt(problems, lambda: _open(experiment))
    fitness = _attempt(problems, lambda: Fitness(experiment.fitness, locate=experiment.where))
    objectives = tuple(ObjectiveSpec(o.name, o.direction, o.weight) for o in fitness.objectives) if fitness else ()
    if fitness:
        _attempt(problems, lambda: _check_pick(experiment, objectives))
    space = None
    dtype = donor = ""
    if parents and not (problems_of_parents := _seen(experiment, parents).problems()):
        dtype = experiment.dtype or common_dtype(parents)
        info = _info(experiment, parents, dtype)
        space = _attempt(problems, lambda: build_search_space(experiment.search_space, info))
        problems += not_finite(parents)
    elif parents:
        problems += problems_of_parents
    if space and parents:
        genome = {gene.name: gene.initial for gene in space.genes}
        recipe = space.express(genome)
        problems += check_recipe(recipe, parents)
        donor = recipe.base_model or recipe.parents()[0]
        if fitness:
            problems += _tokenizer_problems(fitness, parents, donor)
    if space and objectives:
        _attempt(
            problems,
            lambda: build_searcher(experiment.searcher, space.genes, objectives, experiment.budget.trials, []),
        )
    if fitness and out:
        problems += _disk(out, fitness, experiment.budget.trials)
    if problems or parents is None or fitness is None or space is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    warnings = tuple(str(problem) for problem in fitness.warnings)
    return Prepared(experiment, parents, fitness, space, objectives, warnings, dtype, donor)


def _seen(experiment: ExperimentConfig, parents: Parents) -> Parents:
    """Return the parents with the vocabulary that the run gives them."""
    return parents.viewed(together(experiment, None, {})) if changes_vocabulary(experiment) else parents


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
            key = ("base",) if name == "base" else ("parents", name)
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


def _tokenizer_problems(fitness: Fitness, parents: Parents, donor: str) -> list[Problem]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(parents[donor].folder, local_files_only=True)
    except (OSError, ValueError) as error:
        return [Problem(f"its tokenizer cannot be loaded: {error}", donor)]
    return fitness.problems(tokenizer)


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
        fronts.pick(experiment.pick, {0: {o.name: 0.0 for o in objectives}}, objectives)


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
