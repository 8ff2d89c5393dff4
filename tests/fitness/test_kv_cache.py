"""The size of the cache is that of transformers' own, to the byte."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, DynamicCache, PreTrainedConfig

from evomerge.fitness.kv_cache import kv_cache
from evomerge.testing.tiny_models import tiny_config, tiny_model

BATCH, TOKENS = 3, 13
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 5}
EXPERTS = {"n_routed_experts": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
OTHERS: dict[str, dict[str, Any]] = {
    "deepseek_v3": SIZES | LATENT | EXPERTS | {"num_hidden_layers": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "qwen3_next": SIZES
    | DELTA
    | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "lfm2": SIZES
    | {"num_hidden_layers": 3, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    | {"multi_query": True, "new_decoder_architecture": False},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 4}
    | {"n_groups": 1, "vocab_size": 64},
}
WINDOWED = ("mistral", "gemma2", "gemma3_text", "gpt_oss")
TINY = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "phi", "phi3", "mixtral", "qwen3_moe", "mamba", "jamba")


def config_of(family: str) -> PreTrainedConfig:
    if family in OTHERS:
        return AutoConfig.for_model(family, **OTHERS[family])
    return tiny_config(family, layers=3, extra={"sliding_window": 8} if family in WINDOWED else None)


def held(cache: Any) -> int:
    """Return the bytes of all tensors that a cache holds."""
    if hasattr(cache, "cross_attention_cache"):
        return held(cache.self_attention_cache) + held(cache.cross_attention_cache)
    names = ("keys", "values", "conv_states", "recurrent_states")
    kept = [getattr(layer, name, None) for layer in cache.layers for name in names]
    flat = [each for one in kept for each in (one.values() if isinstance(one, dict) else [one])]
    return sum(tensor.nbytes for tensor in flat if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("family", [*TINY, *WINDOWED, *OTHERS])
def test_of_a_decoder(family: str) -> None:
    config = config_of(family)
    tokens = torch.randint(0, 60, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if family in ("mamba", "mamba2"):
            cache = tiny_model(config)(input_ids=tokens, use_cache=True).cache_params
        else:
            cache = DynamicCache(config=config)
            tiny_model(config)(input_ids=tokens, past_key_values=cache, use_cache=True)
    assert kv_cache(config, batch=BATCH, tokens=TOKENS, itemsize=4).bytes == held(cache)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_of_an_encoder_and_decoder(family: str) -> None:
    config = config_of(family)
    tokens = torch.ones(BATCH, TOKENS, dtype=torch.long)
    with torch.no_grad():
        cache = tiny_model(config)(input_ids=tokens, decoder_input_ids=tokens[:, :5], use_cache=True).past_key_values
    found = kv_cache(config, batch=BATCH, tokens=5, source_tokens=TOKENS, itemsize=4)
    assert found.bytes == held(cache)
    assert "encoder" in found.assumed


@pytest.mark.parametrize(
    ("family", "words"),
    [("llama", ""), ("mistral", "a window of 8"), ("jamba", "recurrent"), ("deepseek_v3", "latent")],
)
def test_what_is_assumed_is_said(family: str, words: str) -> None:
    assumed = kv_cache(config_of(family), batch=1, tokens=5, itemsize=2).assumed
    assert words in assumed
    assert bool(assumed) == bool(words)


def test_of_a_known_model_by_hand() -> None:
    """Llama-3-8B at 8,192 tokens in bfloat16: 2 x 32 layers x 8 heads x 128 numbers x 2 bytes, 1 GiB."""
    sizes = {"num_hidden_layers": 32, "num_key_value_heads": 8, "num_attention_heads": 32, "hidden_size": 4096}
    config = AutoConfig.for_model("llama", **sizes)
    assert kv_cache(config, batch=1, tokens=8192, itemsize=2).bytes == 2**30
