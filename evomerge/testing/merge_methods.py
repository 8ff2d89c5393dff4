"""What any merge method must pass. Subclass ``MergeMethodTestCase``, let its ``method`` fixture return yours.

class TestMine(MergeMethodTestCase):
    @pytest.fixture
    def method(self):
        return METHODS["mine"]
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evomerge.merging import MergeMethod
from evomerge.merging.method import Parameter

SHAPE = (12, 10)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return ``count`` tensors of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(count)]


def fine_tuned(
    shape: tuple[int, ...], count: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a base and ``count`` models near it, whose task vectors have part of their direction in common."""
    generator = torch.Generator().manual_seed(seed)
    base, shared = (torch.randn(shape, generator=generator) for _ in range(2))
    moves = [0.1 * (shared / 2 + torch.randn(shape, generator=generator)) for _ in range(count)]
    return base.to(dtype), [(base + move).to(dtype) for move in moves]


def others(method: MergeMethod) -> int:
    """Return how many tensors to give the method beside the base: three, or as many as it takes."""
    taken = 1 if method.needs_base else 0
    most = 3 if method.max_models is None else method.max_models - taken
    return max(1, min(3, most))


def statistics(shape: tuple[int, int] = SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random statistics of one model for a weight of (outputs, inputs), of every kind that there is."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    rows = [torch.randn(64, size, generator=generator) for size in shape]
    return {
        "fisher": torch.rand(shape, generator=generator),
        "fisher_size": torch.tensor(0.5, dtype=torch.float64),
        "gradient": rows[0].T @ rows[0] / 64,
        "gram": rows[1].T @ rows[1] / 64,
        "scale": rows[1].abs().mean(0, keepdim=True),
        "sample": rows[1].half(),
        "axis": torch.tensor(1),
        "loss": torch.rand((), dtype=torch.float64, generator=generator),
    }


def inputs(method: MergeMethod, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return tensors, base, seeds and statistics to call the method with."""
    base, *tensors = draw(1 + others(method), seed, dtype)
    seeds = tuple(range(len(tensors))) if method.randomised else None
    given: dict[str, Any] = {"tensors": tensors, "base": base if method.needs_base else None, "seeds": seeds}
    if method.statistics:
        found = [statistics(seed=index) for index in range(len(tensors))]
        given["statistics"] = [{kind: each[kind] for kind in method.statistics} for each in found]
    return given


def middle(parameter: Parameter) -> float | bool:
    """Return a value inside the range that a search would use; a switch keeps its default."""
    return parameter.default if parameter.kind == "bool" else (parameter.low + parameter.high) / 2


def values(method: MergeMethod) -> dict[str, Any]:
    """Return a value for every parameter of the method, the same for all models."""
    return {parameter.name: middle(parameter) for parameter in method.parameters}


class MergeMethodTestCase:
    """Laws of merge methods; each test takes the ``method`` fixture."""

    @pytest.fixture
    def method(self) -> MergeMethod:
        """The method under test: override this."""
        raise NotImplementedError("override the fixture `method`")

    def test_registration_is_documented(self, method: MergeMethod) -> None:
        assert method.summary
        assert method.paper
        assert method.formula
        assert all(parameter.description for parameter in method.parameters)
        assert method.others or method.kind != "matrix"

    def test_default_lies_in_the_range_worth_searching(self, method: MergeMethod) -> None:
        for parameter in method.parameters:
            assert parameter.low <= parameter.default <= parameter.high
            assert parameter.minimum is None or parameter.minimum <= parameter.low
            assert parameter.maximum is None or parameter.high <= parameter.maximum

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_shape_is_kept_and_the_result_is_as_precise_as_the_inputs(
        self, method: MergeMethod, dtype: torch.dtype
    ) -> None:
        merged = method(**inputs(method, dtype=dtype), **values(method))
        assert merged.shape == SHAPE
        assert merged.dtype in (dtype, torch.float32)
        assert merged.isfinite().all()

    def test_inputs_are_not_written_to(self, method: MergeMethod) -> None:
        given, untouched = inputs(method), inputs(method)
        method(**given, **values(method))
        assert all(map(torch.equal, given["tensors"], untouched["tensors"]))
        assert given["base"] is None or torch.equal(given["base"], untouched["base"])

    def test_same_call_gives_the_same_bits(self, method: MergeMethod) -> None:
        first, second = (method(**inputs(method), **values(method)) for _ in range(2))
        assert torch.equal(first, second)

    def test_global_random_state_is_neither_read_nor_written(self, method: MergeMethod) -> None:
        before = torch.get_rng_state()
        first = method(**inputs(method), **values(method))
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            assert torch.equal(method(**inputs(method), **values(method)), first)

    def test_what_is_prepared_changes_no_bit(self, method: MergeMethod) -> None:
        given = inputs(method)
        prepared = method.prepared_for(**given)
        again = [method(**given, prepared=prepared, **values(method)) for _ in range(2)]
        assert torch.equal(again[0], method(**given, **values(method)))
        assert torch.equal(again[0], again[1])  # the first call left the preparation as it was

    def test_identical_models_give_that_model(self, method: MergeMethod) -> None:
        given = inputs(method)
        tensor = given["tensors"][0]
        given["tensors"] = [tensor] * len(given["tensors"])
        given["base"] = tensor if method.needs_base else None
        settings = {**values(method), **{p.name: p.default for p in method.parameters if not p.required}}
        assert torch.allclose(method(**given, **settings).float(), tensor, atol=1e-6)

    def test_order_of_models_does_not_matter_where_all_have_the_same_numbers(self, method: MergeMethod) -> None:
        if method.ordered:
            pytest.skip("says that the order of its models has a meaning")
        given = inputs(method)
        backwards = {**given, "tensors": given["tensors"][::-1]}
        backwards |= {name: given[name][::-1] for name in ("seeds", "statistics") if given.get(name)}
        merged, reversed_merge = (method(**each, **values(method)) for each in (given, backwards))
        # Singular vectors in another order carry the rounding of the smallest singular value.
        assert torch.allclose(merged, reversed_merge, atol=1e-4 if method.kind == "matrix" else 1e-6)

    def test_elementwise_methods_do_not_depend_on_chunks(self, method: MergeMethod) -> None:
        if method.kind != "elementwise":
            pytest.skip("only methods that work element by element are cut into chunks")
        whole = method(**inputs(method), **values(method))
        for chunk in (1, 7, 64):
            assert torch.equal(method(**inputs(method), **values(method), chunk=chunk), whole)

    def test_ends_of_the_ranges_and_zeros_give_finite_numbers(self, method: MergeMethod) -> None:
        given = inputs(method)
        for end in ("low", "high"):
            numbers = {p.name: getattr(p, end) for p in method.parameters if p.kind == "float"}
            assert method(**given, **{**values(method), **numbers}).isfinite().all()
        zeros = [torch.zeros(SHAPE) for _ in given["tensors"]]
        base = torch.zeros(SHAPE) if method.needs_base else None
        assert method(**{**given, "tensors": zeros, "base": base}, **values(method)).isfinite().all()
        smallest = {p.name: p.minimum for p in method.parameters if p.minimum is not None}
        assert method(**given, **{**values(method), **smallest}).isfinite().all()

    @pytest.mark.parametrize("shape", [(), (1,), (0, 4), (1, 7), (2, 3, 4), (2, 9, 8), (2, 3, 2, 2)], ids=str)
    def test_tensors_of_any_shape_are_merged(self, method: MergeMethod, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(1)
        tensors = [torch.randn(shape, generator=generator) for _ in range(others(method))]
        base = torch.randn(shape, generator=generator) if method.needs_base else None
        seeds = tuple(range(len(tensors))) if method.randomised else None
        merged = method(tensors, base, seeds=seeds, **values(method))
        assert merged.shape == shape
        assert math.isfinite(float(merged.sum()))
