"""Kinship of models: against exact integers, float64 written out and torch's own functions, on models of all kinds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import CheckpointError, ConfigError
from evomerge.kinship import (
    METRICS,
    Products,
    cosine_similarity,
    euclidean_distance,
    kinship_to,
    mean_of_pairs,
    pearson_correlation,
)
from evomerge.merging import Parents, chunks, merge_to_folder
from evomerge.merging.task_vector_products import kinship_recipe, task_vector_products, total
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family
from evomerge.testing.tiny_vocabularies import tiny_vocabularies

WEIGHTS = "model.safetensors"


@pytest.fixture
def family(tmp_path: Path) -> dict[str, Path]:
    return tiny_family(tmp_path / "family", parents=3)


def products(folders: dict[str, Path], names: str = "abc", **fields: object) -> Products:
    """Return the products of models by name, their base beside them."""
    models, base = [str(folders[name]) for name in names], str(folders["base"])
    parents = Parents.open([base, *models])
    return total(task_vector_products(models, kinship_recipe(models, base, parents, fields), parents))


def changed(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Write a model's weights anew, each tensor changed by ``change(name, tensor)``."""
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def task_vectors(folders: dict[str, Path], names: str = "abc") -> torch.Tensor:
    """Return the whole task vectors in float64, one a row."""
    weights = {name: load_file(folders[name] / WEIGHTS) for name in ("base", *names)}
    base = weights["base"]
    rows = [torch.cat([(weights[n][t].double() - base[t].double()).reshape(-1) for t in base]) for n in names]
    return torch.stack(rows)


def test_sums_of_integers_are_exact(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 101)
    for seed, folder in enumerate(family.values()):
        generator = torch.Generator().manual_seed(seed)
        changed(folder, lambda _, t, g=generator: torch.randint(-50, 51, t.shape, generator=g).float())
    found, vectors = products(family), task_vectors(family).long()
    assert found.entries == vectors.shape[1]
    assert found.sums.tolist() == vectors.sum(1).tolist()
    assert found.gram.tolist() == (vectors @ vectors.T).tolist()
    assert found.squares.tolist() == [[int((a - b).square().sum()) for b in vectors] for a in vectors]
    assert np.array_equal(found.lengths, np.sqrt(found.gram.diagonal()))
    # Pearson's correlation of the first two, from whole numbers.
    (a, b), n = vectors[:2].tolist(), found.entries
    covariance, *variances = (
        n * sum(x * y for x, y in zip(p, q, strict=True)) - sum(p) * sum(q) for p, q in ((a, b), (a, a), (b, b))
    )
    squared = float(Fraction(covariance**2, variances[0] * variances[1]))
    assert pearson_correlation(found)[0, 1] == pytest.approx(np.sign(covariance) * squared**0.5, rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("chunk", [1 << 18, 100])
def test_metrics_are_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, chunk: int) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    folders = tiny_family(tmp_path, parents=3, dtype=dtype)
    changed(folders["b"], lambda _, tensor: tensor.float() + 0.01)  # a parent of another dtype, off centre
    found, vectors = products(folders), task_vectors(folders)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors, dim=-1)
    assert np.allclose(pearson_correlation(found), torch.corrcoef(vectors), rtol=1e-11, atol=1e-13)
    assert np.allclose(cosine_similarity(found), cosines, rtol=1e-11, atol=1e-13)
    assert np.allclose(euclidean_distance(found), distances, rtol=1e-11, atol=0)


def test_models_themselves_are_their_nearest_kin(family: dict[str, Path]) -> None:
    shutil.copytree(family["a"], family["a"].with_name("twin"))
    found = products({**family, "t": family["a"].with_name("twin")}, "at")
    assert euclidean_distance(found).tolist() == [[0, 0], [0, 0]]
    assert cosine_similarity(found).tolist() == [[1, 1], [1, 1]]
    assert np.allclose(pearson_correlation(found), 1, atol=1e-15)


def test_small_distances_of_models_far_from_the_base_are_right(family: dict[str, Path]) -> None:
    changed(family["a"], lambda _, tensor: tensor * 1000)
    weights = load_file(family["a"] / WEIGHTS)
    step = {name: torch.nextafter(tensor, torch.tensor(torch.inf)) for name, tensor in weights.items()}
    changed(family["b"], lambda name, _: step[name])
    apart = sum(float((step[name].double() - weights[name].double()).square().sum()) for name in weights)
    assert euclidean_distance(products(family, "ab"))[0, 1] == pytest.approx(apart**0.5, rel=1e-12)


def test_a_model_that_is_the_base_has_no_kin(family: dict[str, Path]) -> None:
    found = products({**family, "z": family["base"]}, "az")
    assert found.gram[1].tolist() == [0, 0]
    for metric in (pearson_correlation, cosine_similarity):
        matrix = metric(found)
        assert matrix[0, 0] == pytest.approx(1)
        assert np.isnan(matrix[0, 1])
        assert np.isnan(matrix[1, 1])
    assert euclidean_distance(found)[0, 1] == pytest.approx(found.lengths[0], rel=1e-15)


def test_the_kinship_of_several_is_the_mean_over_pairs(family: dict[str, Path]) -> None:
    matrix = cosine_similarity(products(family))
    assert mean_of_pairs(matrix) == pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3, rel=1e-14)
    assert np.isnan(mean_of_pairs(matrix[:1, :1]))


def test_kinship_of_merges_follows_from_that_of_their_parents(tmp_path: Path) -> None:
    folders = tiny_family(tmp_path, parents=3)
    shares = np.array([[0.25, 0.75, 0], [0.5, 0.1, 0.4], [1.5, -0.5, 0.25]])  # the last sums to more than 1
    merged = {"base": folders["base"]}
    for name, row in zip("xyz", shares.tolist(), strict=True):
        models = [{"model": str(folders[n]), "parameters": {"weight": w}} for n, w in zip("abc", row, strict=True)]
        fields = {"merge_method": "task_arithmetic", "base_model": str(folders["base"]), "models": models}
        merged[name] = merge_to_folder(Recipe.model_validate(fields), tmp_path / name)
    found, parents = products(merged, "xyz"), products(folders)
    for name, metric in METRICS.items():  # the merges were rounded to float32
        predicted = [kinship_to(parents, name, one, shares) for one in shares]
        assert np.allclose(metric(found), predicted, rtol=2e-6, atol=1e-6)
        assert np.allclose(metric(parents), [kinship_to(parents, name, one, np.eye(3)) for one in np.eye(3)])


def test_merges_on_the_arc_are_nearly_such_sums(tmp_path: Path) -> None:
    """Their shares differ from 1 - t and t by the angle between the models, which is small for fine-tunes."""
    folders = tiny_family(tmp_path, parents=3, distance=0.001)
    shares = np.array([[0.5, 0.5, 0], [0.25, 0, 0.75], [0, 1, 0]])
    merged = {"base": folders["base"], "z": folders["b"]}
    for name, first, second, t in (("x", "a", "b", 0.5), ("y", "a", "c", 0.75)):
        models = [{"model": str(folders[first])}, {"model": str(folders[second])}]
        fields = {"merge_method": "slerp", "base_model": str(folders[first]), "models": models, "parameters": {"t": t}}
        merged[name] = merge_to_folder(Recipe.model_validate(fields), tmp_path / name)
    found, parents = products(merged, "xyz"), products(folders)
    for metric in ("pcc", "cs"):
        predicted = [kinship_to(parents, metric, one, shares) for one in shares]
        assert np.allclose(METRICS[metric](found), predicted, atol=0.01)


def test_parts_add_up_to_the_whole(family: dict[str, Path]) -> None:
    models, base = [str(family[name]) for name in "ab"], str(family["base"])
    parents = Parents.open([base, *models])
    recipe = kinship_recipe(models, base, parents, {})
    told: list[tuple[int, int]] = []
    parts = task_vector_products(
        models, recipe, parents, part_of=lambda name: name.split(".")[-2], report=lambda *n: told.append(n)
    )
    steps = len(parents.plan(recipe))
    assert told == [(n + 1, steps) for n in range(steps)]
    assert {"q_proj", "down_proj", "norm", "embed_tokens"} <= set(parts)
    vectors = task_vectors(family, "ab")
    assert np.allclose(total(parts).gram, vectors @ vectors.T, rtol=1e-12)
    weights = {n: load_file(family[n] / WEIGHTS)["model.norm.weight"].double() for n in ("base", "a", "b")}
    assert parts["norm"].entries == len(weights["a"])
    expected = (weights["a"] - weights["base"]) @ (weights["b"] - weights["base"])
    assert parts["norm"].gram[0, 1] == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adapters_are_compared_as_the_models_that_they_make(family: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family["base"])
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    adapted = f"{family['base']}+{tmp_path / 'adapter'}"
    merged = merge_to_folder(
        Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": adapted}]}), tmp_path / "merged"
    )
    base, other = str(family["base"]), str(family["a"])
    parents = Parents.open([base, adapted, other])
    recipe = kinship_recipe([adapted, other], base, parents, {})
    found = total(task_vector_products([adapted, other], recipe, parents))
    expected = products({**family, "m": merged}, "ma")
    assert found.gram[0, 0] > 0
    assert np.array_equal(found.gram, expected.gram)


def test_other_vocabularies_are_compared_on_the_bases_tokens(tmp_path: Path) -> None:
    folders = tiny_vocabularies(tmp_path, "words", sizes={"base": 20, "a": 24, "b": 28}, hidden=16)
    found = products(folders, "ab")
    base, other = (load_file(folders[name] / WEIGHTS) for name in ("base", "a"))
    assert found.entries == sum(tensor.numel() for tensor in base.values())
    ids = {name: _tokens(folders[name]) for name in ("base", "a")}
    square = 0.0
    for name, tensor in base.items():
        theirs = other[name]
        if name.startswith(("model.embed_tokens", "lm_head")):
            rows = [theirs[ids["a"][t]] if t in ids["a"] else tensor[place] for t, place in ids["base"].items()]
            tensor, theirs = tensor[list(ids["base"].values())], torch.stack(rows)
        square += float((theirs.double() - tensor.double()).square().sum())
    assert found.gram[0, 0] == pytest.approx(square, rel=1e-12)
    assert products(folders, "ab", tokenizer_source="union").entries > found.entries


def _tokens(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return vocabulary


def test_a_model_with_a_nan_is_named_with_its_tensor(family: dict[str, Path]) -> None:
    changed(family["b"], lambda name, tensor: tensor * (torch.nan if name == "model.norm.weight" else 1))
    with pytest.raises(CheckpointError, match=r"/b: tensor model\.norm\.weight holds NaN or Inf; use another copy"):
        products(family)


def test_models_that_do_not_fit_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_family(tmp_path / "other", parents=1, hidden=16)
    with pytest.raises(ConfigError, match="every parent must have the base's shapes"):
        products({**family, "o": other["a"]}, "ao")
