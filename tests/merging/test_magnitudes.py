"""Trimming by counts keeps exactly what sorting all entries keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import chunks, magnitudes
from evomerge.merging.magnitudes import Counts, Ranks, keep_largest, kept_entries, magnitude_orders, trimmed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def long_vectors(monkeypatch):
    """Count instead of sorting, in small chunks, however short the vector."""
    monkeypatch.setattr(magnitudes, "SHORT", 0)
    monkeypatch.setattr(chunks, "CHUNK", 64)


def kept_by_sorting(vector, kept):
    """Return the vector with all but the first `kept` of a stable sort by falling magnitude set to zero."""
    order = torch.sort(vector.abs().double(), descending=True, stable=True).indices
    result = torch.zeros_like(vector)
    result[order[:kept]] = vector[order[:kept]]
    return result


def cut_down(tensor, base, density):
    (order,) = magnitude_orders([tensor], base)
    assert isinstance(order, Counts)
    trim = keep_largest(tensor, base, order, kept_entries(density, base.numel()))
    pieces = chunks.over_chunks(
        lambda start, stop: trimmed(tensor[start:stop] - base[start:stop], trim and trim.cut(start, stop)), base.numel()
    )
    return torch.cat(pieces)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 500),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    levels=st.sampled_from([0, 1, 3, 40]),
)
def test_counting_keeps_what_sorting_keeps(seed, size, density, dtype, levels):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator).to(dtype)
    noise = torch.randn(size, generator=generator)
    if levels:  # few magnitudes, many of them equal, zero among them
        base, noise = torch.zeros(size, dtype=dtype), (noise * levels).round() / levels
    tensor = (base.float() + noise).to(dtype)
    expected = kept_by_sorting(tensor - base, kept_entries(density, size))
    assert torch.equal(cut_down(tensor, base, density), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_short_vectors_are_cut_to_the_same_number_of_entries(monkeypatch, dtype):
    monkeypatch.setattr(magnitudes, "SHORT", 1 << 18)
    tensor, base = (torch.randn(999, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    (order,) = magnitude_orders([tensor], base)
    assert isinstance(order, Ranks)
    for density in (0.0, 0.001, 0.37, 0.999, 1.0):
        kept = kept_entries(density, 999)
        vector = trimmed(tensor - base, keep_largest(tensor, base, order, kept))
        assert int((vector != 0).sum()) == min(kept, int((tensor != base).sum()))


def test_infinities_and_zeros_have_their_place():
    base = torch.zeros(4)
    tensor = torch.tensor([0.0, float("inf"), -0.0, -1e-45])
    assert cut_down(tensor, base, 0.5).tolist() == [0.0, float("inf"), 0.0, torch.tensor(-1e-45).item()]
