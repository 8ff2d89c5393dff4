"""Laws that hold for all numbers, and the papers' definitions written out naively in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.testing.merge_methods import draw

weights = st.lists(st.floats(-2, 2), min_size=3, max_size=3)
shares = st.floats(0, 1)
seeds = st.integers(0, 1000)
densities = st.lists(st.floats(0, 1), min_size=3, max_size=3)


def close(ours, expected, scale=1.0):
    return torch.allclose(ours.double(), expected, rtol=1e-5, atol=2e-6 * max(1.0, scale))


@given(weights, seeds)
def test_linear_is_the_weighted_sum(weight, seed):
    tensors = draw(3, seed)
    expected = sum(w * t.double() for w, t in zip(weight, tensors, strict=True))
    assert close(METHODS["linear"](tensors, weight=weight, normalize=False), expected, sum(map(abs, weight)))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.floats(0.1, 10), seeds)
def test_normalised_linear_does_not_depend_on_the_scale_of_the_weights(weight, factor, seed):
    tensors = draw(3, seed)
    scaled = METHODS["linear"](tensors, weight=[factor * w for w in weight])
    assert torch.allclose(METHODS["linear"](tensors, weight=weight), scaled, atol=1e-5)


def test_linear_with_all_weights_zero_is_the_mean_and_cancelling_weights_are_refused():
    tensors = draw(2)
    mean = METHODS["linear"](tensors, weight=[0.0, 0.0])
    assert torch.allclose(mean, (tensors[0] + tensors[1]) / 2)
    with pytest.raises(MergeError, match=r"\[1.0, -1.0\] sum to zero; change them or set normalize: false"):
        METHODS["linear"](tensors, weight=[1.0, -1.0])


@given(shares, seeds)
def test_slerp_follows_the_arc(t, seed):
    base, other = draw(2, seed)
    first, second = base.double().flatten(), other.double().flatten()
    angle = math.acos(float(first @ second / first.norm() / second.norm()))
    expected = (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)
    assert close(METHODS["slerp"]([other], base, t=t), expected.reshape(base.shape))


@given(seeds)
def test_slerp_ends_at_its_models(seed):
    base, other = draw(2, seed)
    assert torch.allclose(METHODS["slerp"]([other], base, t=0.0), base, atol=1e-6)
    assert torch.allclose(METHODS["slerp"]([other], base, t=1.0), other, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0], ids=["parallel", "opposite", "zero"])
def test_slerp_of_tensors_without_an_arc_is_finite(factor):
    (base,) = draw(1)
    merged = METHODS["slerp"]([factor * base], base, t=0.25)
    if factor:
        assert torch.allclose(merged, (0.75 + 0.25 * factor) * base)
    assert merged.isfinite().all()


@given(weights, st.floats(-2, 2), seeds)
def test_task_arithmetic_adds_weighted_task_vectors(weight, scale, seed):
    base, *tensors = draw(4, seed)
    vectors = [t.double() - base.double() for t in tensors]
    expected = base.double() + scale * sum(w * v for w, v in zip(weight, vectors, strict=True))
    merged = METHODS["task_arithmetic"](tensors, base, weight=weight, **{"lambda": scale})
    assert close(merged, expected, 4 * sum(map(abs, weight)))


@given(st.lists(st.floats(0.01, 2), min_size=3, max_size=3), densities, seeds)
def test_ties_trims_elects_and_averages_those_that_agree(weight, density, seed):
    base, *tensors = draw(4, seed)
    assert close(METHODS["ties"](tensors, base, weight=weight, density=density), ties(base, tensors, weight, density))


def ties(base, tensors, weight, density):
    """Yadav et al. 2023, Algorithm 1, entry by entry, with weights; in float64."""
    vectors = [(t.double() - base.double()).flatten() for t in tensors]
    for vector, share in zip(vectors, density, strict=True):
        kept = max(1, int(share * len(vector))) if share > 0 else 0
        dropped = vector.abs().argsort(descending=True)[kept:]
        vector[dropped] = 0
    merged = []
    for entries in zip(*(vector.tolist() for vector in vectors), strict=True):
        terms = [(w * entry, w) for w, entry in zip(weight, entries, strict=True)]
        sign = 1 if sum(term for term, _ in terms) >= 0 else -1
        agreeing = [(term, w) for term, w in terms if term * sign > 0]
        merged.append(sum(t for t, _ in agreeing) / sum(w for _, w in agreeing) if agreeing else 0.0)
    return base.double() + torch.tensor(merged, dtype=torch.float64).reshape(base.shape)


@given(weights, seeds)
def test_ties_of_one_untrimmed_model_is_task_arithmetic(weight, seed):
    base, tensor = draw(2, seed)
    numbers = {"weight": weight[0], "normalize": False}
    elected, summed = (METHODS[name]([tensor], base, **numbers) for name in ("ties", "task_arithmetic"))
    assert torch.allclose(elected, summed, atol=1e-5)


@given(st.floats(0.05, 1), seeds)
def test_ties_keeps_the_largest_entries(density, seed):
    base, tensor = torch.zeros(12, 10), draw(1, seed)[0]
    kept = METHODS["ties"]([tensor], base, weight=1.0, density=density)
    count = max(1, int(density * 120))
    assert int((kept != 0).sum()) == count
    assert kept.abs()[kept != 0].min() >= tensor.abs()[kept == 0].max() if count < 120 else True


def test_rescaled_ties_keeps_the_norm_of_the_task_vector():
    base, tensor = torch.zeros(12, 10), draw(1)[0]
    merged = METHODS["ties"]([tensor], base, weight=1.0, density=0.3, rescale=True)
    assert merged.abs().sum() == pytest.approx(tensor.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "task_arithmetic"])
@pytest.mark.parametrize("numbers", [{"weight": 0.0}, {"weight": 0.5, "density": 0.0}], ids=["weight", "density"])
@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_kept_or_nothing_weighed_gives_the_base(method, numbers, normalize):
    if method == "task_arithmetic" and "density" in numbers:
        pytest.skip("task arithmetic has no density")
    base, *tensors = draw(4)
    merged = METHODS[method](tensors, base, seeds=(1, 2, 3), normalize=normalize, **numbers)
    assert torch.equal(merged, base)


@given(st.floats(0.05, 1), st.floats(0.05, 1), seeds)
def test_a_higher_density_of_dare_keeps_what_a_lower_one_kept(first, second, seed):
    base, tensor = torch.zeros(12, 10), draw(1, seed)[0]
    low, high = (
        METHODS["dare_linear"]([tensor], base, seeds=[seed], weight=1.0, density=d) != 0
        for d in sorted((first, second))
    )
    assert not (low & ~high).any()


def test_dare_keeps_the_share_asked_for_and_the_mean():
    base, ones = torch.zeros(400, 500), torch.ones(400, 500)
    for density in (0.1, 0.5, 0.9):
        merged = METHODS["dare_linear"]([ones], base, seeds=[3], weight=1.0, density=density)
        deviation = math.sqrt(density * (1 - density) / 200_000)
        assert float((merged != 0).float().mean()) == pytest.approx(density, abs=5 * deviation)
        assert merged.unique().tolist() == [0.0, pytest.approx(1 / density)]
        assert float(merged.mean()) == pytest.approx(1.0, abs=5 * deviation / density)


def test_dare_draws_depend_on_the_seed_and_only_on_it():
    base, tensor = torch.zeros(12, 10), draw(1)[0]
    merged = [METHODS["dare_linear"]([tensor], base, seeds=[s], weight=1.0, density=0.5) for s in (1, 1, 2)]
    assert torch.equal(merged[0], merged[1])
    assert not torch.equal(merged[0], merged[2])
    with pytest.raises(MergeError, match="one seed per tensor, 1 of them"):
        METHODS["dare_linear"]([tensor], base, weight=1.0)
