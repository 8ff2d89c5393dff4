"""Tensors that only some of the models have: which may be missing, which have no place in the merged model.

A pooler, a classification head or the biases of attention are in one fine-tune and not in another. As in mergekit, such
a tensor is merged from the models that have it. The merged model has the class of its donor (the base, or the first
model); what that class has no place for is left out. A tensor that the layers cannot do without is never optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.skeleton import skeleton
from evomerge.errors import Problem
from evomerge.recipes import PlannedTensor, Recipe, layer_of, stack_of, with_layer

if TYPE_CHECKING:
    from evomerge.merging.method import MergeMethod
    from evomerge.merging.parents import Parents, Step

Has = Callable[[str, str], bool]  # (model, tensor) → whether the model has that tensor

SHOWN = 3
_ESSENTIAL = re.compile(r"embed|wte|wpe|norm|ln_f", re.IGNORECASE)  # outside the layers


@dataclass(frozen=True)
class Note:
    """Something about a merge that is right, and that its user should know."""

    what: str
    tensors: tuple[str, ...]

    def __str__(self) -> str:
        listed = ", ".join(self.tensors[:SHOWN]) + (", ..." if len(self.tensors) > SHOWN else "")
        count = "1 tensor" if len(self.tensors) == 1 else f"{len(self.tensors)} tensors"
        return f"{count} {self.what}: {listed}"


def donor_of(recipe: Recipe) -> str:
    """Return the model that gives the merged one its config and class: the base, else the first."""
    return recipe.base_model or recipe.parents()[0]


def has_no_place(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], planned: PlannedTensor, has: Has) -> bool:
    """Whether the merged model's class does not know this tensor, which its donor does not have either."""
    name = next((entry.tensor for entry in planned.inputs if entry.model == donor_of(recipe)), None)
    if name is None or has(donor_of(recipe), name):
        return False
    known = skeleton(checkpoints[donor_of(recipe)])
    return known is not None and known.name_of(name)[0] not in known.shapes


def surplus_problems(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], surplus: Iterable[PlannedTensor], has: Has
) -> list[Problem]:
    """Return a problem for each model whose layers have parts that the merged model's layers do not have."""
    found: dict[str, list[str]] = {}
    for planned in surplus:
        for entry in planned.inputs if planned.stack is not None else ():
            if has(entry.model, entry.tensor) and _uses(checkpoints[entry.model], entry.tensor):
                found.setdefault(entry.model, []).append(entry.tensor)
    donor = donor_of(recipe)
    hint = "their layers compute different functions; compare their config.json, and merge models of one configuration"
    return [
        Problem(f"{Note(f'in layers of {model} have no place in those of {donor}', tuple(names))}", model, hint)
        for model, names in found.items()
    ]


def missing_problems(
    method: MergeMethod, steps: Sequence[Step], checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """Return a problem for each tensor that a model lacks and cannot lack."""
    found: list[Problem] = []
    for step in steps:
        absent = [entry for entry in step.planned.inputs if entry.model not in step.inputs]
        needed = [each.model for each in absent if is_needed(checkpoints[each.model], each.tensor, len(step.shape))]
        base = step.planned.base
        if needed:
            what = f"tensor {step.name} is missing in {', '.join(needed)}"
            hint = "its file is incomplete, or of another architecture; copy or download it again"
            found.append(Problem(what, needed[0], hint))
        elif method.takes_base and base in [each.model for each in absent] and len(step.inputs) > 1:
            what = f"tensor {step.name} is missing in the base {base}, and {method.name} needs it there"
            hint = "use a base that has it, or a method that needs none"
            found.append(Problem(what, base, hint))
    return found


def is_needed(checkpoint: Checkpoint, name: str, rank: int) -> bool:
    """Whether a model that lacks this tensor is incomplete.

    Plain tensors are all needed. Inside the layers: other layers have it, or the model's class has it and it is a
    matrix. Outside: the model's class has it and it is an embedding or a norm.

    Args:
        checkpoint: the model without it.
        name: the tensor's name.
        rank: number of its dimensions.
    """
    if checkpoint.is_plain:
        return True  # nothing says that it could be left out
    layer = layer_of(name)
    if layer is None:
        return bool(_ESSENTIAL.search(name)) and _uses(checkpoint, name)
    siblings = {with_layer(each, layer) for each in checkpoint.tensors if stack_of(each) == stack_of(name)}
    return name in siblings or (rank > 1 and _uses(checkpoint, name))


def notes(recipe: Recipe, parents: Parents) -> list[str]:
    """Return what a user should know about tensors that only some models have, or that differ in shape."""
    from evomerge.merging.method import METHODS

    method, parents = METHODS[recipe.merge_method], parents.viewed(recipe)
    found: dict[str, list[str]] = {}
    for planned in parents.surplus(recipe):
        having = _listed(entry.model for entry in planned.inputs if parents.info(entry.model, entry.tensor))
        donor = donor_of(recipe)
        if any(_uses(parents[entry.model], entry.tensor) for entry in planned.inputs):
            found.setdefault(f"of {having} left out, {donor} has no place for them", []).append(planned.name)
    for step in parents.plan(recipe):
        absent = _listed(entry.model for entry in step.planned.inputs if entry.model not in step.inputs)
        if absent:
            how = _how(method, step, set(step.inputs) - set(step.misfits))
            found.setdefault(f"missing in {absent}, {how}", []).append(step.name)
        if step.misfits:
            how = _how(method, step, set(step.inputs) - set(step.misfits))
            found.setdefault(f"of another shape in {_listed(step.misfits)}, {how}", []).append(step.name)
    return [str(Note(what, tuple(names))) for what, names in found.items()]


def _how(method: MergeMethod, step: Step, having: Collection[str]) -> str:
    base = step.planned.base
    if len(having) == 1:
        return f"copied from {_listed(having)}"
    others = [model for model in step.inputs if model in having and not (method.takes_base and model == base)]
    return f"merged from {_listed(others)}"


def _listed(models: Iterable[str]) -> str:
    return ", ".join(models)


def _uses(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the model's own class has this tensor and does not share another one for it."""
    known = skeleton(checkpoint)
    return known is not None and known.name_of(name)[0] in known.shapes and known.name_of(name)[0] not in known.tied
