"""How the tensors of each architecture meet the residual stream: the table by which scales are folded into weights.

An architecture belongs in here if every layer adds to the stream what it computes from norms of the stream (or, as in
OLMo 2, norms what it adds), so that a layer computes the same of the stream times any number. Post-norm models (OPT
350M, BERT) and state-space models do not. ``tests/merging/test_folding.py`` holds each entry against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase


class Role(Enum):
    """What a tensor does with the residual stream."""

    NORM = "a norm that reads it"
    READER = "a linear map that reads it as it is"
    WRITER = "adds to it"
    POST = "a norm of what is added to it"
    INNER = "none of these"
    EMBEDDING = "writes its beginning"
    FINAL = "the norm after the last layer"
    HEAD = "reads the final norm; shares the token embeddings' weight in a tied model"


@dataclass(frozen=True)
class Family:
    """The tensors of an architecture, as patterns (``*`` and ``[abc]``) of what their modules are called.

    Args:
        norms: in a layer, the norms that read the stream.
        writers: in a layer, the maps whose output is added to the stream with no norm between.
        inner: in a layer, all that does not meet the stream.
        readers: in a layer, the linear maps that read the stream with no norm between.
        posts: in a layer, the norms whose output is added to the stream.
        layers: the list of layers, without what is before it in the names of tensors.
        tokens: the token embeddings.
        positions: other embeddings, which are added to those of tokens.
        embedding_norm: a norm of the embeddings, whose output begins the stream.
        final: the norm after the last layer.
        offset: 1 where norms multiply by 1 + weight.
        refused: values of config fields with which the architecture is another one.
    """

    norms: tuple[str, ...]
    writers: tuple[str, ...]
    inner: tuple[str, ...]
    readers: tuple[str, ...] = ()
    posts: tuple[str, ...] = ()
    layers: str = "layers"
    tokens: str = "embed_tokens"
    positions: tuple[str, ...] = ()
    embedding_norm: str | None = None
    final: str = "norm"
    offset: float = 0.0
    refused: Mapping[str, object] = field(default_factory=dict)

    def role_in_layer(self, module: str) -> Role | None:
        """Return the role of a module of a layer; None if it is not known."""
        roles = (
            (Role.NORM, self.norms),
            (Role.READER, self.readers),
            (Role.WRITER, self.writers),
            (Role.POST, self.posts),
            (Role.INNER, (*self.inner, *_BUFFERS)),
        )
        return next((role for role, each in roles if any(fnmatchcase(module, pattern) for pattern in each)), None)

    def role_outside(self, module: str) -> Role | None:
        """Return the role of a module that is in no layer; None if it is not known."""
        if module in (self.tokens, *self.positions):
            return Role.EMBEDDING if self.embedding_norm is None else Role.INNER
        if module == self.embedding_norm:
            return Role.EMBEDDING
        if module == self.final:
            return Role.FINAL
        if module in _HEADS:
            return Role.HEAD
        return Role.INNER if module in _OTHERS else None


_HEADS = ("lm_head", "embed_out")
_OTHERS = ("score", "rotary_emb.inv_freq")
# Masks and frequencies that old files hold: attn.bias, attention.masked_bias, self_attn.rotary_emb.inv_freq.
_BUFFERS = ("attn", "attention", "*.masked_bias", "*.rotary_emb.inv_freq")

_QKV = ("self_attn.[qkv]_proj",)
_QK_NORM = ("self_attn.[qk]_norm",)
_GATED = ("mlp.gate_proj", "mlp.up_proj")

_LLAMA = Family(
    norms=("input_layernorm", "post_attention_layernorm"),
    writers=("self_attn.o_proj", "mlp.down_proj"),
    inner=(*_QKV, *_GATED),
)
_QWEN3 = replace(_LLAMA, inner=(*_LLAMA.inner, *_QK_NORM))
_GEMMA2 = Family(
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    posts=("post_attention_layernorm", "post_feedforward_layernorm"),
    writers=(),
    inner=(*_QKV, *_GATED, "self_attn.o_proj", "mlp.down_proj"),
    offset=1.0,
)
_OLMO2 = Family(
    norms=(),
    readers=(*_QKV, *_GATED),
    posts=("post_attention_layernorm", "post_feedforward_layernorm"),
    writers=(),
    inner=(*_QK_NORM, "self_attn.o_proj", "mlp.down_proj"),
)
_COHERE = replace(_QWEN3, norms=("input_layernorm",))
# Experts one by one, as most files store them, or in one tensor.
_MIXTRAL = replace(
    _LLAMA,
    writers=("self_attn.o_proj", "block_sparse_moe.experts.*.w2", "mlp.experts.down_proj"),
    inner=(
        *_QKV,
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.*.w[13]",
        "mlp.gate",
        "mlp.experts.gate_up_proj",
    ),
)
_QWEN_MOE = replace(
    _QWEN3,
    writers=(*_LLAMA.writers, "mlp.experts.*down_proj", "mlp.shared_expert.down_proj"),
    inner=(
        *_QWEN3.inner,
        "mlp.gate",
        "mlp.experts.*gate_proj",
        "mlp.experts.*up_proj",
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert_gate",
    ),
)
_GPT2 = Family(
    norms=("ln_1", "ln_2"),
    writers=("attn.c_proj", "mlp.c_proj"),
    inner=("attn.c_attn", "mlp.c_fc"),
    layers="h",
    tokens="wte",
    positions=("wpe",),
    final="ln_f",
)
_BLOOM = Family(
    norms=("input_layernorm", "post_attention_layernorm"),
    writers=("self_attention.dense", "mlp.dense_4h_to_h"),
    inner=("self_attention.query_key_value", "mlp.dense_h_to_4h"),
    layers="h",
    tokens="word_embeddings",
    embedding_norm="word_embeddings_layernorm",
    final="ln_f",
    refused={"apply_residual_connection_post_layernorm": True},
)

FAMILIES: Mapping[str, Family] = {  # by model_type
    "bloom": _BLOOM,
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "falcon": replace(_BLOOM, norms=(*_BLOOM.norms, "ln_attn", "ln_mlp"), embedding_norm=None, refused={}),
    "gemma": replace(_LLAMA, offset=1.0),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, inner=(*_GEMMA2.inner, *_QK_NORM)),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": Family(
        norms=("input_layernorm", "post_attention_layernorm"),
        writers=("attention.dense", "mlp.dense_4h_to_h"),
        inner=("attention.query_key_value", "mlp.dense_h_to_4h"),
        tokens="embed_in",
        final="final_layer_norm",
    ),
    "gpt_oss": replace(
        _LLAMA,
        writers=("self_attn.o_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
        inner=(
            *_QKV,
            "self_attn.sinks",
            "mlp.router",
            "mlp.experts.gate_up_proj",
            "mlp.experts.gate_up_proj_bias",
        ),
    ),
    "gptj": Family(
        norms=("ln_1",),
        writers=("attn.out_proj", "mlp.fc_out"),
        inner=("attn.[qkv]_proj", "mlp.fc_in"),
        layers="h",
        tokens="wte",
        final="ln_f",
    ),
    "granite": _LLAMA,
    "granitemoe": replace(
        _LLAMA,
        writers=("self_attn.o_proj", "block_sparse_moe.output_linear"),
        inner=(*_QKV, "block_sparse_moe.input_linear", "block_sparse_moe.router.layer"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "olmoe": _QWEN_MOE,
    "opt": Family(
        norms=("self_attn_layer_norm", "final_layer_norm"),
        writers=("self_attn.out_proj", "fc2"),
        inner=(*_QKV, "fc1"),
        positions=("embed_positions",),
        final="final_layer_norm",
        refused={"do_layer_norm_before": False, "layer_norm_elementwise_affine": False},
    ),
    "phi": Family(
        norms=("input_layernorm",),
        writers=("self_attn.dense", "mlp.fc2"),
        inner=(*_QKV, "self_attn.[qk]_layernorm", "mlp.fc1"),
        final="final_layernorm",
    ),
    "phi3": replace(_LLAMA, inner=("self_attn.qkv_proj", "mlp.gate_up_proj")),
    "qwen2": _LLAMA,
    "qwen2_moe": _QWEN_MOE,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN_MOE,
    "smollm3": _LLAMA,
    "stablelm": replace(_LLAMA, inner=(*_LLAMA.inner, "self_attn.[qk]_layernorm.norms.*")),
    "starcoder2": replace(_LLAMA, writers=("self_attn.o_proj", "mlp.c_proj"), inner=(*_QKV, "mlp.c_fc")),
}
