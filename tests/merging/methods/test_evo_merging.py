"""Evo-Merging of real adapters against its formulas written out in numpy, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import AdapterView, Checkpoint, Factors
from evomerge.errors import MergeError
from evomerge.merging import METHODS, InPlaceMerger, Parents, check_recipe, merge_to_folder
from evomerge.merging.methods.evo_merging import largest_kept
from evomerge.merging.tensors import merge_tensors
from evomerge.recipes import Recipe
from evomerge.testing.merge_methods import fine_tuned
from evomerge.testing.tiny_adapters import MODULES, tiny_adapter
from evomerge.testing.tiny_models import tiny_family

EVO, TASK_ARITHMETIC = METHODS["evo_merging"], METHODS["task_arithmetic"]
SCALE = 2.0  # of every adapter
Array = NDArray[np.float64]


def sparsified(matrix: Array, share: float) -> Array:
    """S(A, α) of the authors' code: the magnitudes from the round(α n)-th largest on are kept."""
    if share == 0:
        return np.zeros_like(matrix)
    count = min(matrix.size, max(1, round(matrix.size * share)))
    smallest = np.sort(np.abs(matrix), axis=None)[::-1][count - 1]
    return np.where(np.abs(matrix) < smallest, 0, matrix)


def merged_weight(
    base: Array, adapters: list[tuple[Array, Array]], alpha: list[float], beta: list[float], scale: float
) -> Array:
    """Algorithm 1, step 3 of the paper: W + s (Σ βᵢ Bᵢ) (Σ βᵢ S(Aᵢ))."""
    a_merged = sum(b * sparsified(a, share) for (a, _), share, b in zip(adapters, alpha, beta, strict=True))
    b_merged = sum(b * up for (_, up), b in zip(adapters, beta, strict=True))
    return np.asarray(base + scale * b_merged @ a_merged)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_family(tmp_path, "llama", parents=1)["base"]


@pytest.fixture
def adapters(tmp_path: Path, base: Path) -> list[Path]:
    return [tiny_adapter(tmp_path / f"adapter{seed}", base, seed) for seed in range(3)]


def recipe(base: Path, models: list[str], weight: list[float], density: list[float], **fields: Any) -> Recipe:
    entries = [
        {"model": model, "parameters": {"weight": w, "density": d}}
        for model, w, d in zip(models, weight, density, strict=True)
    ]
    content = {"merge_method": "evo_merging", "base_model": str(base), "models": entries, "dtype": "float32"}
    return Recipe.model_validate({**content, **fields})


def merged(wanted: Recipe) -> dict[str, torch.Tensor]:
    parents = Parents.open(wanted.parents())
    assert check_recipe(wanted, parents) == []
    return {name: tensor.clone() for name, tensor in merge_tensors(wanted, parents)}


def pair(adapter: Path, module: str) -> tuple[Array, Array]:
    stored = load_file(adapter / "adapter_model.safetensors")
    key = f"base_model.model.{module}.lora_"
    return stored[f"{key}A.weight"].double().numpy(), stored[f"{key}B.weight"].double().numpy()


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [([0.3, 1.0, 0.55], [0.7, -0.4, 1.2]), ([0.0, 0.01, 1.0], [1.0, -1.5, 0.25]), ([1.0] * 3, [1 / 3] * 3)],
)
def test_adapters_merge_as_the_paper_says(
    base: Path, adapters: list[Path], alpha: list[float], beta: list[float]
) -> None:
    ours = merged(recipe(base, [f"{base}+{each}" for each in adapters], beta, alpha))
    start = load_file(base / "model.safetensors")
    changed = 0
    for name, tensor in ours.items():
        module = name.removesuffix(".weight")
        if not module.endswith(MODULES):
            assert torch.equal(tensor, start[name])
            continue
        weight = start[name].double().numpy()
        expected = merged_weight(weight, [pair(each, module) for each in adapters], alpha, beta, SCALE)
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=1e-5, atol=1e-5)
        changed += 1
    assert changed == 2 * len(MODULES)


def test_the_engines_agree_bit_for_bit_and_an_adapter_named_alone_is_one_too(
    tmp_path: Path, base: Path, adapters: list[Path]
) -> None:
    models = [str(adapters[0]), *(f"{base}+{each}" for each in adapters[1:])]
    wanted = recipe(base, models, [0.7, -0.4, 1.2], [0.3, 1.0, 0.55])
    parents = Parents.open(wanted.parents())
    merge_to_folder(wanted, tmp_path / "out", parents=parents)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    merger = InPlaceMerger(parents, base=str(base), dtype="float32")
    merger.merge(wanted)
    state = merger.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def test_one_whole_adapter_is_the_adapted_model_with_either_sign(base: Path, adapters: list[Path]) -> None:
    """Its weight counts squared, as the paper's sum of factors has it."""
    model = f"{base}+{adapters[0]}"
    adapted = Parents.open([model])[model]
    for weight in (1.0, -1.0):
        for name, tensor in merged(recipe(base, [model], [weight], [1.0])).items():
            torch.testing.assert_close(tensor, adapted.tensor(name), rtol=1e-6, atol=1e-6)


def test_adapters_that_share_their_a_add_up_to_task_arithmetic(
    tmp_path: Path, base: Path, adapters: list[Path]
) -> None:
    """With one A and weights that sum to one, Σ βᵢ Bᵢ · Σ βᵢ A = Σ βᵢ Bᵢ A."""
    stored = [load_file(each / "adapter_model.safetensors") for each in adapters]
    for each, tensors in zip(adapters, stored, strict=True):
        shared = {key: stored[0][key] if "lora_A" in key else tensor for key, tensor in tensors.items()}
        save_file(shared, each / "adapter_model.safetensors")
    models = [f"{base}+{each}" for each in adapters]
    weights = [0.75, -0.25, 0.5]
    wanted = recipe(base, models, weights, [1.0] * 3)
    sums = wanted.model_copy(update={"merge_method": "task_arithmetic"})
    sums = Recipe.model_validate(
        {
            **sums.model_dump(exclude_none=True, exclude_defaults=True),
            "models": [{"model": m, "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)],
        }
    )
    expected = dict(merge_tensors(sums, Parents.open([*models, str(base)])))
    for name, tensor in merged(wanted).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


def test_turned_weights_and_modules_that_only_some_adapt(tmp_path: Path) -> None:
    base = tiny_family(tmp_path, "gpt2", parents=0)["base"]
    shapes = {name: info.shape for name, info in Checkpoint(base).tensors.items()}
    name = next(each for each in shapes if each.endswith("h.0.mlp.c_fc.weight"))
    inputs, outputs = shapes[name]
    module = (
        f"base_model.model.{'' if name.startswith('transformer.') else 'transformer.'}{name.removesuffix('.weight')}"
    )
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for number in range(2):
        down, up = torch.randn(4, inputs, generator=generator), torch.randn(outputs, 4, generator=generator)
        pairs.append((down.double().numpy(), up.double().numpy()))
        folder = tmp_path / f"turned{number}"
        folder.mkdir()
        save_file(
            {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, folder / "adapter_model.safetensors"
        )
        fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "fan_in_fan_out": True}
        (folder / "adapter_config.json").write_text(json.dumps(fields))
    alone = tiny_adapter(tmp_path / "elsewhere", base, 5, modules=("h.1.attn.c_proj",))
    models = [f"{base}+{folder}" for folder in (tmp_path / "turned0", alone, tmp_path / "turned1")]
    ours = merged(recipe(base, models, [0.5, 1.0, -0.75], [0.5, 0.5, 1.0]))
    start = load_file(base / "model.safetensors")[name].double().numpy()
    expected = merged_weight(start.T, pairs, [0.5, 1.0], [0.5, -0.75], SCALE).T
    np.testing.assert_allclose(ours[name].double().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_adapters_of_different_ranks_are_refused_with_their_names_before_weights_are_read(
    tmp_path: Path, base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [tiny_adapter(tmp_path / name, base, 9, rank=6) for name in ("wide", "wider")]
    models = [f"{base}+{each}" for each in (adapters[0], *wide, adapters[1])]
    wanted = recipe(base, models, [1.0] * 4, [1.0] * 4)
    parents = Parents.open(wanted.parents())
    with pytest.raises(MergeError, match=r"tensor model.layers.0\S+: evo_merging .* one rank.* \[4, 6\]"):
        dict(merge_tensors(wanted, parents))

    monkeypatch.setattr(AdapterView, "_read", lambda *_: pytest.fail("weights were read"))
    (problem,) = check_recipe(wanted, parents)
    assert f"(rank 4: {models[0]}, {models[3]}; rank 6: {models[1]}, {models[2]})" in problem.what
    assert "model.layers.0.mlp.down_proj.weight" in problem.what
    assert "use task_arithmetic" in problem.suggestion


def test_ranks_are_compared_where_adapters_meet(tmp_path: Path, base: Path, adapters: list[Path]) -> None:
    """Not between tensors, nor with an adapter of another base, whose change is no product."""
    elsewhere = tiny_adapter(tmp_path / "elsewhere", base, 9, rank=6, modules=("mlp.up_proj",))
    foreign = tiny_adapter(tmp_path / "foreign", base, 9, rank=6)
    models = [f"{base}+{adapters[0]}", f"{base}+{elsewhere}", f"{tmp_path / 'a'}+{foreign}"]
    assert set(merged(recipe(base, models, [1.0] * 3, [1.0] * 3))) == set(Checkpoint(base).tensors)


def test_an_adapter_of_another_base_counts_as_the_model_it_makes(
    tmp_path: Path, adapters: list[Path], base: Path
) -> None:
    """Its factors are no change to this base: its task vector is merged, the other base's distance included."""
    other = tmp_path / "a"  # the base's other child, of the same shapes
    model = f"{other}+{adapters[0]}"
    adapted = Parents.open([model])[model]
    for name, tensor in merged(recipe(base, [model], [1.0], [1.0])).items():
        torch.testing.assert_close(tensor, adapted.tensor(name), rtol=1e-6, atol=1e-6)


def test_a_base_under_another_path_is_the_same_base(tmp_path: Path, base: Path, adapters: list[Path]) -> None:
    (tmp_path / "link").symlink_to(base)
    plain, linked = (
        merged(recipe(start, [f"{base}+{each}" for each in adapters], [0.5, 0.75, -1.0], [0.5] * 3))
        for start in (base, tmp_path / "link")
    )
    assert all(torch.equal(tensor, linked[name]) for name, tensor in plain.items())


def dyadic(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-512, 513, (12, 10), generator=generator) / 256 for _ in range(count)]


@given(st.integers(0, 1000), st.lists(st.integers(-12, 12), min_size=3, max_size=3))
def test_whole_models_at_density_one_are_task_arithmetic_bit_for_bit(seed: int, eighths: list[int]) -> None:
    """Numbers with few bits, so that both orders of summation are exact."""
    base, *tensors = dyadic(4, seed)
    weight = [number / 8 for number in eighths]
    assert torch.equal(EVO(tensors, base, weight=weight, density=1.0), TASK_ARITHMETIC(tensors, base, weight=weight))


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=2), st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=2),
    st.integers(0, 100),
)  # fmt: skip
def test_whole_models_are_sums_of_sparse_task_vectors(density: list[float], weight: list[float], seed: int) -> None:
    base, tensors = fine_tuned((9, 14), 2, seed)
    expected = base.double().numpy()
    for tensor, share, scale in zip(tensors, density, weight, strict=True):
        expected = expected + scale * sparsified((tensor - base).double().numpy(), share)
    found = EVO(tensors, base, weight=weight, density=density)
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.floats(0, 1))
def test_the_largest_are_kept_with_their_equals(numbers: list[int], share: float) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    assert torch.equal(largest_kept(vector, share), torch.from_numpy(sparsified(vector.numpy(), share)).float())


def test_factors_are_summed_with_whole_changes_of_other_models() -> None:
    generator = torch.Generator().manual_seed(1)
    base, other = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    down, up = torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator)
    change = Factors(down, up)
    found = EVO([base, other], base, factors=[change, None], weight=[0.5, -1.0], density=1.0)
    torch.testing.assert_close(found, base + 0.25 * up @ down - (other - base), rtol=1e-6, atol=1e-6)
