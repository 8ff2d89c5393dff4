"""nuslerp, multislerp and karcher against their definitions in float64."""

import math

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS, Parents, check_recipe, merge_tensors
from evomerge.recipes import Recipe
from evomerge.testing.merge_methods import fine_tuned
from evomerge.testing.tiny_models import tiny_family

NUSLERP, MULTISLERP, KARCHER = (METHODS[name] for name in ("nuslerp", "multislerp", "karcher"))
SHAPES = [(), (11,), (6, 9), (4, 3, 5), (4, 3, 2, 2)]


def arc(t, first, second):
    """Shoemake 1985 on two vectors, with lengths."""
    cosine = float(first @ second / first.norm() / second.norm())
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return (1 - t) * first + t * second
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def along(function, dimension, *tensors):
    """Apply a function on vectors to the lines of tensors along one dimension."""
    if tensors[0].dim() == 0:
        return function(*(t.reshape(1) for t in tensors)).reshape(())
    moved = [t.movedim(dimension, -1) for t in tensors]
    rows = [t.reshape(-1, t.shape[-1]) for t in moved]
    return (
        torch.stack([function(*row) for row in zip(*rows, strict=True)]).reshape(moved[0].shape).movedim(-1, dimension)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("by", ["whole", "rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nuslerp_follows_the_arc(shape, with_base, by, dtype):
    base, models = fine_tuned(shape, 2, seed=3, dtype=dtype)
    start = base.double() if with_base else torch.zeros(shape, dtype=torch.float64)
    vectors = [m.double() - start for m in models]
    t = 0.9 / 1.2
    if by == "whole":
        expected = arc(t, *(v.reshape(-1) for v in vectors)).reshape(shape)
    else:
        expected = along(lambda *row: arc(t, *row), -1 if by == "rows" else 0, *vectors)
    merged = NUSLERP(
        models,
        base if with_base else None,
        weight=[0.3, 0.9],
        nuslerp_flatten=by == "whole",
        nuslerp_row_wise=by == "columns",
        chunk=5,
    )
    assert torch.allclose(merged.double(), start + expected, atol=2e-6)


def test_nuslerp_of_weights_that_cancel_is_the_middle_of_the_arc():
    _, models = fine_tuned((20,), 2)
    assert torch.equal(NUSLERP(models, weight=[0.5, -0.5]), NUSLERP(models, weight=[1.0, 1.0]))


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0], ids=["parallel", "opposite", "zero"])
@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_without_an_arc_is_finite_and_linear_where_there_is_a_line(factor, flatten):
    _, (model,) = fine_tuned((8, 6), 1)
    merged = NUSLERP([model, factor * model], weight=[0.75, 0.25], nuslerp_flatten=flatten)
    assert merged.isfinite().all()
    if factor:
        assert torch.allclose(merged, (0.75 + 0.25 * factor) * model, atol=1e-6)


def test_nuslerp_refuses_a_third_model_and_keeps_a_single_one():
    _, models = fine_tuned((8,), 3)
    with pytest.raises(MergeError, match=r"nuslerp merges two models \(beside a base\), here are 3"):
        NUSLERP(models, weight=1.0)
    assert torch.equal(NUSLERP(models[:1], weight=1.0), models[0])


def naive_multislerp(vectors, weights):
    """Goddard 2025: to the tangent plane at the mean of directions, average there, and back."""
    lengths = [v.norm() for v in vectors]
    units = [v / length for v, length in zip(vectors, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    angle = tangent.norm() + 1e-8
    point = mean * torch.cos(angle) + tangent * torch.sin(angle) / angle
    return point * sum(w * length for w, length in zip(weights, lengths, strict=True))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_multislerp_goes_through_the_tangent_plane(count, with_base, normalize):
    base, models = fine_tuned((60,), count, seed=count)
    start = base.double() if with_base else torch.zeros(60, dtype=torch.float64)
    weight = [0.2, 0.7, 1.1, 0.4, 0.3][:count]
    used = [w / sum(weight) for w in weight] if normalize else weight
    expected = start + naive_multislerp([m.double() - start for m in models], used)
    merged = MULTISLERP(models, base if with_base else None, weight=weight, normalize_weights=normalize)
    assert torch.allclose(merged.double(), expected, atol=1e-5)


def test_multislerp_where_directions_cancel_is_the_weighted_sum():
    base, (model,) = fine_tuned((30,), 1)
    third = torch.zeros_like(base)
    for models in ([model, -model], [model, -model, third], [third, third, third]):
        assert torch.allclose(MULTISLERP(models, weight=1.0), sum(models) / len(models), atol=1e-6)
    assert torch.allclose(MULTISLERP([base] * 3, base, weight=1.0), base, atol=1e-6)  # nothing was fine-tuned
    with pytest.raises(MergeError, match=r"multislerp: the weights .* set normalize_weights: false"):
        MULTISLERP([model, base], weight=[1.0, -1.0])


def naive_karcher(vectors, steps):
    """Karcher 1977: gradient descent on the sphere, in the vectors' own space."""
    lengths = [v.norm() for v in vectors]
    units = [v / length for v, length in zip(vectors, lengths, strict=True)]
    mean = sum(units)
    mean = mean / mean.norm()
    for _ in range(steps):
        tangent = torch.zeros_like(mean)
        for unit in units:
            angle = torch.acos((mean @ unit).clamp(-1, 1))
            if angle > 1e-9:
                tangent += angle / torch.sin(angle) * (unit - (mean @ unit) * mean) / len(units)
        if (step := tangent.norm()) < 1e-14:
            break
        mean = torch.cos(step) * mean + torch.sin(step) * tangent / step
        mean = mean / mean.norm()
    return mean * sum(lengths) / len(lengths)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("apart", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_karcher_descends_to_the_mean(count, apart, steps):
    generator = torch.Generator().manual_seed(count)
    start = torch.randn(40, generator=generator)
    models = [start + apart * torch.randn(40, generator=generator) for _ in range(count)]
    expected = naive_karcher([m.double() for m in models], steps)
    merged = KARCHER(models, max_iter=steps, tol=0.0)
    assert torch.allclose(merged.double(), expected, atol=3e-6 * float(expected.abs().max()))


def test_karcher_mean_is_where_the_squared_angles_are_smallest():
    generator = torch.Generator().manual_seed(5)
    models = [torch.randn(3, generator=generator).abs() for _ in range(3)]
    mean = KARCHER(models, max_iter=50, tol=0.0).double()

    def cost(point):
        return sum(torch.acos((point @ m.double()) / point.norm() / m.double().norm()) ** 2 for m in models)

    moved = [mean + 0.01 * torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(50)]
    assert all(cost(mean) <= cost(point) for point in moved)
    lengths = torch.stack([m.norm() for m in models])
    assert float(mean.norm()) == pytest.approx(float(lengths.mean()), rel=1e-6)


def test_karcher_of_models_without_a_mean_direction_is_finite():
    _, (model,) = fine_tuned((20,), 1)
    zero = torch.zeros(20)
    assert torch.equal(KARCHER([zero, zero]), zero)
    assert torch.allclose(KARCHER([model, zero]), model / 2, atol=1e-6)  # as in mergekit: zero counts in the length
    assert KARCHER([model, -model]).isfinite().all()
    assert torch.equal(KARCHER([model]), model)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    paths = tiny_family(tmp_path_factory.mktemp("family"))
    return {name: str(path) for name, path in paths.items()}


def recipe(method, models, **fields):
    weight = {"parameters": {"weight": 0.5}}
    return Recipe.model_validate({"merge_method": method, "models": [{"model": m, **weight} for m in models], **fields})


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_a_base_is_the_origin_if_the_recipe_names_one(family, method):
    models = [family["a"], family["b"]]
    parents = Parents.open(list(family.values()))
    plain, on_base = recipe(method, models), recipe(method, models, base_model=family["base"])
    assert check_recipe(plain, parents) == check_recipe(on_base, parents) == []
    name = "model.layers.0.mlp.up_proj.weight"
    base, *tensors = (parents.tensor(model, name) for model in (family["base"], *models))
    for used, origin in ((plain, None), (on_base, base)):
        expected = METHODS[method](tensors, origin, weight=0.5)
        assert torch.equal(dict(merge_tensors(used, parents))[name], expected)


def test_models_are_counted_beside_the_base(family):
    parents = Parents.open(list(family.values()))
    for fields in ({}, {"base_model": family["base"]}):
        (problem,) = check_recipe(recipe("nuslerp", [family["a"], family["b"], family["c"]], **fields), parents)
        assert "nuslerp merges exactly 2 models beside the base, this recipe has 3" in str(problem)
    alone = recipe("nuslerp", [family["a"]], base_model=family["base"])
    assert "this recipe has 1" in str(check_recipe(alone, parents))


def test_slices_must_name_a_base_that_is_the_origin(family):
    sources = [{"model": family[n], "layer_range": [0, 2], "parameters": {"weight": 0.5}} for n in "ab"]
    fields = {"merge_method": "nuslerp", "base_model": family["base"], "slices": [{"sources": sources}]}
    problems = check_recipe(Recipe.model_validate(fields), Parents.open(list(family.values())))
    assert any("is not among the sources of this slice" in str(problem) for problem in problems)
