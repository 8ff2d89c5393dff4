"""Groups of tensors: which part of a network a tensor belongs to, told by its name alone.

Holds for the names of Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, OPT, Bloom, Falcon, BERT, T5 and
whatever follows their habits. What no pattern knows belongs to no group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from evomerge.errors import ConfigError, Problem
from evomerge.recipes import layer_of

GroupSetting: TypeAlias = str | dict[str, str]

OTHER = "other"
_NORM = re.compile(r"norm|(?:^|[._])ln(?:_\w+)?(?=\.|$)", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|(?:^|\.)(?:wte|wpe|shared|lm_head|head|output|cls|score|classifier|pooler)\.", re.IGNORECASE
)
_ATTENTION = re.compile(r"attn|attention|(?:^|\.)mixer\.", re.IGNORECASE)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|(?:^|\.)fc[12]\.|dense_h_to_4h|dense_4h_to_h"
    r"|(?:^|\.)intermediate\.|(?:^|\.)output\.dense|densereludense",
    re.IGNORECASE,
)
NAMED_GROUPS = ("attention", "mlp", "norm", "embedding")


def group_of(tensor_name: str) -> str | None:
    """Return which of `NAMED_GROUPS` a tensor is in; None if none.

    ``norm`` takes every normalisation, also those inside attention and embeddings; ``embedding`` takes input
    and position embeddings and output heads, all of them outside the layers.
    """
    if _NORM.search(tensor_name):
        return "norm"
    if layer_of(tensor_name) is None:
        return "embedding" if _EMBEDDING.search(tensor_name) else None
    if _ATTENTION.search(tensor_name):
        return "attention"
    return "mlp" if _MLP.search(tensor_name) else None


def assign_groups(tensor_names: Sequence[str], groups: Sequence[GroupSetting]) -> dict[str, tuple[str, ...]]:
    """Return group → its tensors, in the listed order; what no group takes is ``other``, last.

    A tensor belongs to the first group that matches.

    Args:
        groups: names of `NAMED_GROUPS`, and mappings of a name to a regular expression that is searched for
            in tensor names.

    Raises:
        ConfigError: a group holds no tensor.
    """
    patterns = {
        name: pattern
        for setting in groups
        for name, pattern in ({setting: None} if isinstance(setting, str) else setting).items()
    }
    assigned: dict[str, list[str]] = {group: [] for group in (*patterns, OTHER)}
    for name in tensor_names:
        assigned[_first_match(name, patterns)].append(name)
    empty = [group for group in patterns if not assigned[group]]
    if empty:
        raise ConfigError([_nothing_in(group, patterns[group], tensor_names) for group in empty])
    return {group: tuple(names) for group, names in assigned.items() if names}


def _first_match(tensor_name: str, patterns: dict[str, str | None]) -> str:
    for group, pattern in patterns.items():
        if group_of(tensor_name) == group if pattern is None else re.search(pattern, tensor_name):
            return group
    return OTHER


def _nothing_in(group: str, pattern: str | None, tensor_names: Sequence[str]) -> Problem:
    what = f"the group {group!r} holds no tensor"
    if pattern is not None:
        what += f": {pattern!r} matches none"
        if any(re.search(pattern, name) for name in tensor_names):
            what = f"the group {group!r} holds no tensor: groups listed before it take all that match"
    example = min(tensor_names, key=lambda name: (layer_of(name) is None, name), default="")
    return Problem(what, "search_space.groups", f"tensors are named like {example!r}" if example else "")
