"""Tiny random models on disk, with a real tokenizer: a base and parents that differ from it by a little.

They are what the tests (and anyone who writes a merge method) merge instead of downloaded models.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evomerge.errors import UnknownNameError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
NAMES = ("a", "b", "c", "d", "e", "f")


def tiny_family(
    folder: Path | str,
    architecture: str = "llama",
    parents: int = 3,
    seed: int = 0,
    dtype: str = "float32",
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    *,
    shard_size: str = "50GB",
    tied: bool | None = None,
    distance: float = 0.02,
    extra: dict[str, Any] | None = None,
) -> dict[str, Path]:
    """Write a base and some parents that were "fine-tuned" from it (base + normal noise).

    Args:
        folder: where the model folders go; created when missing.
        architecture: one of ``ARCHITECTURES`` ("llama", "mistral", "qwen2", "gpt2", "qwen3_moe", ...).
        parents: how many parents besides the base, at most 6.
        seed: the weights depend on it and on nothing else; no global random state is touched.
        dtype: what the weights are stored in ("float32", "float16", "bfloat16").
        layers: number of decoder layers.
        hidden: hidden size, a multiple of 8.
        vocab: tokens of the tokenizer and rows of the embedding, at least 64.
        shard_size: such as "20KB" to write several shards with an index.
        tied: whether embedding and head share weights; None leaves the architecture's default.
        distance: standard deviation of the noise that makes a parent of the base.
        extra: further fields of the model's config.

    Returns:
        Folders by name: "base", then "a", "b", "c", ... one for each parent.

    Raises:
        UnknownNameError: the architecture is none of ours.
    """
    folder = Path(folder)
    config = tiny_config(architecture, layers=layers, hidden=hidden, vocab=vocab, tied=tied, extra=extra)
    config.dtype = dtype
    tokenizer = tiny_tokenizer(vocab)
    model = tiny_model(config, seed)
    start = {name: value.clone() for name, value in model.named_parameters()}
    paths: dict[str, Path] = {}
    for index, name in enumerate(("base", *NAMES[:parents])):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * distance if index else 0.0
            parameter.data = (start[key] + noise).to(getattr(torch, dtype))
        paths[name] = folder / name
        model.save_pretrained(paths[name], max_shard_size=shard_size)
        tokenizer.save_pretrained(paths[name])
    return paths


def tiny_config(
    architecture: str,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    tied: bool | None = None,
    extra: dict[str, Any] | None = None,
) -> PreTrainedConfig:
    """Return a small config of ``architecture``; ``extra`` overrides any field.

    Raises:
        UnknownNameError: the architecture is none of ours.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("tiny architecture", architecture, ARCHITECTURES)
    fields = ARCHITECTURES[architecture](layers, hidden)
    fields |= {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields |= {} if tied is None else {"tie_word_embeddings": tied}
    return AutoConfig.for_model(architecture, **(fields | (extra or {})))


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a float32 causal model with random weights that depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(vocab: int = 64) -> PreTrainedTokenizerFast:
    """Return a character tokenizer (lower case, digits, punctuation) of exactly ``vocab`` tokens.

    Raises:
        ValueError: fewer than 64 tokens were asked for.
    """
    characters = string.ascii_lowercase + string.digits + " .,?!:;+-*/=()'\"\n%$#&<>_"
    tokens = [*SPECIAL, *characters]
    if vocab < len(tokens):
        raise ValueError(f"a tiny tokenizer has at least {len(tokens)} tokens, asked for {vocab}")
    tokens += [f"<extra_{n}>" for n in range(vocab - len(tokens))]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
        chat_template="{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    )


def _decoder(layers: int, hidden: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": hidden + hidden // 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 256,
    }


def _gpt2(layers: int, hidden: int) -> dict[str, Any]:
    return {"n_layer": layers, "n_embd": hidden, "n_head": 4, "n_positions": 256}


def _experts(layers: int, hidden: int) -> dict[str, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden // 2}
    return _decoder(layers, hidden) | experts


ARCHITECTURES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "llama": _decoder,
    "mistral": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "gemma2": _decoder,
    "gpt2": _gpt2,
    "qwen3_moe": _experts,
}
