"""How a recipe sees its parents: vocabularies made one, neurons aligned. Each view changes tensors as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.checkpoints import Checkpoint
from evomerge.merging.alignment.view import align
from evomerge.merging.architectures import override_architecture
from evomerge.merging.vocabulary import unify
from evomerge.recipes import Recipe

View = Callable[[Recipe, Mapping[str, Checkpoint]], Mapping[str, Checkpoint]]

VIEWS: tuple[View, ...] = (override_architecture, unify, align)
