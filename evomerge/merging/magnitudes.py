"""Keeping the largest entries of a task vector, at any density, without sorting it again.

What is prepared: for short vectors the rank of every entry; for long ones how many entries have which leading bits
of their magnitude. With those counts, the entries among which the threshold of a density lies are found by one pass;
in half precision all of them have the same magnitude. What lies between two ranks, the largest entries left out, is
found as two such cuts.

Exactly ⌊density · n⌋ entries are kept (at least one). Where equal magnitudes straddle the threshold, which is common
in half precision, the first of them are kept in long vectors; in short ones those that come first in torch's sort, as
mergekit has it, whatever the length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from evomerge.merging.chunks import over_chunks, piece_size
from evomerge.merging.state import PerEntry, state_class

SHORT = 1 << 18  # entries up to which vectors are sorted
FINE = 1 << 15  # entries among which a single one is looked for at once
BINS = 1 << 15  # numbers that the leading bits of a magnitude can be
# The integers that have as many bits as the numbers of a dtype.
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@state_class
class Ranks(NamedTuple):
    """For each entry, its place in the order of falling magnitude (int32, 0 = largest)."""

    rank: PerEntry


@state_class
class Counts(NamedTuple):
    """How many entries have which leading magnitude bits, as a number from 0 to BINS − 1, the entry's bin.

    ``above[b]`` counts those of bin b or more (int64, BINS + 1 numbers). In half precision, ``pieces[p, b − low]``
    counts those of bin b among the p-th ``step`` entries (int32; bins without entries are left out at both ends).
    """

    above: torch.Tensor
    pieces: torch.Tensor
    low: int
    step: int


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


@state_class
class Between(NamedTuple):
    """Keep what ``inner`` keeps but ``outer``, which keeps the larger entries among them, does not."""

    inner: First | Above | None
    outer: First | Above | None

    def cut(self, start: int, stop: int) -> Between:
        """Return the same for a stretch of entries."""
        return Between(*(None if part is None else part.cut(start, stop) for part in self))


Order = Ranks | Counts
Trim = First | Above | Between | None
Values = Callable[[int, int], torch.Tensor]  # (start, stop) → those numbers of a long vector


def magnitude_orders(tensors: Sequence[torch.Tensor], base: torch.Tensor, *, rising: bool = False) -> list[Order]:
    """Return what `trims` needs to know of each task vector; ``tensors`` and ``base`` are flat.

    Args:
        rising: sort short vectors from the smallest on, as mergekit does where the largest entries go.
    """
    return [order_of(difference(tensor, base), tensor.numel(), tensor.device, rising=rising) for tensor in tensors]


def difference(tensor: torch.Tensor, base: torch.Tensor) -> Values:
    """Return (start, stop) → those entries of ``tensor − base``."""
    return lambda start, stop: tensor[start:stop] - base[start:stop]


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


def keep_largest(tensor: torch.Tensor, base: torch.Tensor, order: Order, kept: int) -> First | Above | None:
    """Return how to keep the ``kept`` entries of largest magnitude of ``tensor − base``."""
    return largest(difference(tensor, base), base.numel(), base.device, order, kept)


def largest(values: Values, size: int, device: torch.device, order: Order, kept: int) -> First | Above | None:
    """Return how to keep the ``kept`` numbers of largest magnitude of ``size`` values, of which ``order`` tells."""
    if kept >= size:
        return None
    if isinstance(order, Ranks):
        return First(order.rank, kept)
    if kept == 0:
        return Above(math.inf, math.inf, -1)
    return _threshold(values, size, device, order, kept)


def keep_between(tensor: torch.Tensor, base: torch.Tensor, order: Order, skipped: int, kept: int) -> Trim:
    """Return how to keep the ``kept`` largest entries of ``tensor − base`` but for the ``skipped`` very largest."""
    inner = keep_largest(tensor, base, order, skipped + kept)
    return inner if skipped == 0 else Between(inner, keep_largest(tensor, base, order, skipped))


def trimmed(vector: torch.Tensor, trim: Trim) -> torch.Tensor:
    """Return the vector with the entries that are not kept set to zero; ``vector`` itself if all are."""
    if trim is None:
        return vector
    if isinstance(trim, Between):
        return trimmed(vector, trim.inner) - trimmed(vector, trim.outer)
    if isinstance(trim, First):
        return vector * (trim.rank.tensor.reshape(vector.shape) < trim.kept)
    split = min(max(trim.last + 1, 0), vector.numel())
    if split in (0, vector.numel()):
        return F.hardshrink(vector, trim.below if split else trim.magnitude)
    return torch.cat([F.hardshrink(vector[:split], trim.below), F.hardshrink(vector[split:], trim.magnitude)])


def order_of(values: Values, size: int, device: torch.device, *, rising: bool = False) -> Order:
    """Return the order of magnitudes of ``size`` values; see `magnitude_orders`."""
    if size <= SHORT:
        # Not `stable`: equal magnitudes then fall in the order that mergekit, which sorts the same way, takes them in.
        order = torch.argsort(values(0, size).abs().float(), descending=not rising)
        rank = torch.empty(order.shape, dtype=torch.int32, device=device)
        places = torch.arange(size, dtype=torch.int32, device=device)
        rank[order] = places.flip(0) if rising else places
        return Ranks(PerEntry(rank))
    return _counts(values, size, device)


def _counts(values: Values, size: int, device: torch.device) -> Counts:
    def counted(start: int, stop: int) -> tuple[int, int, torch.Tensor]:
        """Return the number of zeros, the lowest other bin, and the counts from there to the highest."""
        bins = torch.bincount(_leading(values(start, stop)), minlength=BINS).cpu()
        filled = bins[1:].nonzero()
        low, high = (int(filled[0]) + 1, int(filled[-1]) + 2) if len(filled) else (1, 1)
        return int(bins[0]), low, bins[low:high].to(torch.int32)

    parts = over_chunks(counted, size, device)
    low = min(start for _, start, _ in parts)
    pieces = torch.zeros(len(parts), max(start + len(counts) for _, start, counts in parts) - low, dtype=torch.int32)
    for row, (_, start, counts) in zip(pieces, parts, strict=True):
        row[start - low : start - low + len(counts)] = counts
    total = torch.zeros(BINS + 1, dtype=torch.int64)
    total[0] = sum(zeros for zeros, _, _ in parts)
    total[low : low + pieces.shape[1]] = pieces.sum(0, dtype=torch.int64)
    in_half = values(0, 0).dtype != torch.float32
    return Counts(total.flip(0).cumsum(0).flip(0), pieces if in_half else pieces[:0, :0], low, piece_size(device))


def _leading(vector: torch.Tensor) -> torch.Tensor:
    """Return the 15 leading bits of each magnitude, which order magnitudes as far as they go (int16)."""
    bits = vector.view(INTEGERS[vector.dtype])
    if bits.dtype == torch.int32:
        bits = bits.bitwise_right_shift(16).to(torch.int16)
    return bits.bitwise_and(BINS - 1)


def _threshold(values: Values, size: int, device: torch.device, counts: Counts, kept: int) -> Above | None:
    above = counts.above
    # The bin of the smallest magnitude kept: the last that has `kept` entries or more from it on.
    chosen = BINS - int(torch.searchsorted(above.flip(0), kept))
    wanted = kept - int(above[chosen + 1])  # how many to keep of that bin
    dtype = values(0, 0).dtype
    if dtype == torch.float32:
        return _threshold_within(values, size, device, chosen, wanted)
    if chosen == 0:  # what is left to be dropped is zero
        return None
    magnitude = torch.tensor(chosen, dtype=torch.int16).view(dtype)
    below = torch.tensor(chosen - 1, dtype=torch.int16).view(dtype)
    every = wanted == above[chosen] - above[chosen + 1]
    last = size if every else _nth_member(values, size, counts, chosen, wanted)
    return Above(float(magnitude), float(below), last)


def _nth_member(values: Values, size: int, counts: Counts, chosen: int, wanted: int) -> int:
    """Return the number of the entry that is the ``wanted``-th of the bin ``chosen``."""
    step, column = counts.step, counts.pieces[:, chosen - counts.low].tolist()
    pieces = [(n * step, min((n + 1) * step, size), count) for n, count in enumerate(column)]
    start, stop, wanted = _holder(pieces, wanted)
    distances = _leading(values(start, stop)).sub_(chosen)
    parts = [(n, n + FINE, _zeros(distances[n : n + FINE])) for n in range(0, len(distances), FINE)]
    begin, end, wanted = _holder(parts, wanted)
    return start + begin + int((distances[begin:end] == 0).nonzero()[wanted - 1])


def _holder(pieces: Iterable[tuple[int, int, int]], wanted: int) -> tuple[int, int, int]:
    """Return (start, stop) of the piece that holds the ``wanted``-th member, and which of its members that is.

    Args:
        pieces: (start, stop, number of members), in order.
        wanted: counted from 1.
    """
    for start, stop, count in pieces:
        if wanted <= count:
            return start, stop, wanted
        wanted -= count
    raise AssertionError("the counts speak of more entries than there are")


def _zeros(numbers: torch.Tensor) -> int:
    return numbers.numel() - int(torch.count_nonzero(numbers))


def _threshold_within(values: Values, size: int, device: torch.device, chosen: int, wanted: int) -> Above:
    """Return the threshold that keeps ``wanted`` entries of the bin ``chosen``, whose magnitudes differ."""

    def members(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        vector = values(start, stop)
        places = (_leading(vector) == chosen).nonzero().reshape(-1)
        return places + start, vector[places].abs()

    places, magnitudes = map(torch.cat, zip(*over_chunks(members, size, device), strict=True))
    magnitude = magnitudes.kthvalue(magnitudes.numel() - wanted + 1).values
    wanted -= int((magnitudes > magnitude).sum())
    last = int(places[magnitudes == magnitude][wanted - 1])
    below = torch.nextafter(magnitude, torch.zeros_like(magnitude)) if magnitude > 0 else magnitude
    return Above(float(magnitude), float(below), last)
