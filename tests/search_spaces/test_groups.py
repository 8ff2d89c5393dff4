"""Tensor names of the usual architectures fall into the group that a reader would name."""

from __future__ import annotations

import pytest

from evomerge.errors import ConfigError
from evomerge.search_spaces.groups import assign_groups, group_of

EXPECTED = {
    "attention": [
        "model.layers.0.self_attn.q_proj.weight",  # Llama, Mistral, Qwen, Gemma
        "transformer.h.0.attn.c_attn.bias",  # GPT-2
        "gpt_neox.layers.0.attention.query_key_value.weight",  # GPT-NeoX
        "model.layers.0.self_attn.dense.weight",  # Phi
        "transformer.h.0.self_attention.dense.weight",  # Falcon, Bloom
        "bert.encoder.layer.0.attention.output.dense.weight",  # BERT
        "encoder.block.0.layer.0.SelfAttention.q.weight",  # T5
        "model.decoder.layers.0.self_attn.out_proj.bias",  # OPT
    ],
    "mlp": [
        "model.layers.0.mlp.down_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
        "model.layers.0.mlp.fc1.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",  # Mixtral
        "model.layers.0.mlp.experts.3.up_proj.weight",  # Qwen-MoE
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
        "model.decoder.layers.0.fc1.weight",
    ],
    "norm": [
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",  # Qwen3
        "model.layers.0.pre_feedforward_layernorm.weight",  # Gemma 2
        "transformer.h.0.ln_1.bias",
        "transformer.ln_f.weight",
        "gpt_neox.final_layer_norm.bias",
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "transformer.word_embeddings_layernorm.weight",  # Bloom
        "encoder.block.0.layer.0.layer_norm.weight",
    ],
    "embedding": [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "transformer.wte.weight",
        "wpe.weight",
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
        "score.weight",
        "shared.weight",
        "lm_head.bias",
    ],
}


@pytest.mark.parametrize(("group", "name"), [(g, name) for g, names in EXPECTED.items() for name in names])
def test_a_tensor_is_in_the_group_its_name_speaks_of(group: str, name: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("name", ["model.layers.0.mamba.A_log", "vision.conv1.weight", "alnico.weight"])
def test_a_tensor_that_no_pattern_knows_is_in_no_group(name: str) -> None:
    assert group_of(name) is None


def test_the_first_listed_group_takes_a_tensor_and_the_rest_is_other() -> None:
    names = [f"model.layers.0.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
    names += ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    assert assign_groups(names, [{"qk": r"[qk]_proj"}, "attention", "mlp"]) == {
        "qk": (names[0], names[1]),
        "attention": (names[2],),
        "mlp": (names[3],),
        "other": (names[4],),
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["mlp"], "the group 'mlp' holds no tensor\n"),
        ([{"qq": "qq_proj"}], "'qq_proj' matches none"),
        (["attention", {"q": "q_proj"}], "groups listed before it take all that match"),
    ],
)
def test_a_group_without_tensors_is_refused(groups: list[str | dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        assign_groups(["model.layers.0.self_attn.q_proj.weight"], groups)
    assert message in str(raised.value)
    assert "tensors are named like 'model.layers.0.self_attn.q_proj.weight'" in str(raised.value)
