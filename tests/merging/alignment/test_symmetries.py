"""Symmetries are found for architectures that nobody listed, are true, and wrong ones are noticed."""

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.alignment import symmetries, verification
from evomerge.merging.alignment.specification import Specification
from evomerge.merging.alignment.transport import apply
from evomerge.merging.alignment.verification import load, random_model, random_movements
from evomerge.testing.permuted_models import MODELS, config_of


def kinds(specification):
    """Return the sizes of the groups, those within others marked."""
    found = [(group.size, group.within is not None) for group in specification.groups.values()]
    return {kind: found.count(kind) for kind in sorted(set(found))}


# size: 32 the residual stream, 40 (24) neurons, 4 heads, 2 key-value heads or queries of one, 8 numbers of a head
FREE, WITHIN = False, True
EXPECTED = {
    "llama": {(2, FREE): 2, (2, WITHIN): 2, (8, WITHIN): 2, (32, FREE): 1, (40, FREE): 2},
    "qwen2": {(2, FREE): 2, (2, WITHIN): 2, (8, WITHIN): 2, (32, FREE): 1, (40, FREE): 2},
    "gpt2": {(4, FREE): 2, (8, WITHIN): 4, (32, FREE): 1, (128, FREE): 2},
    "bert": {(4, FREE): 2, (8, WITHIN): 4, (32, FREE): 1, (40, FREE): 2},
    "bert-classifier": {(4, FREE): 2, (8, WITHIN): 4, (32, FREE): 2, (40, FREE): 2},
    "vit": {(4, FREE): 2, (8, WITHIN): 4, (32, FREE): 1, (40, FREE): 2},
    "qwen3_moe": {
        (2, FREE): 2,
        (2, WITHIN): 2,
        (4, FREE): 2,
        (8, WITHIN): 2,
        (24, WITHIN): 2,
        (32, FREE): 1,
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_group_is_found(name):
    assert kinds(symmetries.trace(config_of(name))) == EXPECTED[name]


@pytest.mark.parametrize("name", MODELS)
def test_permuting_every_group_changes_no_output(name):
    config = config_of(name)
    specification = symmetries.discover(config)
    model = random_model(config, torch.Generator().manual_seed(1))
    inputs = symmetries.inputs_for(model, torch.Generator().manual_seed(2))
    stored = symmetries.stored_tensors(model)
    orders = random_movements(specification, np.random.default_rng(3))
    permuted = {n: apply(specification, n, orders, stored.__getitem__) for n in stored}
    changed = [n for n in stored if not torch.equal(stored[n], permuted[n])]
    assert len(changed) > len(stored) / 3
    with torch.no_grad():
        outputs = [symmetries.run(each, inputs) for each in (model, load(model, permuted))]
    for expected, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_attention_biases_and_positions_keep_heads_in_order():
    """ALiBi's slopes belong to their heads; T5's table of distances moves with them."""
    bloom, t5 = (symmetries.trace(config_of(name)) for name in ("bloom", "t5"))
    assert (4, FREE) not in kinds(bloom)
    assert (4, FREE) in kinds(t5)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    heads = t5.tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].dimensions[0][0][0]
    assert t5.tensors[table].dimensions[1] == ((heads,),)


def test_fused_queries_keys_and_values_share_their_heads():
    specification = symmetries.trace(config_of("gpt2"))
    queries, keys, values = specification.tensors["transformer.h.0.attn.c_attn.weight"].dimensions[1]
    assert queries == keys
    assert queries[0] == values[0]
    assert queries[1] != values[1]
    assert specification.tensors["transformer.h.0.attn.c_proj.weight"].dimensions[0] == (values,)
    assert specification.tensors["transformer.h.0.attn.c_attn.weight"].reads == {0}


def test_experts_are_permuted_by_name_with_the_routers_rows():
    specification = symmetries.trace(config_of("qwen3_moe"))
    router = specification.tensors["model.layers.0.mlp.gate.weight"].dimensions[0][0][0]
    down = specification.tensors["model.layers.0.mlp.experts.2.down_proj.weight"]
    assert down.at == ((router, 2),)
    assert specification.groups[down.dimensions[1][0][0]].within == router
    member = specification.member("model.layers.0.mlp.experts.2.down_proj.weight", router, 0)
    assert member == "model.layers.0.mlp.experts.0.down_proj.weight"


def test_a_specification_survives_json():
    specification = symmetries.trace(config_of("qwen3_moe"))
    assert Specification.from_json(specification.to_json()) == specification


@pytest.mark.parametrize(("free", "name"), [("rotary", "llama"), ("vocabulary", "gpt2")])
def test_a_wrong_symmetry_is_noticed_and_named(monkeypatch, free, name):
    config = config_of(name)
    true = symmetries.trace(config)
    data = true.to_json()
    data["groups"]["wrong"] = [8 if free == "rotary" else 64, None]
    for tensor, (dimensions, _, _) in data["tensors"].items():
        if free == "rotary" and tensor.endswith(("q_proj.weight", "k_proj.weight")):
            data["tensors"][tensor][0] = [[[*dimensions[0][0][:-1], "wrong"]], dimensions[1]]
        if free == "vocabulary" and tensor.endswith("wte.weight"):
            data["tensors"][tensor][0] = [[["wrong"]], dimensions[1]]
    monkeypatch.setattr(symmetries, "trace", lambda config: Specification.from_json(data))
    with pytest.raises(MergeError, match="permuting wrong changes what"):
        verification.verified(config)


def test_models_that_transformers_does_not_know_are_refused():
    with pytest.raises(MergeError, match="knows no model type 'digits'"):
        symmetries.trace({"model_type": "digits"})


def test_models_that_hear_are_refused():
    with pytest.raises(MergeError, match="takes neither tokens nor pixels"):
        symmetries.trace({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]})


def test_large_models_are_checked_on_a_small_copy(monkeypatch):
    """A 7B Llama's symmetries, in seconds; what runs has a thousandth of its size."""
    ran = []
    real = verification.random_model
    monkeypatch.setattr(verification, "random_model", lambda config, g: ran.append(config) or real(config, g))
    specification = verification.verified({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert {group.size for group in specification.groups.values()} == {4096, 11008, 32, 128}
    assert verification._parameters(ran[0]) < 10_000_000


def test_no_small_copy_no_alignment(monkeypatch):
    monkeypatch.setattr(verification, "SMALL", 0)
    monkeypatch.setattr(verification, "LARGEST", 10)
    with pytest.raises(MergeError, match="no small copy of LlamaForCausalLM could be made"):
        verification.verified(config_of("llama"))
