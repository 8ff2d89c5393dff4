"""Random numbers for mutations, made where they are needed: the same for any chunks and any number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import xor
from typing import NamedTuple

import numpy as np
import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter
from evomerge.merging.state import state_class

BLOCK = 1 << 16  # entries that one generator draws
UNIFORM = 1 << 63  # the stream of uniform draws, apart from the blocks of normal ones

NOISE = Parameter(
    "noise",
    default=0.0,
    low=0.0,
    high=0.1,
    per_model=False,
    searchable=False,
    description="standard deviation of the normal noise on every entry",
    minimum=0.0,
)


@state_class
class Normals(NamedTuple):
    """Independent standard normal draws, one for each entry of a tensor; cut where that is cut."""

    seed: int

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Return the draws of the flat entries [start, stop), float32."""
        first = start // BLOCK
        blocks = [self._block(number, stop) for number in range(first, max(-(-stop // BLOCK), first + 1))]
        return torch.from_numpy(np.concatenate(blocks))[start - first * BLOCK :]

    def _block(self, number: int, stop: int) -> np.ndarray:
        """Return a block's draws up to the entry ``stop``; they follow one another, so the rest need not be drawn."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        return generator.standard_normal(min(BLOCK, stop - number * BLOCK), dtype=np.float32)


def uniform(seed: int, count: int) -> torch.Tensor:
    """Return ``count`` draws from [0, 1), float32."""
    generator = np.random.Generator(np.random.Philox(key=[seed, UNIFORM]))
    return torch.from_numpy(generator.random(count, dtype=np.float32))


def common_seed(seeds: Sequence[int] | None, method: str) -> int:
    """Return one seed of all models', whatever their order.

    Raises:
        MergeError: there are none.
    """
    if not seeds:
        raise MergeError(f"{method} draws at random: it needs one seed for each tensor")
    return reduce(xor, seeds)
