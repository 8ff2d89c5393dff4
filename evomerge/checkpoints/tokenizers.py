"""Tokenizers of parents: are they the same, and copying one byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARY_FILES = tuple(name for name in TOKENIZER_FILES if not name.startswith(("chat_template", "special_tokens")))
PROCESSOR_FILES = (  # how pictures, videos and sound become numbers
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "video_processor_config.json",
    "feature_extractor_config.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"
GENERATION_CONFIG = "generation_config.json"
SHOWN = 5


@dataclass(frozen=True)
class TokenizerComparison:
    """How the vocabularies of some checkpoints relate.

    ``identical``: every token has the same id everywhere and the embeddings have equally many rows;
    ``padding``: the same tokens and ids, but the embeddings differ in unused rows at the end;
    ``different``: some token is missing somewhere or has another id.
    """

    kind: Literal["identical", "padding", "different"]
    details: tuple[str, ...] = ()


def compare_tokenizers(checkpoints: Sequence[Checkpoint]) -> TokenizerComparison:
    """Compare every checkpoint's vocabulary with the first one's: by token string, and the rows apart from
    that.

    Checkpoints without tokenizer files are compared by rows only.
    """
    first, *others = checkpoints
    tokens: list[str] = []
    rows: list[str] = []
    for other in others:
        tokens += _differing_tokens(first, other)
        if vocab_size(first) != vocab_size(other):
            rows.append(f"vocab_size is {vocab_size(first)} in {first.name}, {vocab_size(other)} in {other.name}")
    if tokens:
        return TokenizerComparison("different", tuple(tokens + rows))
    return TokenizerComparison("padding", tuple(rows)) if rows else TokenizerComparison("identical")


def vocab_size(checkpoint: Checkpoint) -> int | None:
    """Return the rows that the config gives the embedding (often more than tokens), None if unsaid."""
    config: Mapping[str, Any] = checkpoint.config
    return config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))


def vocabulary(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Return token → id, added tokens included; None if the folder holds no tokenizer.

    Raises:
        CheckpointError: there are tokenizer files, but they cannot be read.
    """
    fast = checkpoint.folder / "tokenizer.json"
    try:
        if fast.is_file():
            from tokenizers import Tokenizer

            return dict(Tokenizer.from_file(str(fast)).get_vocab(with_added_tokens=True))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise CheckpointError(f"{checkpoint.name}: its tokenizer cannot be read: {error}") from error
    loaded = load_tokenizer(checkpoint)
    return None if loaded is None else dict(loaded.get_vocab())


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether the folder holds a tokenizer, readable or not."""
    return any((checkpoint.folder / name).is_file() for name in VOCABULARY_FILES) or any(
        checkpoint.folder.glob("*.tiktoken")
    )


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer as transformers loads it; None if the folder holds none.

    Raises:
        CheckpointError: there are tokenizer files, but they cannot be read.
    """
    if not has_tokenizer(checkpoint):
        return None
    from transformers import AutoTokenizer

    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise CheckpointError(f"{checkpoint.name}: its tokenizer cannot be read: {error}") from error
    return loaded


def copy_tokenizer(source: Path, out: Path) -> list[str]:
    """Copy the tokenizer's files and chat templates unchanged and return their names.

    Saving them anew would rewrite ``tokenizer.json`` in the format of the installed library.
    """
    copied = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    copied += sorted(path.name for path in source.glob("*.tiktoken"))
    for name in copied:
        shutil.copyfile(source / name, out / name)
    if (source / TEMPLATE_FOLDER).is_dir():
        shutil.copytree(source / TEMPLATE_FOLDER, out / TEMPLATE_FOLDER, copy_function=shutil.copyfile)
        copied.append(TEMPLATE_FOLDER)
    return copied


def copy_processors(source: Path, out: Path) -> list[str]:
    """Copy the settings of processors and feature extractors unchanged and return their names."""
    copied = [name for name in PROCESSOR_FILES if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, out / name)
    return copied


def copy_generation_config(source: Path, out: Path) -> bool:
    """Copy ``generation_config.json`` unchanged; return whether there was one."""
    if not (source / GENERATION_CONFIG).is_file():
        return False
    shutil.copyfile(source / GENERATION_CONFIG, out / GENERATION_CONFIG)
    return True


def _differing_tokens(first: Checkpoint, other: Checkpoint) -> list[str]:
    if _same_bytes(first.folder / "tokenizer.json", other.folder / "tokenizer.json"):
        return []
    ours, theirs = vocabulary(first), vocabulary(other)
    if ours is None or theirs is None:
        return []
    moved = [token for token, index in ours.items() if theirs.get(token, index) != index]
    groups = (
        (f"only in {first.name}", [token for token in ours if token not in theirs]),
        (f"only in {other.name}", [token for token in theirs if token not in ours]),
        (f"with another id in {other.name} than in {first.name}", moved),
    )
    return [f"{len(tokens)} tokens {what}: {_some(tokens)}" for what, tokens in groups if tokens]


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in sorted(tokens)[:SHOWN]) + (", ..." if len(tokens) > SHOWN else "")


def _same_bytes(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()) or first.stat().st_size != second.stat().st_size:
        return False
    return first.read_bytes() == second.read_bytes()
