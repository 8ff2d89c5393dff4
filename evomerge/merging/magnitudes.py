"""Keeping the largest entries of a task vector, at any density, without sorting it again.

What is prepared: for short vectors the rank of every entry; for long ones how many entries have which leading bits
of their magnitude. With those counts, the entries among which the threshold of a density lies are found by one pass;
in half precision all of them have the same magnitude.

Exactly ⌊density · n⌋ entries are kept (at least one). Where equal magnitudes straddle the threshold, which is common
in half precision, the first of them are kept in long vectors; in short ones those that come first in torch's sort, as
mergekit has it, whatever the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from evomerge.merging.chunks import over_chunks
from evomerge.merging.state import PerEntry, state_class

SHORT = 1 << 18  # entries up to which vectors are sorted
BINS = 1 << 15  # numbers that the leading bits of a magnitude can be
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@state_class
class Ranks(NamedTuple):
    """For each entry, its place in the order of falling magnitude (int32, 0 = largest)."""

    rank: PerEntry


@state_class
class Counts(NamedTuple):
    """``above[b]``: how many entries have leading magnitude bits of b or more (int64, BINS + 1 numbers)."""

    above: torch.Tensor


@state_class
class First(NamedTuple):
    """Keep the entries of rank below ``kept``."""

    rank: PerEntry
    kept: int

    def cut(self, start: int, stop: int) -> First:
        """Return the same for a stretch of entries."""
        return First(PerEntry(self.rank.cut(start, stop)), self.kept)


@state_class
class Above(NamedTuple):
    """Keep magnitudes above ``magnitude``, and those equal to it up to entry number ``last``.

    ``below`` is the next smaller number of the vector's dtype.
    """

    magnitude: float
    below: float
    last: int

    def cut(self, start: int, stop: int) -> Above:
        """Return the same for a stretch of entries, numbered from its beginning."""
        return self._replace(last=self.last - start)


Order = Ranks | Counts
Trim = First | Above | None


def magnitude_orders(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> list[Order]:
    """Return what `trims` needs to know of each task vector; ``tensors`` and ``base`` are flat."""
    return [_order(tensor, base) for tensor in tensors]


def trims(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, orders: Sequence[Order], densities: Sequence[float]
) -> list[Trim]:
    """Return how to cut each task vector down to its density: None to leave it, else for `trimmed`."""
    counts = [kept_entries(density, base.numel()) for density in densities]
    return [keep_largest(*each) for each in zip(tensors, [base] * len(tensors), orders, counts, strict=True)]


def kept_entries(density: float, size: int) -> int:
    """Return how many of ``size`` entries a density keeps: its share, rounded down, at least one unless it is 0."""
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 else 0


def keep_largest(tensor: torch.Tensor, base: torch.Tensor, order: Order, kept: int) -> Trim:
    """Return how to keep the ``kept`` entries of largest magnitude of ``tensor − base``."""
    if kept >= base.numel():
        return None
    if isinstance(order, Ranks):
        return First(order.rank, kept)
    if kept == 0:
        return Above(math.inf, math.inf, -1)
    return _threshold(tensor, base, order.above, kept)


def trimmed(vector: torch.Tensor, trim: Trim) -> torch.Tensor:
    """Return the vector with the entries that are not kept set to zero; ``vector`` itself if all are."""
    if trim is None:
        return vector
    if isinstance(trim, First):
        return vector * (trim.rank.tensor.reshape(vector.shape) < trim.kept)
    split = min(max(trim.last + 1, 0), vector.numel())
    if split in (0, vector.numel()):
        return F.hardshrink(vector, trim.below if split else trim.magnitude)
    return torch.cat([F.hardshrink(vector[:split], trim.below), F.hardshrink(vector[split:], trim.magnitude)])


def _order(tensor: torch.Tensor, base: torch.Tensor) -> Order:
    if tensor.numel() <= SHORT:
        # Not `stable`: equal magnitudes then fall in the order that mergekit, which sorts the same way, takes them in.
        falling = torch.argsort((tensor - base).abs().float(), descending=True)
        rank = torch.empty(falling.shape, dtype=torch.int32, device=tensor.device)
        rank[falling] = torch.arange(falling.numel(), dtype=torch.int32, device=tensor.device)
        return Ranks(PerEntry(rank))
    parts = over_chunks(
        lambda start, stop: torch.bincount(_leading(tensor[start:stop] - base[start:stop]), minlength=BINS),
        tensor.numel(),
        tensor.device,
    )
    counts = torch.stack(parts).sum(0)
    return Counts(torch.cat([counts.flip(0).cumsum(0).flip(0), counts.new_zeros(1)]).cpu())


def _leading(vector: torch.Tensor) -> torch.Tensor:
    """Return the 15 leading bits of each magnitude, which order magnitudes as far as they go (int16)."""
    bits = vector.view(_BITS[vector.dtype])
    if bits.dtype == torch.int32:
        bits = bits.bitwise_right_shift(16).to(torch.int16)
    return bits.bitwise_and(BINS - 1)


def _threshold(tensor: torch.Tensor, base: torch.Tensor, above: torch.Tensor, kept: int) -> Above:
    chosen = int((above >= kept).sum()) - 1  # the bin of the smallest magnitude kept
    wanted = kept - int(above[chosen + 1])  # how many to keep of that bin

    def members(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        vector = tensor[start:stop] - base[start:stop]
        places = (_leading(vector) == chosen).nonzero().reshape(-1)
        return places + start, vector[places].abs()

    places, magnitudes = map(torch.cat, zip(*over_chunks(members, tensor.numel(), tensor.device), strict=True))
    if tensor.dtype == torch.float32:
        magnitude = magnitudes.kthvalue(magnitudes.numel() - wanted + 1).values
        wanted -= int((magnitudes > magnitude).sum())
        places = places[magnitudes == magnitude]
    else:
        magnitude = magnitudes[0]
    below = torch.nextafter(magnitude, torch.zeros_like(magnitude)) if magnitude > 0 else magnitude
    return Above(float(magnitude), float(below), int(places[wanted - 1]))
