"""Ranks of LoRA adapters, for methods that add up their matrices one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.errors import Problem
from evomerge.merging.method import MergeMethod
from evomerge.merging.parents import Parents, Step
from evomerge.merging.tensors import stored_factors

_SHOWN = 4


def rank_problems(method: MergeMethod, steps: Iterable[Step], parents: Parents) -> list[Problem]:
    """Return a problem that names the first tensor to which adapters of several ranks are added, and these.

    Args:
        method: that carries out the steps.
        steps: of one recipe.
        parents: as the recipe sees them; only headers are read.
    """
    for step in steps if method.factored else ():
        by_rank: dict[int, list[str]] = {}
        for model, change in stored_factors(step.planned.base, step.inputs, parents).items():
            if change.rank:  # an adapter that leaves a tensor alone fits all
                by_rank.setdefault(change.rank, []).append(model)
        if len(by_rank) > 1:
            ranks = "; ".join(f"rank {rank}: {_listed(models)}" for rank, models in sorted(by_rank.items()))
            what = f"{method.name} adds up adapters of one rank, and those of {step.name} have several ({ranks})"
            hint = "use task_arithmetic, which adds up what they change, or adapters of one rank"
            return [Problem(what, "models", hint)]
    return []


def _listed(models: Sequence[str]) -> str:
    more = len(models) - _SHOWN
    return ", ".join(models[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
