"""Calibration examples: token sequences, and which tokens the model is asked to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence, without padding.

    Args:
        inputs: keyword of the model's forward → tensor, without a batch axis; ``input_ids`` of (length,) for text.
        labels: (length,) int64, the token that the model's scores at each position are to predict, -100 where none;
            None for models that predict no tokens.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens; 1 for inputs that are no text."""
        ids = self.inputs.get("input_ids")
        return 1 if ids is None else len(ids)


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Return prompt and answer for a causal model, which is asked for the answer's tokens alone.

    An empty prompt asks for every token but the first.
    """
    ids = torch.tensor([*prompt, *answer], dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    labels[:-1] = ids[1:]
    labels[: max(len(prompt) - 1, 0)] = IGNORED
    return Example({"input_ids": ids}, labels)


def blocks(texts: Sequence[Sequence[int]], length: int) -> list[Example]:
    """Return tokenised texts, one after the other, cut into blocks of ``length``; a shorter rest is dropped.

    Texts shorter than one block altogether are one example.
    """
    ids = [token for text in texts for token in text]
    cut = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)] or [ids]
    return [answered((), block) for block in cut if len(block) > 1]


def masked(example: Example, mask: int, share: float, seed: int) -> Example:
    """Return the example for a masked language model: some tokens hidden and asked for, at least one.

    Args:
        example: a causal model's.
        mask: the token that stands for a hidden one.
        share: of the tokens that are hidden, in (0, 1].
        seed: chooses them.
    """
    ids = example.inputs["input_ids"]
    drawn = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed))
    hidden = drawn <= torch.maximum(torch.tensor(share), drawn.min())
    labels = torch.where(hidden, ids, IGNORED)
    return Example({**example.inputs, "input_ids": torch.where(hidden, mask, ids)}, labels)


def digest(examples: Sequence[Example]) -> str:
    """Return 16 hexadecimal digits of the examples' inputs and labels."""
    found = sha256()
    for example in examples:
        for name, tensor in sorted(example.inputs.items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + tensor.numpy().tobytes())
        if example.labels is not None:
            found.update(example.labels.numpy().tobytes())
    return found.hexdigest()[:16]
