"""Fitness: everything that turns a live model into responses and objectives, built once a process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evomerge.errors import ConfigError, EvomergeError, FitnessError, Problem
from evomerge.fitness.batch_sizes import MOST, Remembered, free_memory, is_out_of_memory
from evomerge.fitness.functions import FunctionTask, Tensors
from evomerge.fitness.isolation import isolated, quiet
from evomerge.fitness.items import Item, Pools, choose
from evomerge.fitness.language_model import ForwardClock, Resident
from evomerge.fitness.lengths import Lengths, lengths_of
from evomerge.fitness.metrics import Metric, resolve_metric
from evomerge.fitness.objectives import FitnessConfig, Objective, ObjectiveConfig, Split, TaskSettings
from evomerge.fitness.probing import probe
from evomerge.fitness.responses import Responses, TaskResponses
from evomerge.fitness.sources import load_task
from evomerge.fitness.tasks import LmEvalTask
from evomerge.library import SUFFIXES
from evomerge.recipes.yaml import Key, dotted

MODELS = 2  # of which a fitness keeps what it knows: one may be merged into while the other is evaluated


class EvaluationTask(Protocol):
    """What a task is to the fitness: items by split, metrics by key, and responses on demand."""

    key: str
    metrics: dict[str, Metric]
    pools: Pools

    def respond(self, resident: Resident, items: Sequence[str], used_filters: frozenset[str]) -> TaskResponses:
        """Run items on the resident model."""

    def gold(self, resident: Resident, items: Sequence[str]) -> dict[str, float]:
        """Return the probability that the resident model gives to each item's right answer."""

    def lm_eval_ids(self) -> Mapping[str, str | None]:
        """Return what lm-eval's sample files call the items: that name → id, None for those in no pool."""

    def gold_problems(self) -> list[Problem]:
        """Return why `gold` would fail whatever the model."""

    def plain_problems(self) -> list[Problem]:
        """Return why the task cannot be run on plain tensors."""

    def prompt(self, tokenizer: Any = None) -> str:
        """Return the first search item's prompt."""

    def problems(self, tokenizer: Any) -> list[Problem]:
        """Return why the task cannot be run with a tokenizer."""

    def warnings(self) -> list[Problem]:
        """Return what is allowed but likely to mislead."""


class Fitness:
    """The tasks of a `fitness:` section, ready to evaluate one model after another.

    No model is needed to build it, so a preflight and a driver can use it for everything but `evaluate`.

    Args:
        config: the section.
        base_folder: the experiment file's folder, from which relative paths start.
        locate: from a key path such as ``("fitness", "objectives", 0, "task")`` to words for messages; give
            ``document.where`` to have file and line.

    Attributes:
        objectives: in the order of the file.
        warnings: what is allowed but likely to mislead.
        smallest_batch: the smallest batch size that a task of the last evaluation was run with; 0 before.

    Raises:
        ConfigError: every problem of every objective.
    """

    def __init__(
        self,
        config: FitnessConfig,
        *,
        base_folder: Path | None = None,
        locate: Callable[[Key], str] = dotted,
    ) -> None:
        self.config = config
        self._base_folder = base_folder
        self._tasks: dict[str, EvaluationTask] = {}
        self._sources: dict[str, str] = {}
        self._caps: dict[str, int | None] = {}
        self._residents: list[Resident] = []
        self._batch_sizes: dict[str, int] = {}
        self.smallest_batch = 0
        problems: list[Problem] = []
        resolved: list[Objective] = []
        with isolated(config.seed):
            for index, objective in enumerate(config.objectives):
                key: Key = ("fitness", "objectives", index)
                try:
                    resolved.append(self._resolve(objective))
                except ConfigError as error:
                    problems += [Problem(p.what, locate(key), p.suggestion) for p in error.problems]
                except EvomergeError as error:
                    field = "task" if objective.task else "function"
                    problems.append(Problem(str(error), locate((*key, field))))
        problems += self._duplicates(resolved, locate) if not problems else []
        if problems:
            raise ConfigError(problems)
        self.objectives = tuple(self._named(objective, resolved) for objective in resolved)
        self.warnings = tuple(problem for task in self._tasks.values() for problem in task.warnings())

    def _resolve(self, config: ObjectiveConfig) -> Objective:
        task = self._task(config)
        if isinstance(task, FunctionTask):
            metric: Metric | Problem = task.metric(config.metric)
        else:
            metric = resolve_metric(task.key, task.metrics, config.metric, config.filter)
        if isinstance(metric, Problem):
            raise ConfigError(metric)
        direction = config.direction or metric.direction
        if direction is None:
            raise ConfigError(
                Problem(
                    f"task {task.key!r} does not say which way of {metric.name!r} is better",
                    "",
                    "set `direction`",
                )
            )
        if self._caps.setdefault(task.key, config.items) != config.items:
            raise ConfigError(
                Problem(
                    f"objectives of task {task.key!r} differ in `items`",
                    "",
                    "they share the items: set one number",
                )
            )
        return Objective(config.name or "", direction, config.weight, task.key, metric.key, metric.aggregation)

    def _task(self, config: ObjectiveConfig) -> EvaluationTask:
        share = self.config.confirmation_share
        if config.function is not None:
            key = config.function
            if key not in self._tasks:
                function = FunctionTask(key, base_folder=self._base_folder, confirmation_share=share)
                self._tasks[key] = function
            return self._tasks[key]
        name = str(config.task)
        stem = Path(name).stem if name.endswith(SUFFIXES) else name
        settings = TaskSettings.of(config)
        # Two files may share a stem: the second is then called by its path.
        key = settings.key(stem if self._sources.setdefault(stem, name) == name else name)
        if key not in self._tasks:
            source = load_task(name, self._base_folder)
            self._tasks[key] = LmEvalTask(key, source, settings, confirmation_share=share, seed=self.config.seed)
        return self._tasks[key]

    @staticmethod
    def _named(objective: Objective, all_objectives: Sequence[Objective]) -> Objective:
        """Return the objective with its name: the task's, and its metric too when they share the task."""
        if objective.name:
            return objective
        alone = Counter(other.task for other in all_objectives)[objective.task] == 1
        name = objective.task if alone else f"{objective.task}/{objective.metric.removesuffix(',none')}"
        return replace(objective, name=name)

    def _duplicates(self, objectives: Sequence[Objective], locate: Callable[[Key], str]) -> list[Problem]:
        names = [self._named(objective, objectives).name for objective in objectives]
        return [
            Problem(f"two objectives are called {name!r}", locate(("fitness", "objectives", index)), "set `name`")
            for index, name in enumerate(names)
            if name in names[:index]
        ]

    def items(self, split: Split) -> dict[str, tuple[str, ...]]:
        """Return the item ids of each task, capped as the config says.

        The order is random but fixed by content and seed: any first n of them are a uniform random subset.
        """
        chosen = {}
        for key, task in self._tasks.items():
            cap = self.config.confirmation_items
            if split == "search":
                cap = self._caps[key] or self.config.search_items
            chosen[key] = choose(task.pools[split], cap, self.config.seed)
        return chosen

    def chosen(self, split: Split) -> dict[str, tuple[Item, ...]]:
        """Return the items whose ids `items` returns."""
        known = {task: {item.id: item for item in self._tasks[task].pools[split]} for task in self._tasks}
        return {task: tuple(known[task][name] for name in names) for task, names in self.items(split).items()}

    def known_items(self, task: str, split: Split | None = None) -> frozenset[str]:
        """Return the ids of all items of a task, by its key, whatever the caps; of both splits if none is named."""
        pools = self._tasks[task].pools
        return frozenset(item.id for name, pool in pools.items() if split in (None, name) for item in pool)

    def lm_eval_ids(self, task: str) -> Mapping[str, str | None]:
        """Return what banks made from lm-eval's sample files call a task's items: that name → id.

        None stands for an item that is in no split, as its like is in the confirmation.
        """
        return self._tasks[task].lm_eval_ids()

    def prompts(self, tokenizer: Any = None) -> dict[str, str]:
        """Return the first rendered prompt of each task; chat templates need a tokenizer to be applied."""
        with isolated(self.config.seed):
            return {key: task.prompt(tokenizer) for key, task in self._tasks.items()}

    def lengths(self, tokenizer: Any, max_length: int, sample: int = 32) -> dict[str, Lengths]:
        """Return how long inputs are, by task, from some of its search items; of functions that is not known.

        Args:
            tokenizer: of the model.
            max_length: the model's own limit, where the config sets none.
            sample: items of each task.
        """
        limit, found = self.config.max_length or max_length, {}
        with isolated(self.config.seed):
            for key, items in self.chosen("search").items():
                task = self._tasks[key]
                if isinstance(task, LmEvalTask):
                    found[key] = lengths_of(task.requests(items[:sample], tokenizer), tokenizer, limit)
        return found

    def problems(self, tokenizer: Any) -> list[Problem]:
        """Return why some task cannot be run with this tokenizer."""
        return [problem for task in self._tasks.values() for problem in task.problems(tokenizer)]

    def plain_problems(self) -> list[Problem]:
        """Return why some task cannot be run on plain tensors."""
        return [problem for task in self._tasks.values() for problem in task.plain_problems()]

    @property
    def takes_batches(self) -> bool:
        """Whether every task takes several plain models in one call."""
        return all(isinstance(task, FunctionTask) and task.form == "batch" for task in self._tasks.values())

    def gold_problems(self, tasks: Iterable[str]) -> list[Problem]:
        """Return why some of these tasks, by key, have no probabilities of right answers for `evaluate`.

        A few items of each are looked at; no model is needed.

        Raises:
            FitnessError: unknown tasks.
        """
        keys = list(tasks)
        self._check_known(keys)
        with isolated(self.config.seed):
            return [problem for key in keys for problem in self._tasks[key].gold_problems()]

    def evaluate(
        self,
        model: PreTrainedModel | Tensors,
        tokenizer: PreTrainedTokenizerBase | None,
        items: Mapping[str, Sequence[str]],
        gold: Mapping[str, Sequence[str]] | None = None,
    ) -> Responses:
        """Run items on a live model.

        The same weights and items give the same responses, bit for bit, whatever was evaluated before and in
        whichever order the items are named. No global random state is changed. ``items`` and ``gold`` do not
        change each other's numbers either: they are run apart, in batches of their own.

        Args:
            model: the resident model, or name → plain tensor; its weights may have changed since the last call.
            tokenizer: its tokenizer; None of plain tensors.
            items: ids by task key.
            gold: ids by task key, of the items whose right answer's probability is asked for: other items than
                ``items``, or the same, of the same tasks or others.

        Raises:
            FitnessError: unknown tasks or items, an error inside the model or a function, NaN in the model's
                scores, or gold of a task that has none (see `gold_problems`).
        """
        gold = gold or {}
        if isinstance(model, Mapping):
            (found,) = self.evaluate_plain({name: tensor[None] for name, tensor in model.items()}, items, gold)
            if isinstance(found, FitnessError):
                raise found
            return found
        assert tokenizer is not None, "a language model has one"
        self._check_known([*items, *gold])
        resident = self._keep(model, tokenizer)
        start = time.perf_counter()
        self.smallest_batch = 0
        with isolated(self.config.seed), ForwardClock(model) as clock:
            tasks = {
                key: self._respond(resident, key, items.get(key, ()), gold.get(key, ()))
                for key in self._tasks
                if items.get(key) or gold.get(key)
            }
        return Responses(tasks, clock.seconds, time.perf_counter() - start)

    def evaluate_plain(
        self,
        stacked: Tensors,
        items: Mapping[str, Sequence[str]],
        gold: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Responses | FitnessError]:
        """Run items on several plain models; each answers as it would alone, bit for bit.

        Args:
            stacked: name → tensor of shape (models, …).
            items: ids by task key.
            gold: must be empty: functions name no right answers.

        Returns:
            For each model its responses, or why it has none. Times are shares of what all took.

        Raises:
            FitnessError: unknown tasks or items, gold, or a task that takes no plain tensors.
        """
        gold = gold or {}
        self._check_known([*items, *gold])
        asked = {key: task for key, task in self._tasks.items() if items.get(key) or gold.get(key)}
        problems = [problem for task in asked.values() for problem in task.plain_problems()]
        if problems := [*problems, *(problem for key in gold for problem in self._tasks[key].gold_problems())]:
            raise FitnessError(problems[0].what)
        count = len(next(iter(stacked.values())))
        start = time.perf_counter()
        self.smallest_batch = 0
        found: list[dict[str, TaskResponses]] = [{} for _ in range(count)]
        errors: dict[int, FitnessError] = {}
        with quiet():
            for key, task in asked.items():
                assert isinstance(task, FunctionTask), "others have problems with plain tensors"
                for number, answer in enumerate(task.respond_plain(stacked, items[key], self.config.seed)):
                    if isinstance(answer, FitnessError):
                        errors.setdefault(number, _told_of(answer, key))
                    else:
                        found[number][key] = answer
        seconds = (time.perf_counter() - start) / count
        return [errors.get(n) or Responses(tasks, seconds, seconds) for n, tasks in enumerate(found)]

    def _check_known(self, keys: Iterable[str]) -> None:
        unknown = sorted(set(keys) - set(self._tasks))
        if unknown:
            raise FitnessError(f"no task {unknown[0]!r} in this fitness; its tasks: {', '.join(self._tasks)}")

    def _keep(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Resident:
        """Return the resident model's record, the one from an evaluation before when it is the same model."""
        for known in self._residents:
            if known.model is model and known.tokenizer is tokenizer:
                return known
        default = self.config.batch_size
        made = Resident(model, tokenizer, MOST if default == "auto" else default, self.config.max_length)
        self._residents = [*self._residents[1 - MODELS :], made]
        return made

    def batch_sizes(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Mapping[str, Sequence[str]],
        remembered: Remembered | None = None,
    ) -> dict[str, int]:
        """Return how many sequences a forward pass of each task takes, found by trying the longest of the items.

        Empty where the config gives a number. Tasks that run no batches (Python functions) are left out.

        Args:
            model: of the size and dtype of those to come, on their device.
            tokenizer: its tokenizer.
            items: ids by task key.
            remembered: sizes found before.

        Raises:
            FitnessError: unknown tasks or items, or an error inside the model.
        """
        if self.config.batch_size != "auto":
            return {}
        self._check_known(items)
        resident = self._keep(model, tokenizer)
        respond = {
            key: partial(self._tasks[key].respond, resident, items[key], frozenset())
            for key in items
            if not isinstance(self._tasks[key], FunctionTask)
        }
        with isolated(self.config.seed):
            return probe(resident, respond, self.config.max_length, remembered)

    def use_batch_sizes(self, sizes: Mapping[str, int]) -> None:
        """Run these tasks in batches of so many sequences, unless memory was too short for that before."""
        for key, size in sizes.items():
            self._batch_sizes.setdefault(key, size)

    def _respond(self, resident: Resident, key: str, items: Sequence[str], gold: Sequence[str]) -> TaskResponses:
        """Return the responses to one task; with half the batch size, from now on, if memory is short."""
        filters = frozenset(o.metric.partition(",")[2] for o in self.objectives if o.task == key)
        task = self._tasks[key]
        while True:
            size = self._batch_sizes.get(key, resident.batch_size)
            if not isinstance(task, FunctionTask):
                resident.lm.use_batches_of(size)
            try:
                responses = task.respond(resident, items, filters) if items else TaskResponses((), {})
                self.smallest_batch = min(size, self.smallest_batch or size)
                return replace(responses, gold=task.gold(resident, gold)) if gold else responses
            except Exception as error:
                if isinstance(task, FunctionTask) or size == 1 or not is_out_of_memory(error):
                    raise _told_of(error, key) from error
            free_memory()  # the error, which held on to the batch, is gone only here
            self._batch_sizes[key] = size // 2

    def score(self, responses: Responses) -> dict[str, float]:
        """Return each objective's value, in its own direction, by name.

        Raises:
            FitnessError: responses lack an objective's task or metric.
        """
        return {objective.name: self._score(objective, responses) for objective in self.objectives}

    def item_values(self, responses: Responses, objective: str) -> list[float]:
        """Return one number an item, whose mean is the objective: for intervals and paired tests.

        Raises:
            KeyError: there is no objective of that name.
        """
        found = {each.name: each for each in self.objectives}[objective]
        values = responses.tasks[found.task].values[found.metric]
        return self._tasks[found.task].metrics[found.metric].item_values(values)

    def _score(self, objective: Objective, responses: Responses) -> float:
        task = responses.tasks.get(objective.task)
        if task is None:
            raise FitnessError(f"no responses to task {objective.task!r}, which objective {objective.name!r} needs")
        if objective.metric not in task.values:
            keys = ", ".join(sorted(task.values))
            raise FitnessError(f"task {objective.task!r} gave no {objective.metric!r}; it gave: {keys}")
        return self._tasks[objective.task].metrics[objective.metric].score(task.values[objective.metric])


def _told_of(error: Exception, key: str) -> FitnessError:
    """Return an error inside a task as one that names it."""
    if isinstance(error, FitnessError):
        return FitnessError(str(error) if key in str(error) else f"task {key!r}: {error}")
    return FitnessError(f"task {key!r}: the evaluation failed with {type(error).__name__}: {error}")
