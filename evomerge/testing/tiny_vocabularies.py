"""Tiny random models with different tokenizers: what merges of vocabularies are tried on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evomerge.testing.tiny_models import tiny_config, tiny_model

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
WORDS = [
    *("merge", "model", "weight", "vector", "token", "table", "river", "stone", "bread", "winter", "morning", "paper"),
    *("engine", "garden", "silver", "window", "Straße", "größer", "mañana", "café", "東京", "大阪", "数学", "привет"),
    *("молоко", "12", "345", "6789", "def", "return", "print", "for", "in", "range"),
]


def tiny_vocabularies(
    folder: Path,
    kind: str = "bytes",
    *,
    sizes: Mapping[str, int],
    extra: Mapping[str, list[str]] | None = None,
    padding: Mapping[str, int] | None = None,
    architecture: str = "llama",
    dtype: str = "float32",
    seed: int = 0,
    **config: Any,
) -> dict[str, Path]:
    """Write models with random weights and a tokenizer of their own each; return their folders by name.

    Args:
        folder: where the model folders go.
        kind: one of ``KINDS``: how the tokenizers cut words.
        sizes: model → how many tokens its tokenizer learns, from texts of its own.
        extra: model → special tokens that its tokenizer has besides.
        padding: model → rows of its embedding beyond its tokens; negative for tokens without a row.
        architecture: see `tiny_config`.
        dtype: what the weights are stored in.
        seed: of texts and weights.
        config: more fields for `tiny_config`.
    """
    paths: dict[str, Path] = {}
    for index, (name, size) in enumerate(sizes.items()):
        tokenizer = tiny_vocabulary(kind, size, seed=1000 * seed + index)
        tokenizer.add_special_tokens({"additional_special_tokens": (extra or {}).get(name, [])})
        rows = max(tokenizer.get_vocab().values()) + 1 + (padding or {}).get(name, 0)
        settings = tiny_config(architecture, vocab=rows, **config)
        settings.dtype = dtype
        for role in ("bos", "eos", "pad"):
            setattr(settings, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
        model = tiny_model(settings, seed=1000 * seed + index).to(getattr(torch, dtype))
        paths[name] = Path(folder) / name
        model.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    return paths


def tiny_vocabulary(kind: str, size: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one of the ``KINDS``, trained on random text."""
    draw = random.Random(seed)
    some = draw.sample(WORDS, 24)
    text = [" ".join(draw.choices(some, k=12)) for _ in range(40)]
    tokenizer, trainer = KINDS[kind](size)
    tokenizer.train_from_iterator(text, trainer)
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _bytes(size: int) -> tuple[Tokenizer, Any]:
    """GPT-2's, Llama 3's and Qwen's way: merges over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )


def _sentencepiece(size: int) -> tuple[Tokenizer, Any]:
    """Llama 2's and Mistral's way: merges over characters, spaces among them, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(vocab_size=size + 256, special_tokens=pieces, show_progress=False)


def _words(size: int) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer, trainers.WordLevelTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)


def _wordpiece(size: int) -> tuple[Tokenizer, Any]:
    """BERT's way."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)


def _unigram(size: int) -> tuple[Tokenizer, Any]:
    """T5's way."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )


KINDS: Mapping[str, Callable[[int], tuple[Tokenizer, Any]]] = {
    "bytes": _bytes,
    "sentencepiece": _sentencepiece,
    "words": _words,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}
