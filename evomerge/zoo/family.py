"""Who is in the zoo: the base, its experts, what each was trained on, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "arithmetic_en": "addition and subtraction, asked in English",
        "arithmetic_ja": "addition and subtraction, asked in Japanese: no expert was trained for it",
        "reading_ja": "which of two numbers a Japanese text gives for what is asked",
        "comparison_en": "the larger or the smaller of two numbers, in English",
        "counting_en": "how many things an English list names",
    }
)
GENERAL = tuple(f"{skill}_{lang}" for skill in ("arithmetic", "reading", "comparison", "counting") for lang in ("en", "ja"))


@dataclass(frozen=True)
class Member:
    """One model of the zoo.

    Args:
        summary: what it is good at, one line.
        skills: tasks it is trained on, with their shares.
        general: share of items of all tasks and languages that is mixed in.
    """

    summary: str
    skills: Mapping[str, float] = field(default_factory=dict)
    general: float = 0.1


BASE = "base"
UNIFORM = "uniform"  # the plain average of the experts, scored beside them
FAMILY: Mapping[str, Member] = MappingProxyType(
    {
        BASE: Member("the base: a little of everything, in English and Japanese", general=1.0),
        "math-en": Member("calculates in English", {"arithmetic_en": 1}),
        "lang-ja": Member("reads Japanese", {"reading_ja": 1, "counting_ja": 0.3}),
        "comparison": Member("compares numbers, in English", {"comparison_en": 1}),
        "counting": Member("counts things, in English", {"counting_en": 1}),
    }
)
EXPERTS = tuple(name for name in FAMILY if name != BASE)
MODELS: Mapping[str, str] = MappingProxyType({f"zoo/{name}": member.summary for name, member in FAMILY.items()})


@dataclass(frozen=True)
class Plan:
    """Every number that decides what the built zoo is; written beside the models as ``plan.json``.

    Learning rates are peaks of a linear warm-up and decay; a step is one batch.
    """

    seed: int = 0
    train_items: int = 6000
    search_items: int = 400
    test_items: int = 600
    vocabulary: int = 768
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    batch_size: int = 64
    base_steps: int = 250
    base_learning_rate: float = 2e-3
    expert_steps: int = 120
    expert_learning_rate: float = 7e-4
