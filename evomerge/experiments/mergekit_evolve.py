"""mergekit-evolve files (``genome:`` / ``tasks:``) as experiments: the way over for that tool's users.

What differs, and why: weights have bounds here (theirs went through ``abs()``, which makes two genomes of one merge); a
negative task weight, their way to say "lower is better", becomes ``direction: minimize``; ``layer_granularity`` need
not divide the number of layers; items are split into search and confirmation items.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

from pydantic import Field, model_validator

from evomerge.experiments.schema import Strict
from evomerge.recipes import yaml
from evomerge.search_spaces.groups import NAMED_GROUPS

SUPPORTED = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "dare_linear")
DEFAULT_TRIALS = 100  # their --max-fevals
SMOOTH_POINTS = 4


class _Genome(Strict):
    models: list[str] = Field(min_length=1)
    merge_method: str
    base_model: str | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @model_validator(mode="after")
    def _supported(self) -> _Genome:
        if self.merge_method not in SUPPORTED:
            raise ValueError(f"merge_method {self.merge_method!r} is none of {', '.join(SUPPORTED)}")
        return self


class _Task(Strict):
    name: str
    weight: float = 1.0
    metric: str = "acc,none"


class _File(Strict):
    genome: _Genome
    tasks: list[str | _Task] = Field(min_length=1)
    limit: int | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


def convert(document: yaml.Document) -> yaml.Document:
    """Return the experiment that a mergekit-evolve file describes.

    Raises:
        ConfigError: the file is not a valid mergekit-evolve file; lists every problem with its line.
    """
    file = yaml.validate(_File, document)
    genome = file.genome
    data: dict[str, Any] = {
        "name": "mergekit-evolve",
        "parents": _nicknames(genome.models),
        "search_space": _search_space(genome),
        "fitness": {"objectives": [_objective(task, file) for task in file.tasks]},
        "searcher": {"kind": "cma-es"},
        "budget": {"trials": DEFAULT_TRIALS},
    }
    if genome.base_model is not None:
        data["base"] = genome.base_model
    return replace(document, data=data, lines={})


def _nicknames(models: list[str]) -> dict[str, str]:
    """Name each model after the last part of its reference; a number tells equal names apart."""
    parents: dict[str, str] = {}
    for model in models:
        last = model.split("@")[0].rstrip("/").split("/")[-1]
        name = re.sub(r"[^A-Za-z0-9-]+", "-", last).strip("-") or "parent"
        name = f"{name}-parent" if name in ("base", "uniform") else name
        candidates = (f"{name}-{n}" for n in itertools.count(2))
        unique = name if name not in parents else next(c for c in candidates if c not in parents)
        parents[unique] = model
    return parents


def _search_space(genome: _Genome) -> dict[str, Any]:
    space: dict[str, Any] = {"kind": "parameter", "method": genome.merge_method}
    space["granularity"] = {"block": genome.layer_granularity} if genome.layer_granularity > 0 else "global"
    if genome.filters:
        space["groups"] = [{_group_name(text): re.escape(text)} for text in genome.filters]
    if genome.smooth:
        space |= {"granularity": "layer", "smooth": SMOOTH_POINTS}
    if genome.merge_method != "slerp":
        low = -1.0 if genome.allow_negative_weights else 0.0
        space["bounds"] = {"weight": [low, 1.5]}
        space["fixed"] = {"normalize": _normalize(genome)}
    return space


def _group_name(text: str) -> str:
    """Return a name for the tensors that a filter selects, other than the names of our own groups."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
    return f"{name}_tensors" if name in (*NAMED_GROUPS, "other", "outside") else name


def _normalize(genome: _Genome) -> bool:
    if genome.normalize is not None:
        return genome.normalize
    return genome.merge_method in ("ties", "dare_ties", "linear")


def _objective(task: str | _Task, file: _File) -> dict[str, Any]:
    task = _Task(name=task) if isinstance(task, str) else task
    objective: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        "weight": abs(task.weight),
        "apply_chat_template": file.apply_chat_template,
    }
    if task.weight < 0:
        objective["direction"] = "minimize"
    if file.num_fewshot is not None:
        objective["num_fewshot"] = file.num_fewshot
    if file.limit is not None:
        objective["items"] = file.limit
    return objective
