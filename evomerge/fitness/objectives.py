"""What a `fitness:` section may say, and what an objective is once its task and metric are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from evomerge.fitness.estimate_config import EstimateConfig

Direction: TypeAlias = Literal["maximize", "minimize"]
Split: TypeAlias = Literal["search", "confirmation"]
TASK_ONLY = ("filter", "num_fewshot", "apply_chat_template", "system_instruction", "gen_kwargs", "items")


class ObjectiveConfig(BaseModel):
    """One objective: a metric of an lm-eval task, or the number that a Python function returns.

    Attributes:
        task: a name in `fitness/`, the path of a task YAML, or a task of lm-eval's own.
        function: ``module:function`` or ``./file.py:function`` (see `evomerge.fitness.functions`).
        metric: ``acc``, or with its filter ``exact_match,strict-match``; left out when the task has only one.
        filter: the task's filter that prepares answers for the metric, when it has several.
        name: what reports call the objective; by default the task's name.
        direction: read from the task when left out; functions are maximised.
        weight: share in the weighted sum that single-objective searchers use, positive.
        num_fewshot: worked examples in the prompt; the task's own number when left out.
        apply_chat_template: render prompts through the tokenizer's chat template.
        system_instruction: system message, or leading text without a chat template.
        gen_kwargs: overrides of the task's generation arguments (``max_gen_toks``, ``until``, ...).
        items: cap on this task's search items, instead of the section's ``search_items``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = None
    function: str | None = None
    metric: str | None = None
    filter: str | None = None
    name: str | None = Field(default=None, min_length=1)
    direction: Direction | None = None
    weight: float = 1.0
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = {}
    items: int | None = Field(default=None, ge=1)

    @field_validator("weight")
    @classmethod
    def _positive(cls, weight: float) -> float:
        if not 0 < weight < float("inf"):
            raise ValueError("a weight is a positive number; to minimise a metric set `direction: minimize`")
        return weight

    @model_validator(mode="after")
    def _one_source(self) -> ObjectiveConfig:
        if (self.task is None) == (self.function is None):
            raise ValueError("an objective has either `task` or `function`, exactly one of them")
        defaults = type(self).model_fields
        useless = [field for field in TASK_ONLY if self.function and getattr(self, field) != defaults[field].default]
        if useless:
            raise ValueError(f"{', '.join(useless)}: only for objectives with a `task`, this one has a `function`")
        return self


class FitnessConfig(BaseModel):
    """The `fitness:` section of an experiment file.

    Attributes:
        objectives: one or more.
        batch_size: sequences in one forward pass; ``auto`` finds one for each task by trying, when a run starts. Scores
            in low precision depend on it, so a run keeps to what it began with. Halved where memory is short.
        max_length: longest sequence in tokens; the model's own limit when left out.
        search_items: cap on the items of each task that trials are evaluated on; all when left out.
        confirmation_items: cap on the items of each task that the front is confirmed on; all when left out.
        confirmation_share: share of the items kept for confirmation where a task has only one split to
            evaluate on, in (0, 1).
        seed: chooses which items a cap keeps, and the few-shot examples of each item.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 64
    max_length: int | None = Field(default=None, ge=2)
    search_items: int | None = Field(default=None, ge=1)
    confirmation_items: int | None = Field(default=None, ge=1)
    confirmation_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    seed: int = 0
    estimate: EstimateConfig | None = None


@dataclass(frozen=True)
class Objective:
    """An objective whose task and metric exist.

    Attributes:
        name: unique within the fitness.
        direction: which way is better.
        weight: share in the weighted sum of single-objective searchers.
        task: key of the task in items and responses.
        metric: ``metric,filter`` key of the task's responses.
        aggregation: name of the function from per-item values to the score; ``"mean"`` for most.
    """

    name: str
    direction: Direction
    weight: float
    task: str
    metric: str
    aggregation: str


@dataclass(frozen=True)
class TaskSettings:
    """How a task is prompted. The same task with other settings is another task.

    ``gen_kwargs`` is canonical JSON, so that settings can be compared and hashed.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: str = "{}"

    @classmethod
    def of(cls, config: ObjectiveConfig) -> TaskSettings:
        """Return the settings that an objective asks for."""
        return cls(
            config.num_fewshot,
            config.apply_chat_template,
            config.system_instruction,
            json.dumps(config.gen_kwargs, sort_keys=True, ensure_ascii=False),
        )

    def key(self, task: str) -> str:
        """Return ``task``, followed by the settings that are not the task's own: ``gsm8k[num_fewshot=2]``."""
        parts = []
        if self.num_fewshot is not None:
            parts.append(f"num_fewshot={self.num_fewshot}")
        if self.apply_chat_template:
            parts.append("chat")
        if self.system_instruction is not None:
            parts.append(f"system={sha256(self.system_instruction.encode()).hexdigest()[:6]}")
        parts += [f"{name}={value}" for name, value in json.loads(self.gen_kwargs).items()]
        return f"{task}[{','.join(parts)}]" if parts else task
