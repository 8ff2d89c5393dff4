"""The kinship of an experiment's or a run's parents, or of any models with a common base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, Problem
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.kinship import Products
from evomerge.merging import Parents
from evomerge.merging.task_vector_products import kinship_recipe, task_vector_products, total
from evomerge.search_spaces.groups import NAMED_GROUPS, OTHER, group_of

FIELDS = ("tokenizer_source", "tokenizer", "align", "statistics")  # of a recipe: how it sees its models


@dataclass(frozen=True)
class Compared:
    """Models to compare: ``models`` by the name that they are shown under, their base, and how merges see them."""

    models: Mapping[str, str]
    base: str
    fields: Mapping[str, Any]


def models_compared(references: Sequence[str], base: str) -> Compared:
    """Return models to compare, each called by the last part of its reference if no other is called so.

    Raises:
        ConfigError: a model is named twice.
    """
    if repeated := sorted({reference for reference in references if references.count(reference) > 1}):
        raise ConfigError([Problem(f"{reference!r} is named twice") for reference in repeated])
    short = [reference.rstrip("/").rpartition("/")[2] for reference in references]
    names = short if len(set(short)) == len(short) else references
    return Compared(dict(zip(names, references, strict=True)), base, {})


def parents_compared(name: str, base: str | None = None) -> Compared:
    """Return the parents of an experiment (a file or a shipped name) or a run (its folder), to compare.

    Args:
        base: instead of the experiment's.

    Raises:
        ConfigError: the experiment cannot be read, or no base is known.
        UnknownNameError: there is no such experiment or run.
    """
    folder = RunFolder(Path(name))
    experiment = folder.read_written() if folder.experiment.is_file() else read_experiment(name)
    return compared(experiment, base)


def compared(experiment: ExperimentConfig, base: str | None = None) -> Compared:
    """Return an experiment's parents to compare.

    Raises:
        ConfigError: no base is known.
    """
    chosen = base or experiment.base
    if chosen is None:
        what = "task vectors are differences from a base model, and the experiment names none"
        raise ConfigError(Problem(what, experiment.where(("base",)), "name it there, or with --base"))
    fields = {name: value for name, value in experiment.merge.fields.items() if name in FIELDS}
    return Compared(experiment.parents, chosen, fields)


def products_of(
    compared: Compared,
    parents: Parents | None = None,
    *,
    by_group: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Products]:
    """Return the products of the models' task vectors, in the order of ``compared.models``, under the empty text.

    Args:
        compared: the models.
        parents: where they are open already.
        by_group: also those of each group of tensors (attention, mlp, norm, embedding, other), under its name.
        report: told the tensors done and the tensors in all.

    Raises:
        CheckpointError: a model cannot be found or read, or holds NaN or Inf.
        ConfigError: the models do not fit together; lists every reason.
    """
    references = list(compared.models.values())
    parents = parents or Parents.open([compared.base, *references])
    recipe = kinship_recipe(references, compared.base, parents, compared.fields)

    groups = task_vector_products(
        references, recipe, parents, part_of=lambda tensor: group_of(tensor) or OTHER, report=report
    )
    whole = {"": total(groups)}
    return whole | {group: groups[group] for group in (*NAMED_GROUPS, OTHER) if group in groups} if by_group else whole
