"""Methods' arithmetic in one pass over their inputs, compiled by torch.compile, with the same bits as step by step.

Step by step, each operation goes over its piece again; compiled, sums of models run as fast as memory is read, and
sign elections several times faster than before. Compiling takes seconds, once in a process, so it waits until a
process has merged enough for that to pay; without a compiler (for a GPU, Triton) everything goes step by step.

The bits are the same because every rounding is written down: a cast where the methods compute in the inputs' dtype,
a fused multiply-add where torch's ``add`` with ``alpha`` is one.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

log = logging.getLogger(__name__)

LARGE = 1 << 20  # entries that are worth calling a compiled function for
WORTH = 1 << 28  # entries that a process merges step by step before it compiles

_merged: dict[str, int] = {}  # kind of device → entries of large tensors merged so far
_failed: set[str] = set()  # kinds of devices that compiling did not work for


class Trimmed(NamedTuple):
    """Keep magnitudes above ``high``, up to entry number ``last`` those above ``low`` too; then multiply by ``scale``.

    Tensors without dimensions, float32; ``last`` int32.
    """

    low: torch.Tensor
    high: torch.Tensor
    last: torch.Tensor
    scale: torch.Tensor


class Dropped(NamedTuple):
    """Keep the entries whose draw (int32) is below ``bound`` (int32); then divide by ``density`` (float32)."""

    draws: torch.Tensor
    bound: torch.Tensor
    density: torch.Tensor


def compiles(device: str) -> bool:
    """Return whether functions can be compiled for this kind of device here."""
    return device not in _failed and _has_compiler(device)


def pays(size: int, device: str) -> bool:
    """Return whether to merge a tensor of ``size`` entries by compiled functions; counts what it is asked about."""
    if size < LARGE or not compiles(device):
        return False
    _merged[device] = _merged.get(device, 0) + size
    return _merged[device] > WORTH


def fits(piece: torch.Tensor) -> bool:
    """Return whether a piece is long enough for the compiled functions, and can have them."""
    return piece.numel() >= LARGE and compiles(piece.device.type)


def trim(device: torch.device, low: float, high: float, last: int, scale: float) -> Trimmed:
    """Return the numbers as tensors on ``device``."""
    numbers = torch.tensor([low, high, scale], device=device)
    limit = torch.tensor(min(max(last, -1), torch.iinfo(torch.int32).max), dtype=torch.int32, device=device)
    return Trimmed(numbers[0], numbers[1], limit, numbers[2])


def drop(device: torch.device, draws: torch.Tensor, bound: int, density: float) -> Dropped:
    """Return the numbers as tensors on ``device``."""
    limit = torch.tensor(bound, dtype=torch.int32, device=device)
    return Dropped(draws.to(device).int(), limit, torch.tensor(density, device=device))


def weighted(tensors: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor | None:
    """Return Σ sᵢ θᵢ in float32; None where compiling fails."""
    return _call(_weighted, list(tensors), torch.tensor(scales, device=tensors[0].device))


def elected(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    cuts: Sequence[Trimmed | Dropped],
    weights: Sequence[float],
    normalize: bool,
    factor: float,
) -> torch.Tensor | None:
    """Return `elected_sum` of the task vectors after these cuts, in float32; None where compiling fails."""
    numbers = torch.tensor([factor, *weights], device=base.device)
    return _call(_elected, base, list(tensors), list(cuts), numbers, normalize)


def _weighted(tensors: list[torch.Tensor], scales: torch.Tensor) -> torch.Tensor:
    total = tensors[0].float() * scales[0]
    for number in range(1, len(tensors)):
        total = torch.ops.prims.fma(tensors[number].float(), scales[number].expand_as(total), total)
    return total


def _elected(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    cuts: list[Trimmed | Dropped],
    numbers: torch.Tensor,
    normalize: bool,
) -> torch.Tensor:
    dtype, start, factor = base.dtype, base.float(), numbers[0]
    weights = numbers[1:].to(dtype).float()
    terms = []
    for number, (tensor, each) in enumerate(zip(tensors, cuts, strict=True)):
        vector = _rounded(tensor.float() - start, dtype)
        if isinstance(each, Trimmed):
            entries = torch.arange(base.numel(), dtype=torch.int32, device=base.device)
            kept = vector.abs() > torch.where(entries <= each.last, each.low, each.high)
            vector = torch.where(kept, vector, 0.0) * each.scale
        else:
            vector = torch.where(each.draws < each.bound, vector, 0.0) / each.density
        terms.append(_rounded(_rounded(vector, dtype) * weights[number], dtype))
    total = _sum(terms)
    if dtype == torch.float16:
        total = _rounded(total, dtype)
    winner = torch.copysign(torch.ones_like(total), total + 0.0)
    agreeing = [torch.relu(term * winner) for term in terms]
    mixed = _sum(agreeing)
    if normalize:
        divisor = _sum([torch.where(term > 0, weights[number], 0.0) for number, term in enumerate(agreeing)])
        mixed = mixed / torch.where(divisor == 0, 1.0, divisor)
    return start + factor * mixed * winner


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).float()


def _sum(terms: list[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _call(function: Callable[..., torch.Tensor], first: Any, *others: Any) -> torch.Tensor | None:
    device = (first if isinstance(first, torch.Tensor) else first[0]).device.type
    if device in _failed:
        return None
    try:
        # One version for each dtype, number of models and way of cutting; torch keeps 8 unless told otherwise.
        with warnings.catch_warnings(), torch.no_grad(), torch._dynamo.config.patch(recompile_limit=64):
            warnings.simplefilter("ignore")  # torch's own, about its own parts
            return _compiled(function)(first, *others)
    except Exception as error:  # whatever compilers and drivers raise: the way step by step is as good, only slower
        _failed.add(device)
        log.warning("merging step by step, which is slower: torch.compile failed: %s", _reason(error))
        return None


@cache
def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    import torch._inductor.inductor_prims  # registers torch.ops.prims.fma

    return torch.compile(function, dynamic=True, fullgraph=True, options={"emulate_precision_casts": True})


@cache
def _has_compiler(device: str) -> bool:
    if device == "cpu":
        return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
    return device == "cuda" and find_spec("triton") is not None


def _reason(error: Exception) -> str:
    """Return the first two lines: with torch the first only says which part of it failed."""
    return " ".join(str(error).splitlines()[:2]) or type(error).__name__
