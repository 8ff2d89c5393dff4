"""The papers' claim: networks trained from different seeds can be averaged once their neurons correspond.

A multilayer perceptron that transformers knows nothing of, with a specification of its own.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from evomerge.checkpoints import Checkpoint
from evomerge.errors import MergeError
from evomerge.merging.alignment.specification import Group, Specification, simple_specification
from evomerge.merging.alignment.view import GatheredSamples, aligned

NAMED = {
    "fc1.weight": ("h1", None),
    "fc1.bias": ("h1",),
    "fc2.weight": ("h2", "h1"),
    "fc2.bias": ("h2",),
    "fc3.weight": (None, "h2"),
    "fc3.bias": (None,),
}


def shapes_of(width):
    weights = {"fc1.weight": (width, 64), "fc2.weight": (width, width), "fc3.weight": (10, width)}
    return weights | {"fc1.bias": (width,), "fc2.bias": (width,), "fc3.bias": (10,)}


def forward(tensors, x, inputs=None):
    for layer in (1, 2, 3):
        if inputs is not None:
            inputs[f"fc{layer}.weight"] = x
        x = x @ tensors[f"fc{layer}.weight"].T + tensors[f"fc{layer}.bias"]
        x = x if layer == 3 else torch.relu(x)
    return x


def data():
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def train(seed, width):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes_of(width).items():
        scale = (2 / shape[-1]) ** 0.5 if len(shape) > 1 else 0.0
        tensors[name] = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam(tensors.values(), lr=1e-3)
    (x, y), _ = data()
    for _ in range(300):
        batch = torch.randint(len(x), (128,), generator=generator)
        loss = cross_entropy(forward(tensors, x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def loss_of(tensors):
    _, (x, y) = data()
    return float(cross_entropy(forward(tensors, x), y))


def average(one, other):
    return {name: (one[name] + other[name]) / 2 for name in one}


def write(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "digits"}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder)


def samples_of(tensors):
    inputs = {}
    forward(tensors, data()[0][0][:500], inputs)
    return GatheredSamples(inputs.get, str(len(inputs)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    tensors = [train(seed, 128) for seed in (0, 1)]
    return tensors, [write(folder / str(n), each) for n, each in enumerate(tensors)]


def read(checkpoint):
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


@pytest.mark.parametrize(
    ("method", "parameters", "left"),
    [
        ("weight_matching", {}, 0.55),
        ("activation_matching", {}, 0.25),
        ("ot_fusion", {}, 0.65),
        ("ot_fusion", {"metric": "acts"}, 0.35),
        ("ot_fusion", {"regularisation": 0.01}, 0.8),
    ],
)
def test_averages_of_aligned_networks_are_better(trained, method, parameters, left):
    """``left``: the share of the loss barrier that may remain; here 0.31, 0.05, 0.35, 0.11 and 0.49 do."""
    (one, other), (target, source) = trained
    specification = simple_specification(NAMED, shapes_of(128))
    samples = (samples_of(one), samples_of(other))
    view = aligned(source, target, method, parameters=parameters, samples=samples, specification=specification)
    seen = read(view)
    plain, better = loss_of(average(one, other)), loss_of(average(one, seen))
    ends = max(loss_of(one), loss_of(other))
    assert plain > 2 * ends
    assert better < ends + left * (plain - ends)
    if not parameters.get("regularisation"):
        assert loss_of(seen) == pytest.approx(loss_of(other), rel=1e-4)


def test_a_wider_network_is_carried_over_to_a_narrower_one(trained, tmp_path):
    (one, _), (target, _) = trained
    wide = train(2, 192)
    source = write(tmp_path / "wide", wide)
    narrow = simple_specification(NAMED, shapes_of(128))
    own = Specification({"h1": Group(192), "h2": Group(192)}, narrow.tensors)
    assert own.shape("fc2.weight") == (192, 192)
    view = aligned(source, target, "ot_fusion", specification=narrow, own=own)
    seen = read(view)
    assert {n: i.shape for n, i in view.tensors.items()} == {n: tuple(t.shape) for n, t in one.items()}
    assert {n: tuple(t.shape) for n, t in seen.items()} == {n: tuple(t.shape) for n, t in one.items()}
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(192, generator=generator)[:128]
    cut = dict(wide)
    for name, groups in NAMED.items():
        for dimension, group in enumerate(groups):
            if group:
                cut[name] = cut[name].index_select(dimension, chosen)
    assert loss_of(average(one, seen)) < 0.7 * loss_of(average(one, cut))
    with pytest.raises(MergeError, match="weight_matching permutes equally many, ot_fusion carries over more or fewer"):
        aligned(source, target, "weight_matching", specification=narrow, own=own)
