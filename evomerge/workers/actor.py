"""One worker: a resident model, the parents beside it, the tasks built once, and a method that evaluates a recipe."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Items = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to build itself; small and made of plain data, since it travels to other machines.

    Args:
        references: nickname to reference of the parents (and of the base, under ``base``).
        fitness: a ``FitnessConfig`` as JSON data.
        dtype: the resident model's dtype.
        donor: reference of the model that gives configuration and tokenizer.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for torch.
        like: a recipe (YAML) that names the models and the vocabulary of those to come.
    """

    references: Mapping[str, str]
    fitness: Mapping[str, Any]
    dtype: str
    donor: str
    device: Literal["cpu", "cuda"]
    threads: int
    like: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one evaluation. ``responses`` (JSON) is None when it failed; ``error`` then holds the traceback.

    ``worker_lost`` tells a failure of the worker's process from one of the recipe. Times are in seconds.
    """

    responses: str | None
    error: str | None = None
    worker_lost: bool = False
    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    worker: str = ""
    device: str = ""
    batch_size: int = 0


class Worker:
    """Merges recipes into one resident model and evaluates them; runs inside a Ray actor, or in this process."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from evomerge.fitness import Fitness, FitnessConfig
        from evomerge.merging import InPlaceMerger, Parents
        from evomerge.recipes import parse_recipe

        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.fitness = Fitness(FitnessConfig.model_validate(spec.fitness))
        parents = Parents.open(list(dict.fromkeys(spec.references.values())))
        like = None if spec.like is None else parse_recipe(spec.like)
        self.merger: Any = InPlaceMerger(parents, base=spec.donor, dtype=spec.dtype, device=spec.device, like=like)
        self.name = f"{os.uname().nodename}:{os.getpid()}"

    def ready(self) -> str:
        """Return the worker's name once it is built."""
        return self.name

    def evaluate(self, recipe_yaml: str, items: Items, gold: Items) -> Outcome:
        """Merge the recipe into the resident model and run it; never raises for the recipe's own faults.

        Args:
            recipe_yaml: what to merge.
            items: by task, to respond to.
            gold: by task, to give the probability of the right answer for.
        """
        from evomerge.recipes import parse_recipe

        started = time.perf_counter()
        try:
            self.merger.merge(parse_recipe(recipe_yaml))
            merged = time.perf_counter()
            responses = self.fitness.evaluate(self.merger.model, self.merger.tokenizer, items, gold)
        except Exception:
            return Outcome(None, traceback.format_exc(), seconds=time.perf_counter() - started, worker=self.name)
        return Outcome(
            responses.to_json(),
            seconds=time.perf_counter() - started,
            merge_seconds=merged - started,
            forward_seconds=responses.forward_seconds,
            worker=self.name,
            device=self._device,
            batch_size=self.fitness.config.batch_size,
        )

    @property
    def _device(self) -> str:
        import torch

        if self.spec.device == "cuda":
            return str(torch.cuda.get_device_name())
        return f"cpu ({self.spec.threads} threads)"
