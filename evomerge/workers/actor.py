"""One worker: a resident model, the parents beside it, the tasks built once, and a method that evaluates a recipe."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from queue import LifoQueue
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from evomerge.redaction import redact
from evomerge.workers.shared_paths import check_paths
from evomerge.workers.versions import versions

if TYPE_CHECKING:
    from evomerge.checkpoints import Checkpoint
    from evomerge.merging.members import Members
    from evomerge.recipes import Recipe

Items = Mapping[str, Sequence[str]]
BATCH = 64  # plain models that a worker evaluates at once, where their fitness takes several …
BATCH_BYTES = 1 << 28  # … and they take no more than this
SPARE = 1.5  # a second resident model is kept if so many times its bytes are free


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
        devices: GPUs of the worker: a part of one, one, or several that share the model's layers.
        overlap: merge the next recipe into a second model while one is evaluated, where memory allows.
        batch: recipes to evaluate at once, where the fitness takes several plain models; None goes by their size.
        members_bytes: of the files in which its machine keeps trials that are sources of others.
    """

    references: Mapping[str, str]
    fitness: Mapping[str, Any]
    dtype: str
    donor: str
    device: Literal["cpu", "cuda"]
    threads: int
    like: str | None = None
    devices: float = 1.0
    overlap: bool = False
    batch: int | None = None
    members_bytes: int = 0


@dataclass(frozen=True)
class Ready:
    """A worker that is built.

    ``models`` is how many it keeps: as many questions may be under way at once, of ``batch`` recipes each. ``versions``
    are those of its libraries.
    """

    name: str
    node: str
    node_id: str
    device: str
    models: int
    versions: Mapping[str, str]
    batch: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one evaluation. ``responses`` (JSON) is None when it failed; ``error`` then holds the traceback.

    ``worker_lost`` tells a failure of the worker's process from one of the recipe, ``worker_broken`` that the process
    lives but must be replaced. Times are in seconds, ``queue_seconds`` between question and answer besides those at
    work; ``batch_size`` is the smallest that a task was run with. ``missing`` are the hashes of trials whose recipes
    the worker must be sent, with those of all that they are made of, before it can begin.
    """

    responses: str | None
    error: str | None = None
    worker_lost: bool = False
    worker_broken: bool = False
    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    queue_seconds: float = 0.0
    worker: str = ""
    device: str = ""
    batch_size: int = 0
    missing: Sequence[str] = ()


class Worker:
    """Merges recipes into one resident model and evaluates them; runs inside a Ray actor, or in this process.

    With ``overlap`` it keeps two models where memory allows, and `evaluate` may be called from two threads: while one
    model is evaluated, the next recipe is merged into the other.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from evomerge.fitness import Fitness, FitnessConfig
        from evomerge.merging import Parents

        check_paths(spec.references, spec.fitness)
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.fitness = Fitness(FitnessConfig.model_validate(spec.fitness))
        self._parents = Parents.open(list(dict.fromkeys(spec.references.values())))
        self._free: LifoQueue[Any] = LifoQueue()  # the last used first: it may hold the next recipe already
        self._merging, self._evaluating = Lock(), Lock()
        self._members: Members | None = None
        self.merger = self._built()
        self._free.put(self.merger)
        self._models = 1
        if spec.overlap and self._has_room():
            self._free.put(self._built())
            self._models = 2
        self.name = f"{os.uname().nodename}:{os.getpid()}"

    def ready(self) -> Ready:
        """Return who the worker is, once it is built."""
        node, batch = os.uname().nodename, self._batch
        return Ready(self.name, node, _node_id(), self._device, self._models, versions(), batch)

    def batch_sizes(self, items: Items) -> dict[str, int]:
        """Return the batch size of each task, by trying, or from an earlier run of such a model on such a device."""
        from evomerge.checkpoints import cache_folder
        from evomerge.fitness.batch_sizes import Remembered

        remembered = Remembered(cache_folder() / "batch-sizes")
        with self._model() as merger, self._evaluating:
            return self.fitness.batch_sizes(merger.model, merger.tokenizer, items, remembered)

    def evaluate(
        self,
        recipe_yaml: str,
        items: Items,
        gold: Items,
        batch_sizes: Mapping[str, int],
        lineage: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """Merge the recipe into a resident model and run it; never raises for the recipe's own faults.

        Args:
            recipe_yaml: what to merge; as YAML, or as ``pack_recipe`` writes it.
            items: by task, to respond to.
            gold: by task, to give the probability of the right answer for.
            batch_sizes: by task, where the config leaves them to be found.
            lineage: hash → packed recipe of trials that the recipe is made of, as far as the worker may need them.
        """
        from evomerge.recipes import unpack_recipe

        if isinstance(self.merger.model, Mapping):
            return self.evaluate_batch([(recipe_yaml, lineage)], items, gold)[0]
        self.fitness.use_batch_sizes(batch_sizes)
        began = time.perf_counter()
        waited = 0.0
        try:
            with self._model() as merger:
                with self._merging:
                    began = time.perf_counter()
                    recipe = unpack_recipe(recipe_yaml)
                    merger.merge(recipe, self._members_of(recipe, lineage))
                    merged = time.perf_counter()
                with self._evaluating:
                    waited = time.perf_counter() - merged
                    responses = self.fitness.evaluate(merger.model, merger.tokenizer, items, gold)
        except Exception as error:
            return self._failed(error, time.perf_counter() - began - waited)
        return Outcome(
            responses.to_json(),
            seconds=time.perf_counter() - began - waited,
            merge_seconds=merged - began,
            forward_seconds=responses.forward_seconds,
            worker=self.name,
            device=self._device,
            batch_size=self.fitness.smallest_batch,
        )

    def evaluate_batch(
        self, recipes: Sequence[tuple[str, Mapping[str, str]]], items: Items, gold: Items
    ) -> list[Outcome]:
        """Merge recipes of plain tensors and evaluate them together; a fault of one is its own outcome's alone.

        Args:
            recipes: what to merge, and its lineage, as `evaluate` takes each.
            items: by task, to respond to.
            gold: by task; must be empty, as functions name no right answers.
        """
        stacked, merged, outcomes = self._merge_batch(recipes)
        began = time.perf_counter()
        try:
            with self._evaluating:
                began = time.perf_counter()
                found = self.fitness.evaluate_plain(stacked, items, gold) if merged else []
        except Exception as error:
            seconds = (time.perf_counter() - began) / len(merged)
            return [outcomes.get(n) or self._failed(error, merged[n] + seconds) for n in range(len(recipes))]
        for (number, seconds), answer in zip(merged.items(), found, strict=True):
            if isinstance(answer, Exception):
                outcomes[number] = self._failed(answer, seconds)
                continue
            outcomes[number] = Outcome(
                answer.to_json(),
                seconds=seconds + answer.seconds,
                merge_seconds=seconds,
                forward_seconds=answer.forward_seconds,
                worker=self.name,
                device=self._device,
            )
        return [outcomes[number] for number in range(len(recipes))]

    def _merge_batch(
        self, recipes: Sequence[tuple[str, Mapping[str, str]]]
    ) -> tuple[dict[str, Any], dict[int, float], dict[int, Outcome]]:
        """Return the merged tensors, one model after the other; number → seconds of those merged, outcome of others."""
        from evomerge.recipes import unpack_recipe

        merged: dict[int, float] = {}
        outcomes: dict[int, Outcome] = {}
        with self._model() as merger, self._merging:
            stacked = {name: each.new_empty((len(recipes), *each.shape)) for name, each in merger.model.items()}
            for number, (text, lineage) in enumerate(recipes):
                began = time.perf_counter()
                try:
                    recipe = unpack_recipe(text)
                    merger.merge(recipe, self._members_of(recipe, lineage))
                except Exception as error:
                    outcomes[number] = self._failed(error, time.perf_counter() - began)
                    continue
                for name, each in merger.model.items():
                    stacked[name][len(merged)].copy_(each)
                merged[number] = time.perf_counter() - began
        return {name: each[: len(merged)] for name, each in stacked.items()}, merged, outcomes

    def _failed(self, error: Exception, seconds: float) -> Outcome:
        from evomerge.merging.members import MissingRecipesError

        if isinstance(error, MissingRecipesError):
            return Outcome(None, str(error), worker=self.name, missing=error.trials)
        text = redact("".join(traceback.format_exception(error)))
        return Outcome(None, text, worker_broken=_is_broken(error), seconds=seconds, worker=self.name)

    def _members_of(self, recipe: Recipe, lineage: Mapping[str, str]) -> Mapping[str, Checkpoint]:
        """Return the models of the trials that the recipe names as sources."""
        from evomerge.merging.members import Members
        from evomerge.recipes import sources_of

        if not sources_of(recipe):
            return {}
        if self._members is None:
            self._members = Members(self._parents, self.spec.donor, self.spec.members_bytes)
        self._members.learn(lineage)
        return self._members.of(recipe)

    @contextmanager
    def _model(self) -> Iterator[Any]:
        merger = self._free.get()
        try:
            yield merger
        finally:
            self._free.put(merger)

    def _built(self) -> Any:
        from evomerge.merging import InPlaceMerger
        from evomerge.recipes import parse_recipe

        like = None if self.spec.like is None else parse_recipe(self.spec.like)
        return InPlaceMerger(
            self._parents,
            base=self.spec.donor,
            dtype=self.spec.dtype,
            device=self.spec.device,
            like=like,
            spread=self.spec.devices > 1,
        )

    def _has_room(self) -> bool:
        import psutil
        import torch

        needed = SPARE * _bytes_of(self.merger.model)
        if self.spec.device == "cuda":
            return needed < min(torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count()))
        return needed < psutil.virtual_memory().available

    @property
    def _batch(self) -> int:
        """How many recipes to evaluate at once."""
        if not (isinstance(self.merger.model, Mapping) and self.fitness.takes_batches):
            return 1
        return self.spec.batch or max(1, min(BATCH, BATCH_BYTES // max(1, _bytes_of(self.merger.model))))

    @cached_property
    def _device(self) -> str:
        import torch

        if self.spec.device == "cuda":
            name = str(torch.cuda.get_device_name())
            return name if self.spec.devices <= 1 else f"{self.spec.devices:g} x {name}"
        return f"cpu ({self.spec.threads} threads)"


def _bytes_of(model: Any) -> int:
    if isinstance(model, Mapping):
        return sum(tensor.nbytes for tensor in model.values())
    return int(model.get_memory_footprint())


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _is_broken(error: BaseException | None) -> bool:
    """Whether an error leaves the process's GPU unusable: any that CUDA reports but a lack of memory."""
    import torch

    while error is not None:
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and "CUDA error" in str(error) and "out of memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
