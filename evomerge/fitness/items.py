"""Items: the examples of a task, their stable ids, and their one split into search and confirmation.

A search picks the maximum of noisy scores, so what it found is confirmed on items that it never saw. Which
item lies where depends on the item's content alone: not on the seed, the other tasks or the order of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from evomerge.fitness.objectives import Split


@dataclass(frozen=True)
class Item:
    """One example: its id, its position in the data, the hash of its content and that of its question alone."""

    id: str
    index: int
    content: str
    doc: Any
    question: str = ""


Pools = dict[Split, tuple[Item, ...]]


def content_hash(content: Any) -> str:
    """Return 64 hex characters for what an item asks and expects (any JSON-like value)."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return sha256(text.encode()).hexdigest()


def question_hash(question: Any) -> str:
    """Return what is equal for questions that differ in nothing but white space and case; empty for what is no text."""
    text = " ".join(question.split()).casefold() if isinstance(question, str) else ""
    return sha256(text.encode()).hexdigest() if text else ""


def make_items(docs: Iterable[tuple[Any, str]]) -> tuple[Item, ...]:
    """Return items for (document, content hash) pairs; the ids are ``{index}-{8 hex of the content}``."""
    return tuple(Item(f"{n}-{content[:8]}", n, content, doc) for n, (doc, content) in enumerate(docs))


def separate(search: Sequence[Item], confirmation: Sequence[Item]) -> Pools:
    """Return two pools with nothing in common: what is in the confirmation is dropped from the search."""
    held_out = {item.content for item in confirmation}
    return {
        "search": tuple(item for item in search if item.content not in held_out),
        "confirmation": tuple(confirmation),
    }


def split_by_hash(items: Sequence[Item], confirmation_share: float) -> Pools:
    """Return the items cut in two by their content; equal contents lie on the same side."""
    held_out = [_uniform(f"split|{item.content}") < confirmation_share for item in items]
    return {
        "search": tuple(item for item, held in zip(items, held_out, strict=True) if not held),
        "confirmation": tuple(item for item, held in zip(items, held_out, strict=True) if held),
    }


def choose(items: Sequence[Item], cap: int | None, seed: int) -> tuple[str, ...]:
    """Return the ids of at most ``cap`` items, in an order that is random but fixed by content and seed.

    Every beginning of the result is a uniform random subset, so a larger cap only adds items.
    """
    order = sorted(items, key=lambda item: (_uniform(f"order|{seed}|{item.content}"), item.index))
    return tuple(item.id for item in order[:cap])


def _uniform(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64
