"""Random numbers for merges: one table of uniform draws, read by every tensor of every model from its own place.

A draw for each entry of each parent would take more memory than the parents' differences are worth, and making them
anew takes longer than the merge. A table of 2^24 numbers costs 32 MB whatever the model. Two tensors, or one tensor
of two models, read it from places that a hash of their seeds gives, so no entry of one is tied to the same entry of
the other; within one tensor a draw comes again after 2^24 entries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from evomerge.merging.state import state_class

BITS = 24
LEVELS = 1 << 16  # a draw is one of so many; a probability is rounded to that


@state_class
class Draws(NamedTuple):
    """Uniform draws for the entries of one tensor of one model.

    Entry e has draw number ``place + e`` (modulo the table's length) of the table.
    """

    place: int

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Return the draws of the flat entries [start, stop): int16, uniform over its 2^16 values."""
        first = (self.place + start) % (1 << BITS)
        parts = [table()[first : first + stop - start]]
        while (missing := stop - start - sum(map(len, parts))) > 0:
            parts.append(table()[:missing])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def draws(seed: int) -> Draws:
    """Return the draws that belong to ``seed`` (any integer from 0 to 2^63 − 1)."""
    return Draws(seed % (1 << BITS))


def limit(probability: float) -> int:
    """Return the draw below which an entry is kept so that it is with this probability, to 2^-16."""
    return round(min(1.0, max(0.0, probability)) * LEVELS) - LEVELS // 2


@lru_cache(maxsize=1)
def table() -> torch.Tensor:
    """Return the table: int16, uniform over all values, the same on every machine."""
    generator = torch.Generator().manual_seed(0x6D65726765)
    return torch.randint(-LEVELS // 2, LEVELS // 2, (1 << BITS,), dtype=torch.int16, generator=generator)
