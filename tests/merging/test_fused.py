"""What is compiled gives the bits that the same methods give step by step."""

import itertools
import random

import pytest
import torch

from evomerge.merging import METHODS, fused
from evomerge.merging.chunks import CHUNK

pytestmark = pytest.mark.skipif(not fused.compiles("cpu"), reason="no C++ compiler")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
METHODS_FUSED = ("linear", "task_arithmetic", "slerp", "multislerp", "nuslerp", "karcher", "ties", "dare_ties")


def models(dtype: torch.dtype, count: int, size: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(size, generator=generator).mul_(0.02).to(dtype)
    shifts = [torch.randn(size, generator=generator).mul_(0.002) for _ in range(count)]
    return base, [(base.float() + shift).to(dtype) for shift in shifts]


def arguments(name: str, count: int, case: int) -> dict:
    numbers = random.Random(case)
    per_model = lambda low, high: [numbers.uniform(low, high) for _ in range(count)]  # noqa: E731
    density = [0.0, 1.0, *per_model(0.1, 0.9)][:count] if case == 0 else per_model(0.0, 1.0)
    return {
        "slerp": {"t": numbers.random()},
        "ties": {
            "weight": per_model(-0.5 if case == 1 else 0.1, 1.0),
            "density": density,
            "lambda": numbers.uniform(0.5, 1.5),
            "normalize": case != 2,
            "rescale": case == 1,
        },
        "dare_ties": {
            "weight": per_model(0.1, 1.0),
            "density": density,
            "lambda": numbers.uniform(0.5, 1.5),
            "normalize": case == 1,
            "rescale": case != 2,
        },
        "karcher": {},
    }.get(name, {"weight": per_model(0.1, 1.0)})


@pytest.mark.parametrize(("name", "dtype"), [*itertools.product(METHODS_FUSED, DTYPES)])
def test_the_same_bits_as_step_by_step(name, dtype):
    method = METHODS[name]
    assert method.fused
    count = {"slerp": 1, "nuslerp": 2}.get(name, 3)
    base, tensors = models(dtype, count, fused.LARGE + 13)
    base = base if method.takes_base else None
    for case in range(3):
        given = {**arguments(name, count, case), "seeds": list(range(count)) if method.randomised else None}
        whole = method(tensors, base, **given)
        assert not fused._failed
        steps = method(tensors, base, **given, chunk=CHUNK)
        assert torch.equal(whole, steps)
        assert whole.isfinite().all()


def test_no_compiler_is_no_error(monkeypatch, caplog):
    def broken(function):
        raise RuntimeError("inductor raised:\nno such compiler\nand much more")

    monkeypatch.setattr(fused, "_compiled", broken)
    monkeypatch.setattr(fused, "_failed", set())
    _, tensors = models(torch.bfloat16, 2, fused.LARGE)
    merged = METHODS["linear"](tensors, None, weight=[1.0, 1.0])
    assert torch.equal(merged, METHODS["linear"](tensors, None, weight=[1.0, 1.0], chunk=CHUNK))
    assert not fused.compiles("cpu")
    assert caplog.messages == [
        "merging step by step, which is slower: torch.compile failed: inductor raised: no such compiler"
    ]


def test_compiling_waits_until_it_pays(monkeypatch):
    monkeypatch.setattr(fused, "_merged", {})
    assert not fused.pays(fused.LARGE - 1, "cpu")
    assert not fused.pays(fused.WORTH, "cpu")
    assert fused.pays(fused.LARGE, "cpu")
