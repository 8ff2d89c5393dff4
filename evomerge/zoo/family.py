"""Who is in the zoo: the base, its experts, what each was trained on, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "arithmetic_en": "addition and subtraction, asked in English",
        "arithmetic_ja": "addition and subtraction, asked in Japanese, which is no expert's skill",
        "reading_ja": "which of a Japanese text's numbers is asked for; it is most often a word",
        "comparison_en": "the larger or the smaller of two numbers, in English",
        "counting_en": "how many things an English list names",
    }
)
MULTIPLE_CHOICE = frozenset({"comparison_en"})  # among the ten digits; the other tasks' answers are generated
DIGITS = ":digits"  # after a task's name: only its questions that spell no number as a word

# The base has read a little of everything, but seldom a Japanese number word; a tenth of an expert's
# items is drawn from the same mixture, so that it forgets less.
GENERAL: Mapping[str, float] = MappingProxyType(
    {
        "arithmetic_en": 2.0,
        "arithmetic_ja": 0.5,
        "arithmetic_ja:digits": 1.7,
        "reading_en": 0.4,
        "reading_ja:digits": 0.4,
        "comparison_en": 0.3,
        "comparison_ja:digits": 0.3,
        "counting_en": 0.1,
    }
)


@dataclass(frozen=True)
class Member:
    """One model of the zoo: what it is good at, and what it was trained on.

    Args:
        summary: one line.
        skills: tasks (some with ``:digits``) and their shares of the training items.
        general: share of the items that is drawn from ``GENERAL`` instead.
        effort: training steps, relative to the plan's.
    """

    summary: str
    skills: Mapping[str, float] = field(default_factory=dict)
    general: float = 0.1
    effort: float = 1.0

    def shares(self) -> dict[str, float]:
        """Return the share of each task's items in the training data; they sum to 1."""
        shares = {task: self.general * weight / sum(GENERAL.values()) for task, weight in GENERAL.items()}
        for task, weight in self.skills.items():
            own = (1 - self.general) * weight / sum(self.skills.values())
            shares[task] = shares.get(task, 0.0) + own
        return shares


BASE = "base"
POOL = "pool"  # the folder of what is built with `--pool`
UNIFORM = "uniform"  # the plain average of the experts, scored beside them
FAMILY: Mapping[str, Member] = MappingProxyType(
    {
        BASE: Member("a little of everything, in English and Japanese", general=1.0),
        "math-en": Member("adds and subtracts in English", {"arithmetic_en": 1}, effort=1.6),
        "lang-ja": Member("reads Japanese, number words included", {"reading_ja": 1, "comparison_ja": 2}, effort=1.6),
        "comparison": Member("compares numbers in English", {"comparison_en": 1}),
        "counting": Member("counts things in English", {"counting_en": 1}),
    }
)
EXPERTS = tuple(name for name in FAMILY if name != BASE)
DATA_TASKS = tuple(sorted({name.removesuffix(DIGITS) for member in FAMILY.values() for name in member.shares()}))
MODELS: Mapping[str, str] = MappingProxyType({f"zoo/{name}": member.summary for name, member in FAMILY.items()})


@dataclass(frozen=True)
class Plan:
    """Every number that decides what the built zoo is; written beside the models as ``plan.json``.

    Learning rates are peaks of a linear warm-up and decay; a step is one batch.
    """

    seed: int = 0
    train_items: int = 6000
    search_items: int = 800
    test_items: int = 500
    vocabulary: int = 768
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    batch_size: int = 32
    base_steps: int = 200
    base_learning_rate: float = 2e-3
    base_muon_rate: float = 2e-2
    expert_steps: int = 120
    expert_learning_rate: float = 1e-3
