"""Models over several GPUs: whole layers on each, in their order; what does not fit is refused."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.spread import device_map, spread_over_gpus
from evomerge.testing.tiny_models import tiny_config, tiny_model


def size(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "mixtral"])
def test_every_module_has_a_gpu_and_layers_are_whole(architecture: str) -> None:
    model = tiny_model(tiny_config(architecture), 0)
    room = size(model)  # accelerate keeps a layer's worth of the first one free
    found = device_map(model, {0: int(0.9 * room), 1: room})
    assert set(found.values()) == {0, 1}
    for name, _ in model.named_parameters():
        assert sum(name == module or name.startswith(f"{module}.") for module in found) == 1, name
    layers = [device for name, device in found.items() if name.rpartition(".")[2].isdigit()]
    assert layers == sorted(layers), "they follow one another"
    parts = [name for name in found if any(part.isdigit() for part in name.split(".")[:-1])]
    assert not parts, "no layer is cut"


def test_a_model_that_does_not_fit_is_refused_in_words() -> None:
    model = tiny_model(tiny_config("llama"), 0)
    share = size(model) // 8
    with pytest.raises(
        MergeError, match=r"does not fit the worker's 2 GPUs: \d+ modules are left over.*devices_per_worker"
    ):
        device_map(model, {0: share, 1: share})


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_over_two_gpus_answers_as_on_one() -> None:
    tokens = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    alone = tiny_model(tiny_config("llama"), 0).to("cuda")
    expected = alone(tokens.to("cuda")).logits.cpu()
    assert torch.equal(
        spread_over_gpus(tiny_model(tiny_config("llama"), 0))(tokens.to("cuda:0")).logits.cpu(), expected
    )
