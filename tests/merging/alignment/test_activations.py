"""Neurons that fire together are brought together."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Checkpoint
from evomerge.errors import ConfigError
from evomerge.merging import Parents
from evomerge.merging.alignment.activations import match_activations
from evomerge.merging.alignment.specification import simple_specification
from evomerge.merging.alignment.view import align
from evomerge.merging.gathering import Calibration, answered, write_statistics
from evomerge.recipes import Recipe


def examples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [answered((), torch.randint(4, 64, (20,), generator=generator).tolist()) for _ in range(30)]


def gathered(folder, out, kinds=("sample",), seeds=(0, 0)):
    models = {
        str(folder / name): Calibration(
            Checkpoint(folder / name),
            lambda name=name: AutoModelForCausalLM.from_pretrained(folder / name),
            examples(seed),
        )
        for name, seed in zip(("plain", "permuted"), seeds, strict=True)
    }
    write_statistics(out, models, kinds, seed=0, labels="sampled", sample_rows=200, made={})
    return str(out)


def recipe_for(folder, **fields):
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in ("plain", "permuted")]
    return Recipe.model_validate({"merge_method": "linear", "models": models, **fields})


def seen(folder, **fields):
    parents = Parents.open([str(folder / "plain"), str(folder / "permuted")])
    return list(align(recipe_for(folder, **fields), parents.checkpoints).values())


@pytest.mark.parametrize("method", [{"method": "activation_matching"}, {"method": "pleas"}])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_a_permuted_model_is_found_out_by_its_activations(pair, tmp_path, name, method):
    statistics = gathered(pair(name), tmp_path / "statistics")
    plain, permuted = seen(pair(name), align=method, statistics=statistics)
    assert [n for n in plain.tensors if not torch.equal(plain.tensor(n), permuted.tensor(n))] == []


def test_optimal_transport_of_activations(pair, tmp_path):
    statistics = gathered(pair("llama"), tmp_path / "statistics")
    align_ = {"method": "ot_fusion", "parameters": {"metric": "acts"}}
    plain, permuted = seen(pair("llama"), align=align_, statistics=statistics)
    assert [n for n in plain.tensors if not torch.equal(plain.tensor(n), permuted.tensor(n))] == []


def test_correlation_decides_and_not_size():
    """Neuron 0 of the source is the target's neuron 1, a hundred times larger and shifted."""
    specification = simple_specification({"fc2": (None, "h")}, {"fc2": (2, 3)})
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.stack([100 * x[:, 1] + 7, 0.01 * x[:, 2], x[:, 0] - 3], 1)
    weights = (lambda name: np.zeros((2, 3)),) * 2
    found = match_activations(specification, lambda name: x, lambda name: other, weights)
    assert found.orders["h"].tolist() == [2, 0, 1]
    assert found.objectives[-1] == pytest.approx(3)


def test_neurons_that_never_fire_do_no_harm():
    specification = simple_specification({"fc2": (None, "h")}, {"fc2": (2, 3)})
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    weights = (lambda name: np.zeros((2, 3)),) * 2
    order = [2, 0, 1]
    found = match_activations(specification, lambda name: x, lambda name: x[:, order], weights)
    assert np.array_equal(np.array(order)[found.orders["h"]], np.arange(3))


def test_statistics_are_needed(pair):
    with pytest.raises(ConfigError, match="activation_matching needs samples of the models' activations"):
        seen(pair("llama"), align={"method": "activation_matching"})


def test_samples_of_different_texts_are_refused(pair, tmp_path):
    statistics = gathered(pair("llama"), tmp_path / "statistics", seeds=(0, 1))
    with pytest.raises(ConfigError, match="taken from different texts"):
        seen(pair("llama"), align={"method": "activation_matching"}, statistics=statistics)


def test_statistics_of_another_kind_are_refused(pair, tmp_path):
    statistics = gathered(pair("llama"), tmp_path / "statistics", kinds=("scale",))
    with pytest.raises(ConfigError, match="lacks the statistics sample"):
        seen(pair("llama"), align={"method": "activation_matching"}, statistics=statistics)
