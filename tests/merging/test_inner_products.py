"""Scalar products of whole tensors and of their lines, against float64 written out."""

import pytest
import torch

from evomerge.merging import chunks
from evomerge.merging.inner_products import COLUMNS, ROWS, combined, line_products, per_line, products
from evomerge.testing.merge_methods import fine_tuned

SHAPES = [(), (1,), (13,), (5, 7), (1, 9), (9, 1), (3, 4, 5), (2, 3, 2, 4)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 16)


def lines(tensor, dimension):
    """Return the lines of a tensor: (lines, length), in the order of their first entries."""
    if tensor.dim() == 0:
        return tensor.reshape(1, 1)
    return tensor.movedim(dimension, -1).reshape(-1, tensor.shape[dimension])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_base", [False, True])
def test_products_of_wholes(shape, with_base):
    base, models = fine_tuned(shape, 3)
    flat = [model.reshape(-1) for model in models]
    found = products(flat, base.reshape(-1) if with_base else None)
    vectors = [m.double() - base.double() if with_base else m.double() for m in models]
    for i in range(3):
        for j in range(3):
            assert found[i][j] == pytest.approx(float((vectors[i] * vectors[j]).sum()), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dimension", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("with_base", [False, True])
def test_products_of_lines(shape, dimension, with_base):
    base, models = fine_tuned(shape, 3)
    flat = [model.reshape(-1) for model in models]
    found = line_products(flat, base.reshape(-1) if with_base else None, shape, dimension)
    vectors = [lines(m.double() - base.double() if with_base else m.double(), dimension) for m in models]
    expected = [(vectors[i] * vectors[j]).sum(-1) for i in range(3) for j in range(i + 1)]
    assert torch.allclose(found, torch.stack(expected, -1), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dimension", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_every_entry_has_its_lines_number(shape, dimension):
    tensor = torch.randn(shape)
    sums = lines(tensor, dimension).sum(-1)
    spread = tensor.sum(dimension, keepdim=True).expand(shape).reshape(-1) if shape else tensor.reshape(-1)
    numbers = per_line(sums, shape, dimension)
    size = tensor.numel()
    for step in (1, 3, 4, 7, size):
        parts = [numbers.cut(start, min(start + step, size)) for start in range(0, size, step)]
        assert torch.allclose(torch.cat(parts), spread)


def test_empty_tensors_have_no_lines():
    empty = [torch.empty(0), torch.empty(0)]
    assert line_products(empty, None, (0, 4), ROWS).shape == (0, 3)
    assert per_line(torch.empty(0), (0, 4), ROWS).cut(0, 0).numel() == 0
    assert products(empty) == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_combined_is_the_weighted_sum(dtype):
    base, models = fine_tuned((50,), 3, dtype=dtype)
    shares = [0.3, -0.4, 1.2]
    summed = sum(s * m.double() for s, m in zip(shares, models, strict=True))
    on_base = base.double() + sum(s * (m.double() - base.double()) for s, m in zip(shares, models, strict=True))
    assert torch.allclose(combined(models, None, shares).double(), summed, atol=1e-6)
    assert torch.allclose(combined(models, base, shares).double(), on_base, atol=1e-6)
