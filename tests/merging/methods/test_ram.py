"""RAM and RAM+ entry by entry."""

import pytest
import torch

from evomerge.merging import METHODS, chunks

RAM, PLUS = METHODS["ram"], METHODS["ramplus_tl"]


def sparse(count, seed, size=300):
    """Return a base and models that changed part of it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    changes = [
        torch.randn(size, generator=generator) * (torch.rand(size, generator=generator) < 0.3) for _ in range(count)
    ]
    return base, [base + change for change in changes]


def naive(base, models, epsilon, r=0.0, alpha=0.0):
    """The definition on Python numbers."""
    rows = [[d if abs(d) > epsilon else 0.0 for d in (m - base).double().tolist()] for m in models]
    counts = [sum(d != 0 for d in column) for column in zip(*rows, strict=True)]
    factors = []
    for row in rows:
        shared = sum(d != 0 and n > 1 for d, n in zip(row, counts, strict=True))
        own = sum(d != 0 and n == 1 for d, n in zip(row, counts, strict=True))
        factors.append(1 + r * min(alpha, shared / max(own, 1e-5)))
    merged = [
        sum(f * d for f, d in zip(factors, column, strict=True)) if n == 1 else sum(column) / max(n, 1)
        for column, n in zip(zip(*rows, strict=True), counts, strict=True)
    ]
    return base.double() + torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_own_changes_are_kept_and_shared_ones_averaged(count, epsilon):
    base, models = sparse(count, seed=count)
    assert torch.allclose(RAM(models, base, epsilon=epsilon).double(), naive(base, models, epsilon), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 5.0])
def test_own_changes_grow_with_the_share_of_the_others(monkeypatch, count, alpha):
    monkeypatch.setattr(chunks, "CHUNK", 40)
    base, models = sparse(count, seed=count)
    merged = PLUS(models, base, r=0.7, alpha=alpha, epsilon=1e-5, chunk=77)
    assert torch.allclose(merged.double(), naive(base, models, 1e-5, 0.7, alpha), atol=1e-6)


def test_models_that_share_every_change_have_none_to_enlarge():
    base, (model,) = sparse(1, seed=9)
    assert torch.allclose(PLUS([model, model], base, r=1.0, alpha=0.5), model, atol=1e-6)
    assert torch.equal(PLUS([base, base], base), base)
