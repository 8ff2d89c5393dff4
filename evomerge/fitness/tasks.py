"""An lm-eval task kept ready: documents loaded, items split, prompts rendered once."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.defaults import default_gen_kwargs
from lm_eval.utils import handle_non_serializable, hash_string

from evomerge.errors import FitnessError, Problem
from evomerge.fitness.gold import Expected, expected_answers, probabilities, scores_in_its_own_way
from evomerge.fitness.isolation import own_random_state
from evomerge.fitness.items import Item, Pools, content_hash, make_items, question_hash, separate, split_by_hash
from evomerge.fitness.language_model import Resident, ResidentLM
from evomerge.fitness.metrics import task_metrics
from evomerge.fitness.objectives import TaskSettings
from evomerge.fitness.public_benchmarks import benchmark_of, benchmark_warning
from evomerge.fitness.responses import TaskResponses, Value

FEW = 8  # items of each split, looked at before there is a model
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class LmEvalTask:
    """One lm-eval task under one set of settings.

    Args:
        key: the task's key in items and responses.
        task: as built by `evomerge.fitness.sources.load_task`; it becomes this object's own.
        settings: few-shot, chat template and generation arguments.
        confirmation_share: used where the task has a single split to evaluate on.
        seed: of the few-shot examples.

    Raises:
        FitnessError: a task that runs code or needs images, or one without items.
    """

    def __init__(self, key: str, task: Task, settings: TaskSettings, *, confirmation_share: float, seed: int) -> None:
        self.key, self._task, self._settings, self._seed = key, task, settings, seed
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise FitnessError(f"task {key!r} runs generated code or needs images or sound; neither is supported")
        self._configure()
        self.metrics = task_metrics(task)
        self._left_out: tuple[Item, ...] = ()
        self.pools = self._split(confirmation_share)
        self._items = {item.id: item for pool in self.pools.values() for item in pool}
        self._instances: dict[str, list[Instance]] = {}
        self._rendered_for: Any = None
        self._fallbacks = self._no_answers()
        for method in ("doc_to_target", "doc_to_choice"):
            setattr(task, method, _remember(getattr(task, method, None), self._items.values()))

    def _configure(self) -> None:
        config = self._task.config
        if self._settings.num_fewshot is not None:
            self._task.set_config("num_fewshot", self._settings.num_fewshot)
        overrides = json.loads(self._settings.gen_kwargs)
        own = config.generation_kwargs or {}
        chosen = {} if own == default_gen_kwargs(config.fewshot_delimiter) else own
        self._has_token_limit = not set(TOKEN_LIMITS).isdisjoint({*chosen, *overrides})
        if overrides and self._task.OUTPUT_TYPE != "generate_until":
            raise FitnessError(f"task {self.key!r} does not generate text, so it takes no `gen_kwargs`")
        if overrides:
            limited = set(overrides) & set(TOKEN_LIMITS)
            kept = {k: v for k, v in own.items() if not limited or k not in TOKEN_LIMITS}
            self._task.set_config("generation_kwargs", kept | overrides)
        self._examples = _OwnExamples(getattr(self._task, "sampler", None))
        if config.num_fewshot:
            self._task.sampler = self._examples

    def warnings(self) -> list[Problem]:
        """Return what is allowed but likely to mislead."""
        found = []
        if self._task.OUTPUT_TYPE == "generate_until" and not self._has_token_limit:
            what = f"task {self.key!r} sets no max_gen_toks: answers are cut off at lm-eval's default of 256 tokens"
            found.append(Problem(what, "", "set `gen_kwargs: {max_gen_toks: ...}` for the objective"))
        config = self._task.config
        dataset, options = config.dataset_path or self._task.DATASET_PATH, config.dataset_kwargs or {}
        benchmark = benchmark_of(dataset, self._searched, options.get("data_files"))
        return found + ([] if benchmark is None else [benchmark_warning(self.key, benchmark, str(self._searched))])

    def _split(self, confirmation_share: float) -> Pools:
        """Return the pools: validation and test, else train and test, else the only split cut in two."""
        task = self._task
        names = self._task.config
        self._searched = names.test_split if task.has_test_docs() else names.validation_split
        if task.has_test_docs() and (task.has_validation_docs() or task.has_training_docs()):
            self._searched = names.validation_split if task.has_validation_docs() else names.training_split
            search = task.validation_docs() if task.has_validation_docs() else task.training_docs()
            items = self._read(search)
            pools = separate(items, self._read(task.test_docs()))
            kept = {item.id for item in pools["search"]}
            self._left_out = tuple(item for item in items if item.id not in kept)
        else:
            pools = split_by_hash(self._read(task.eval_docs), confirmation_share)
        for split, items in pools.items():
            if not items:
                raise FitnessError(f"task {self.key!r} has no {split} items: its data is too small to be split")
        return pools

    def _read(self, docs: Any) -> tuple[Item, ...]:
        contents = [(doc, self._content(doc)) for doc in docs]
        items = make_items((doc, content_hash(content)) for doc, content in contents)
        return tuple(
            replace(item, question=question_hash(content[0]) or item.content)
            for item, (_, content) in zip(items, contents, strict=True)
        )

    def _content(self, doc: Any) -> list[Any]:
        """Return what the document asks and expects: a copy under another row id has the same."""
        choices = self._task.config.doc_to_choice if hasattr(self._task, "doc_to_choice") else None
        asked = [self._task.doc_to_text(doc), self._task.doc_to_target(doc)]
        return [*asked, self._task.doc_to_choice(doc)] if choices is not None else asked

    def lm_eval_ids(self) -> dict[str, str | None]:
        """Return what banks made from lm-eval's own sample files call the items: that name → id.

        Both splits are named as lm-eval names the documents of the split that it evaluates, which is the test split if
        there is one, else the validation split. None stands for a document that is in no pool, as its like is in the
        confirmation.
        """
        names: dict[str, str | None] = {_lm_eval_id(item): None for item in self._left_out}
        return names | {_lm_eval_id(item): item.id for pool in self.pools.values() for item in pool}

    def prompt(self, tokenizer: Any = None) -> str:
        """Return the first search item's prompt, without the chat template when no tokenizer is given."""
        return str(self.requests(self.pools["search"][:1], tokenizer)[0].args[0])

    def requests(self, items: Iterable[Item], tokenizer: Any = None) -> list[Instance]:
        """Return what a model is asked for items, without the chat template when no tokenizer is given."""
        template = tokenizer.apply_chat_template if tokenizer and self._settings.apply_chat_template else None

        def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            ending = {"add_generation_prompt": add_generation_prompt}
            ending["continue_final_message"] = not add_generation_prompt
            return str(template(messages, tokenize=False, **ending))  # type: ignore[misc]

        return [request for item in items for request in self._requests(item, render if template else None)]

    def training_items(self) -> tuple[Item, ...]:
        """Return the task's training examples; none if it has no such split."""
        return self._read(self._task.training_docs()) if self._task.has_training_docs() else ()

    def worked(self, item: Item) -> tuple[str, str]:
        """Return an item's prompt, without a chat template, and the expected answer as it would follow.

        Raises:
            FitnessError: the task does not say which answer is right.
        """
        requests = self._requests(item, None)
        if self._task.OUTPUT_TYPE == "loglikelihood_rolling":
            return "", str(requests[0].args[0])
        expected = self._expected(item, requests, chat=False)
        return expected.pairs[expected.right[0]]

    def _expected(self, item: Item, requests: Sequence[Instance], *, chat: bool) -> Expected:
        expected = expected_answers(self._task, item.doc, requests, chat=chat)
        if expected is None:
            raise FitnessError(f"task {self.key!r} does not say which answer to item {item.id} is right")
        return expected

    def plain_problems(self) -> list[Problem]:
        """Return why the task cannot be run on plain tensors: it asks language models."""
        what = f"task {self.key!r} asks language models, and the parents are plain tensors"
        return [Problem(what, "", "use a Python function of them (docs/fitness.md)")]

    def gold_problems(self) -> list[Problem]:
        """Return why `gold` would fail, as far as the task and a few items of each split tell."""
        try:
            self._check_names_answers()
            for item in (item for pool in self.pools.values() for item in pool[:FEW]):
                self._expected(item, self._requests(item, None), chat=False)
        except FitnessError as error:
            return [Problem(str(error), "", "ask for the probabilities of tasks that name their right answers")]
        return []

    def _check_names_answers(self) -> None:
        if self._task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise FitnessError(f"task {self.key!r} measures whole texts: no answer to them is the right one")
        if scores_in_its_own_way(self._task):
            raise FitnessError(f"task {self.key!r} does not say which answers are right: its process_results decides")

    def problems(self, tokenizer: Any) -> list[Problem]:
        """Return why this task cannot be run with a tokenizer."""
        if self._settings.apply_chat_template and not getattr(tokenizer, "chat_template", None):
            what = f"task {self.key!r} asks for a chat template, and the tokenizer has none"
            return [Problem(what, "", "drop `apply_chat_template`, or add a chat template to the base's tokenizer")]
        return []

    def _requests(self, item: Item, template: Any) -> list[Instance]:
        task = self._task
        # Each item has its own generator, so its examples do not depend on which other items are rendered.
        with own_random_state(self._seed):
            task.set_fewshot_seed(int(content_hash([self._seed, item.content])[:8], 16))
            self._examples.current = item.doc
            context = task.fewshot_context(
                item.doc,
                num_fewshot=task.config.num_fewshot or 0,
                system_instruction=self._settings.system_instruction,
                apply_chat_template=template is not None,
                fewshot_as_multiturn=True,
                chat_template=template,
                gen_prefix=task.doc_to_prefix(item.doc),
            )
            requests = task.construct_requests(
                doc=item.doc,
                ctx=context,
                metadata=(task.config.task, item.index, task.config.repeats),
                apply_chat_template=template is not None,
                chat_template=template,
            )
        return list(requests) if isinstance(requests, list) else [requests]

    def respond(self, resident: Resident, items: Sequence[str], used_filters: frozenset[str]) -> TaskResponses:
        """Run items on the resident model.

        Args:
            resident: the model and its tokenizer.
            items: ids; repetitions and order do not matter.
            used_filters: filters whose failures are flagged as unextracted answers.

        Raises:
            FitnessError: an id that this task does not have, or NaN in the model's scores.
        """
        chosen = self._chosen(items)
        groups = self._rendered(resident, chosen)
        cut_off = _run(resident.lm, [instance for group in groups for instance in group])
        self._filter(groups)
        values = self._values(chosen, groups)
        ids = tuple(item.id for item in chosen)
        if self._task.OUTPUT_TYPE != "generate_until":
            return TaskResponses(ids, values)
        truncated = [any(id(instance) in cut_off for instance in group) for group in groups]
        unextracted = [self._unextracted(group, used_filters) for group in groups]
        return TaskResponses(ids, values, truncated, unextracted)

    def gold(self, resident: Resident, items: Sequence[str]) -> dict[str, float]:
        """Return the probability that the resident model gives to each item's right answer, in the data's order.

        Args:
            resident: the model and its tokenizer.
            items: ids; repetitions and order do not matter.

        Raises:
            FitnessError: an id that this task does not have, NaN in the model's scores, or a task or item that
                does not say which answer is right.
        """
        self._check_names_answers()
        chosen, chat = self._chosen(items), self._settings.apply_chat_template
        groups = zip(chosen, self._rendered(resident, chosen), strict=True)
        expected = [self._expected(item, group, chat=chat) for item, group in groups]
        found = probabilities(resident.lm, expected)
        return {item.id: probability for item, probability in zip(chosen, found, strict=True)}

    def _rendered(self, resident: Resident, items: Sequence[Item]) -> list[list[Instance]]:
        """Return each item's requests, rendered at their first use and kept."""
        model = resident.lm
        template = model.apply_chat_template if self._settings.apply_chat_template else None
        if template and self._rendered_for is not model.tokenizer:
            self._instances, self._rendered_for = {}, model.tokenizer
        for item in items:
            if item.id not in self._instances:
                self._instances[item.id] = self._requests(item, template)
        return [self._instances[item.id] for item in items]

    def _chosen(self, items: Sequence[str]) -> list[Item]:
        unknown = [item for item in items if item not in self._items]
        if unknown:
            raise FitnessError(
                f"task {self.key!r} has no item {unknown[0]!r} ({len(unknown)} such); its data or prompts "
                "have changed since these items were chosen"
            )
        return sorted((self._items[item] for item in set(items)), key=lambda item: (item.index, item.id))

    def _filter(self, groups: Sequence[Sequence[Instance]]) -> None:
        self._task._instances = [instance for group in groups for instance in group]
        self._task.apply_filters()

    def _values(self, items: Sequence[Item], groups: Sequence[Sequence[Instance]]) -> dict[str, list[Value]]:
        values: dict[str, list[Value]] = {}
        for name in dict.fromkeys(metric.filter for metric in self.metrics.values()):
            for position, (item, group) in enumerate(zip(items, groups, strict=True)):
                ordered = sorted(group, key=lambda instance: instance.idx)
                answers = [instance.filtered_resps[name] for instance in ordered]
                for metric, value in self._task.process_results(item.doc, answers).items():
                    column = values.setdefault(f"{metric},{name}", [None] * len(items))
                    column[position] = _plain(value)
        for key, column in values.items():
            if any(isinstance(value, float) and math.isnan(value) for value in column):
                raise FitnessError(f"task {self.key!r}: {key} is NaN on an item")
        return values

    def _unextracted(self, group: Sequence[Instance], used_filters: frozenset[str]) -> bool:
        for name in used_filters:
            answers = [instance.filtered_resps.get(name) for instance in group]
            flat = [part for answer in answers for part in (answer if isinstance(answer, list) else [answer])]
            if any(part is None or (isinstance(part, str) and part.strip() in self._fallbacks) for part in flat):
                return True
        return False

    def _no_answers(self) -> frozenset[str]:
        """Return what the filters give in place of an answer that they do not find."""
        steps = [step for entry in self._task.config.filter_list or [] for step in entry["filter"]]
        given = [step.get("fallback") for step in steps]
        return frozenset(["[invalid]", "", *(fallback for fallback in given if isinstance(fallback, str))])


def _lm_eval_id(item: Item) -> str:
    """Return lm-eval's ``doc_id`` and the start of its ``doc_hash`` (`evomerge.fitness.irt.sample_folders`)."""
    text = json.dumps(item.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return f"{item.index}-{hash_string(text)[:8]}"


def _remember(method: Any, items: Iterable[Item]) -> Callable[..., Any]:
    """Return a method of the task that renders each item's document once: scoring asks in every trial."""
    ours = {id(item.doc) for item in items}
    known: dict[int, Any] = {}

    def lookup(doc: Any, *arguments: Any) -> Any:
        if arguments or id(doc) not in ours:
            return method(doc, *arguments)
        if id(doc) not in known:
            known[id(doc)] = method(doc)
        return copy.copy(known[id(doc)])

    return lookup


class _OwnExamples:
    """A few-shot sampler that never shows an item as its own example, whichever split examples come from."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.current: Any = None

    def set_rnd(self, seed: int | None) -> None:
        self._sampler.set_rnd(seed)

    def sample(self, n: int, eval_doc: Any = None, **_: Any) -> Sequence[Any]:
        pool = self._sampler.df
        among = len(pool) > n and self.current in pool
        return self._sampler.sample(n, eval_doc=self.current if among else eval_doc)


def _run(model: ResidentLM, instances: Sequence[Instance]) -> set[int]:
    """Fill in the instances' responses; return the `id`s of those whose answer was cut off."""
    cut_off: set[int] = set()
    for instance in instances:
        instance.resps, instance.filtered_resps = [], {}
    for kind in dict.fromkeys(instance.request_type for instance in instances):
        requests = [
            instance for instance in instances if instance.request_type == kind for _ in range(instance.repeats or 1)
        ]
        if kind == "generate_until":
            generations = model.generate(requests)
            cut_off |= {id(request) for request, made in zip(requests, generations, strict=True) if made.truncated}
            answers: list[Any] = [generation.text for generation in generations]
        else:
            answers = getattr(model, kind)(requests)
        for request, answer in zip(requests, answers, strict=True):
            request.resps.append(answer)
    return cut_off


def _plain(value: Any, nested: bool = False) -> Value:
    """Return a metric's value as JSON holds it: a number as float, inside pairs integers as they are."""
    if isinstance(value, (bool, numpy.bool_)):
        return float(value)
    if isinstance(value, (int, numpy.integer)):
        return int(value) if nested else float(value)
    if isinstance(value, (float, numpy.floating)):
        return float(value)
    if isinstance(value, numpy.ndarray):
        return _plain(value.tolist(), nested)
    if isinstance(value, (list, tuple)):
        return [_plain(part, nested=True) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part, nested=True) for key, part in value.items()}
    return value if value is None else str(value)
