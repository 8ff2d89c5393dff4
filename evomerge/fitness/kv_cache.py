"""How much memory generation keeps of the tokens so far: keys and values, from a model's config alone.

A layer of attention keeps a key and a value a head and token: 2 x key-value heads x head size x tokens x sequences.
What kind a layer is (full, of a sliding window, recurrent, sharing another's) is asked of transformers' own cache,
which is built from the config without any weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head", "num_heads", "n_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass(frozen=True)
class CacheSize:
    """What generation keeps.

    Attributes:
        bytes: of a whole batch.
        assumed: in words, how layers that are no plain attention were counted; empty if all are plain.
    """

    bytes: int
    assumed: str = ""


def kv_cache(config: Any, *, batch: int, tokens: int, itemsize: int, source_tokens: int = 0) -> CacheSize:
    """Return the size of the cache.

    Args:
        config: transformers' config of the model.
        batch: sequences.
        tokens: of a sequence that were fed: prompt and answer, padding included.
        itemsize: bytes of a number in the model's dtype.
        source_tokens: that an encoder read, whose keys and values each layer of a decoder keeps too.
    """
    if getattr(config, "is_encoder_decoder", False):
        layers = _first(config, "num_decoder_layers", "decoder_layers", "num_layers", "num_hidden_layers")
        size = layers * _attention(config) * (tokens + source_tokens)
        return CacheSize(batch * size * itemsize, "decoder's own keys and values, and those of what the encoder read")
    text = config.get_text_config(decoder=True)
    total, kinds = 0, Counter[str]()
    windows: set[int] = set()
    for kind, window, layer in _layers(text):
        if kind == "recurrent":
            total += _state(layer)
        elif kind == "attention":
            held = tokens if window is None else min(tokens, window - 1)
            total += _attention(layer) * held
        kinds[kind if window is None else "window"] += 1
        windows |= set() if window is None else {window}
    return CacheSize(batch * total * itemsize, _words(kinds, windows, text))


def width(config: Any) -> int:
    """Return, roughly, how many numbers a layer holds of a token while it runs: its input, and its widest insides."""
    text = config.get_text_config(decoder=True)
    hidden = _first(text, *HIDDEN)
    return 4 * hidden + 3 * _first(text, "intermediate_size", "n_inner", "d_ff", default=4 * hidden)


def _layers(text: Any) -> list[tuple[str, int | None, Any]]:
    """Return (kind, tokens of the window, config) of each layer."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    found: list[tuple[str, int | None, Any]] = []
    configs = list(getattr(text, "per_layer_config", None) or [])
    cache = DynamicCache(config=text).layers
    for number, layer in enumerate(cache):
        own = configs[number] if number < len(configs) else text
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            found.append(("recurrent", None, own))
        if isinstance(layer, DynamicLayer):
            found.append(("attention", getattr(layer, "sliding_window", None), own))
        elif not isinstance(layer, LinearAttentionCacheLayerMixin):
            found.append(("none", None, own))
    return found


def _attention(config: Any) -> int:
    """Return the numbers that a layer keeps of a token: a key and a value of each head."""
    rope = getattr(config, "qk_rope_head_dim", None)
    if getattr(config, "kv_lora_rank", None) and rope is not None:
        return int(config.kv_lora_rank + rope)  # the latent, of which all heads' keys and values are made anew
    heads = _first(config, *HEADS)
    key_heads = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or _first(config, *HIDDEN) // heads
    return int(2 * key_heads * size)


def _state(config: Any) -> int:
    """Return the numbers that a recurrent layer keeps of a sequence, however long it is."""
    if (heads := getattr(config, "linear_num_value_heads", None)) is not None:  # a gated delta rule
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = heads * config.linear_value_head_dim
        return int((2 * keys + values) * config.linear_conv_kernel_dim + values * config.linear_key_head_dim)
    states = _first(config, "mamba_d_state", "state_size", default=0)
    kernel = _first(config, "mamba_d_conv", "conv_kernel", "conv_L_cache", default=4)
    if states == 0:  # a short convolution alone
        return _first(config, *HIDDEN) * kernel
    expand = _first(config, "mamba_expand", "expand", default=2)
    inner = int(expand * _first(config, *HIDDEN))
    grouped = 2 * _first(config, "mamba_n_groups", "n_groups", default=0) * states  # the second kind of Mamba
    return (inner + grouped) * kernel + inner * states


def _words(kinds: Mapping[str, int], windows: Collection[int], text: Any) -> str:
    parts = []
    if windows:
        sizes = " or ".join(f"{size:,}" for size in sorted(windows))
        parts.append(f"{kinds['window']} layers keep a window of {sizes} tokens")
    if kinds["recurrent"]:
        parts.append(f"{kinds['recurrent']} recurrent layers keep a state of one size")
    if kinds["none"]:
        parts.append(f"{kinds['none']} layers keep nothing of their own")
    if getattr(text, "kv_lora_rank", None):
        parts.append("latent attention keeps the latent, not each head's keys and values")
    return "; ".join(parts)


def _first(config: Any, *names: str, default: int | None = None) -> int:
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    if default is None:
        raise AttributeError(f"{type(config).__name__} has none of {', '.join(names)}")
    return default
