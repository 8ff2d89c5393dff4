"""Crossovers and mutations of models: M2N2's split-point slerp and CycleQD's, against the authors' code.

The values of `population_searchers.json` are what that code makes of the same numbers (see the script beside it).
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS, InPlaceMerger, Parents, merge_tensors, merge_to_folder
from evomerge.merging.method import Place
from evomerge.merging.methods.cycle_qd import grown
from evomerge.merging.methods.m2n2 import arc_shares, pair_products
from evomerge.merging.normals import BLOCK, Normals, uniform
from evomerge.merging.tensors import model_sums
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

M2N2, CYCLE_QD = METHODS["m2n2"], METHODS["cycle_qd"]
REFERENCE = json.loads((Path(__file__).parents[2] / "references" / "population_searchers.json").read_text())
CHILDREN = REFERENCE["natural_niches"]["children"]


def models(size=24, seed=0):
    return [torch.randn(size, generator=torch.Generator().manual_seed(seed + n)) for n in range(2)]


# --- M2N2


@pytest.mark.parametrize("case", CHILDREN, ids=lambda case: f"{case['weight']}-{case['split']}")
@pytest.mark.parametrize("cuts", [(0, 24), (0, 5, 6, 24), (0, 7, 24), (0, 23, 24)], ids=str)
def test_the_child_is_the_authors_however_the_vector_is_cut_into_tensors(case, cuts):
    first, second = torch.tensor(case["first"]), torch.tensor(case["second"])
    sums = pair_products([first, second], None)
    parts = [
        M2N2(
            [first[start:stop], second[start:stop]],
            sums=sums,
            seeds=(1, 2),
            place=Place("x", None, 0, 0.0, offset=start, entries=24),
            t=case["weight"],
            split=(case["split"] + 0.5) / 24,
        )
        for start, stop in pairwise(cuts)
    ]
    np.testing.assert_allclose(torch.cat(parts).double(), case["child"], rtol=0, atol=1e-6)


def test_ends_of_the_arc_are_the_models_and_swap_at_the_split():
    first, second = models()
    for split, expected in ((1.0, second), (0.0, first), (0.5, torch.cat([second[:12], first[12:]]))):
        child = M2N2([first, second], seeds=(1, 2), t=1.0, split=split)
        torch.testing.assert_close(child, expected, rtol=0, atol=1e-7)


def test_without_a_split_it_is_slerp_of_one_tensor():
    first, second = models()
    expected = METHODS["slerp"]([second], first, t=0.3)
    torch.testing.assert_close(M2N2([first, second], seeds=(1, 2), t=0.3), expected, rtol=0, atol=1e-7)


def test_parallel_opposite_and_zero_vectors_are_interpolated_linearly():
    (first, _), zero = models(), torch.zeros(24)
    for second in (first * 2, -first, zero):
        child = M2N2([first, second], seeds=(1, 2), t=0.25)
        torch.testing.assert_close(child, 0.75 * first + 0.25 * second, rtol=0, atol=1e-6)
    assert arc_shares(0.25, [0.0, 0.0, 0.0]) == (0.75, 0.25)


def test_noise_is_normal_of_its_own_for_each_tensor_and_the_same_for_any_chunks():
    tensors = models(3 * BLOCK + 17)
    plain = M2N2(tensors, seeds=(5, 9), t=0.5)
    noisy = M2N2(tensors, seeds=(5, 9), t=0.5, noise=0.01)
    assert torch.equal(M2N2(tensors, seeds=(5, 9), t=0.5, noise=0.01, chunk=BLOCK + 3), noisy)
    drawn = (noisy - plain) / 0.01
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([drawn[:BLOCK], drawn[BLOCK : 2 * BLOCK]]))[0, 1])) < 0.02
    other = (M2N2(tensors, seeds=(6, 9), t=0.5, noise=0.01) - plain) / 0.01
    assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.02


def test_one_model_alone_is_itself_with_noise():
    tensor = models()[0]
    assert torch.equal(M2N2([tensor], seeds=(1,), t=0.5), tensor)
    expected = tensor + 0.1 * Normals(1).cut(0, 24)
    torch.testing.assert_close(M2N2([tensor], seeds=(1,), t=0.5, noise=0.1), expected)


def test_noise_without_seeds_is_refused():
    with pytest.raises(MergeError, match="m2n2 draws at random: it needs one seed"):
        M2N2(models(), t=0.5, noise=0.1)


def test_normal_draws_do_not_depend_on_where_they_are_cut():
    draws = Normals(3)
    whole = draws.cut(0, 2 * BLOCK + 5)
    for start, stop in ((0, 0), (0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, BLOCK), (7, 2 * BLOCK + 5)):
        assert torch.equal(draws.cut(start, stop), whole[start:stop])


# --- both engines, on models of many tensors


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"))


def recipe_of(family, method, **parameters):
    base = {"base_model": str(family["base"])} if method == "cycle_qd" else {}
    weight = {"weight": 1.0} if method == "cycle_qd" else {}
    return Recipe.model_validate(
        {
            "merge_method": method,
            "models": [{"model": str(family[name]), "parameters": weight} for name in "ab"],
            "parameters": parameters,
            "seed": 7,
            **base,
        }
    )


def opened(family):
    return Parents.open([str(path) for path in family.values()])


def flat(parents, reference, names):
    return np.concatenate([parents.tensor(reference, name).double().numpy().ravel() for name in names])


@pytest.mark.parametrize("split", [0.0, 0.137, 0.5, 0.99, 1.0])
def test_a_model_is_one_long_vector_in_the_models_order(family, split):
    parents = opened(family)
    recipe = recipe_of(family, "m2n2", t=0.3, split=split)
    merged = dict(merge_tensors(recipe, parents))
    layers = [step.planned.layer for step in parents.plan(recipe) if step.planned.layer is not None]
    assert layers == sorted(layers)
    first, second = (flat(parents, str(family[name]), merged) for name in "ab")
    angle = np.arccos(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    t = np.where(np.arange(len(first)) < int(split * len(first)), 0.3, 0.7)
    expected = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    found = np.concatenate([tensor.double().numpy().ravel() for tensor in merged.values()])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("m2n2", {"t": 0.3, "split": 0.4}),
        ("m2n2", {"t": 0.3, "split": 0.4, "noise": 0.01}),
        ("cycle_qd", {"noise": 0.01}),
        ("cycle_qd", {"svd": 0.2}),
    ],
    ids=str,
)
def test_both_engines_make_the_same_child(family, tmp_path, method, parameters):
    recipe = recipe_of(family, method, **parameters)
    resident = InPlaceMerger(opened(family), base=str(family["base"]))
    resident.merge(recipe_of(family, method, **({"t": 0.9} if method == "m2n2" else {})))
    resident.merge(recipe)
    folder = merge_to_folder(recipe, tmp_path / "child")
    written = Parents.open([str(folder)])
    weights = resident.model.state_dict()
    for name in written.tensor_names([str(folder)])[str(folder)]:
        assert torch.equal(weights[name], written.tensor(str(folder), name)), name


def test_nothing_is_summed_for_other_methods(family):
    recipe = recipe_of(family, "linear", normalize=True).model_copy(update={"merge_method": "linear"})

    def fetch(model, name):
        raise AssertionError("read")

    assert model_sums(recipe, opened(family), fetch) == {}


# --- CycleQD


def test_the_crossover_is_the_authors():
    case = REFERENCE["cycle_qd"]["crossover"]
    vectors, base = torch.tensor(case["vectors"]), torch.zeros(6, 4)
    merged = CYCLE_QD(list(vectors), base, seeds=(1, 2), weight=case["weights"])
    torch.testing.assert_close(merged, torch.tensor(case["merged"]), rtol=1e-6, atol=1e-6)


def test_the_mutation_is_the_authors():
    case = REFERENCE["cycle_qd"]["mutation"]
    mutated = grown(torch.tensor(case["vector"]), case["rate"] * torch.tensor(case["draws"]))
    torch.testing.assert_close(mutated, torch.tensor(case["mutated"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 10), (3, 9, 8)], ids=str)
def test_singular_values_grow_and_their_vectors_stay(shape):
    generator = torch.Generator().manual_seed(0)
    base, vector = (torch.randn(shape, generator=generator) for _ in range(2))
    mutated = CYCLE_QD([base + vector], base, seeds=(4,), weight=1.0, svd=0.3) - base
    u, s, vh = torch.linalg.svd(vector, full_matrices=False)
    inner = u.mT @ mutated @ vh.mT
    growth = torch.diagonal(inner, dim1=-2, dim2=-1) / s - 1
    assert (growth >= -1e-4).all()
    assert (growth <= 0.3 + 1e-4).all()
    assert len({round(value, 4) for value in growth.flatten().tolist()}) > growth.numel() // 2
    outside = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))
    torch.testing.assert_close(outside, torch.zeros(outside.shape), atol=1e-4, rtol=0)


def test_vectors_have_no_singular_values():
    base, tensor = models()
    assert torch.equal(CYCLE_QD([tensor], base, seeds=(1,), weight=1.0, svd=0.3), base + (tensor - base))


def test_uniform_draws_are_uniform_and_not_the_normal_ones():
    draws = uniform(3, 20_000)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(uniform(4, 10), draws[:10])
