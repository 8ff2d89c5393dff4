"""One tokenizer for models with different vocabularies: the base's, another model's, or the union of all.

The rules are mergekit's (mergekit 0.1.5, ``mergekit/tokenizer/build.py``): the union is the base's tokenizer with the
others' tokens added behind its own, so that every id of the base stays what it was. Where mergekit's order depends on
hashes, ours is fixed: the models as the recipe names them, a model's tokens by id.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.tokenizers import copy_tokenizer, load_tokenizer
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MergedTokenizer:
    """A tokenizer made of several, and what it was made of.

    Args:
        tokenizer: the merged one, as transformers has it.
        vocabulary: its tokens and their ids.
        vocabularies: model → token → id; the base's for a model without a tokenizer.
        unchanged: the model whose tokenizer this is, unless tokens were added or taken away.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Mapping[str, int]
    vocabularies: Mapping[str, Mapping[str, int]]
    unchanged: Checkpoint | None

    def write(self, folder: Path) -> None:
        """Write its files: the model's own, byte for byte, if this is one model's tokenizer unchanged."""
        if self.unchanged is not None:
            copy_tokenizer(self.unchanged.folder, folder)
        else:
            self.tokenizer.save_pretrained(folder)


def merge_tokenizers(
    source: str, base: str, checkpoints: Mapping[str, Checkpoint], rows: Mapping[str, int], added: Sequence[str] = ()
) -> MergedTokenizer:
    """Return the tokenizer that ``source`` asks for.

    Tokens for which a model's embedding has no row do not count as that model's.

    Args:
        source: "base", "union", or one of the models.
        base: the model that keeps its ids in a union.
        checkpoints: model → checkpoint, in the recipe's order.
        rows: model → rows of its embedding.
        added: tokens to add if they are missing.

    Raises:
        CheckpointError: a tokenizer is missing or cannot be read, or has tokens without rows that cannot be taken away.
    """
    order = [base, *(reference for reference in checkpoints if reference != base)]
    tokenizers = {reference: load_tokenizer(checkpoints[reference]) for reference in order}
    named = base if source in ("base", "union") else source
    start, own = tokenizers[named], tokenizers[base]
    if start is None or own is None:
        lacking = named if start is None else base
        raise CheckpointError(f"{lacking}: has no tokenizer files; name another model as tokenizer_source")
    trimmed = tokenizers[base] = without_rows_beyond(own, rows[base], checkpoints[base].name)
    if named == base and source in ("base", "union"):
        start = trimmed
    merged = copy.deepcopy(start)
    if source == "union":
        _add_union(merged, {reference: each for reference, each in tokenizers.items() if each is not None}, rows)
    known = merged.get_vocab()
    if missing := [token for token in dict.fromkeys(added) if token not in known]:
        merged.add_tokens(missing)
    vocabulary = dict(merged.get_vocab())
    vocabularies = {reference: dict((each or trimmed).get_vocab()) for reference, each in tokenizers.items()}
    if source == "base":  # as in mergekit: a token added to the base's tokenizer is the base's, on a row of its padding
        vocabularies[base] = vocabulary
    original = load_tokenizer(checkpoints[named])
    same = original is not None and _content(original) == _content(merged)
    return MergedTokenizer(merged, vocabulary, vocabularies, checkpoints[named] if same else None)


def _add_union(
    merged: PreTrainedTokenizerBase, tokenizers: Mapping[str, PreTrainedTokenizerBase], rows: Mapping[str, int]
) -> None:
    """Add the tokens of all tokenizers: first plain ones, then added ones, with the settings that they have first."""
    known = set(merged.get_vocab())
    special: dict[str, Any] = {}
    plain: dict[str, None] = {}
    for reference, tokenizer in tokenizers.items():
        for token, index in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
            if index < rows[reference] and token not in known:
                plain.setdefault(token)
        for index, added in sorted(tokenizer.added_tokens_decoder.items()):
            if index < rows[reference]:
                special.setdefault(added.content, added)
    merged.add_tokens([token for token in plain if token not in special])
    merged.add_tokens(list(special.values()))


def without_rows_beyond(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer without tokens whose id is ``rows`` or more.

    Raises:
        CheckpointError: tokens cannot be taken out of this tokenizer; names some.
    """
    surplus = sorted(token for token, index in tokenizer.get_vocab().items() if index >= rows)
    if not surplus:
        return tokenizer
    shown = ", ".join(map(repr, surplus[:5])) + (", ..." if len(surplus) > 5 else "")
    what = f"{name}: {len(surplus)} tokens have no row in its embedding of {rows} rows: {shown}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"{what}; they can only be taken out of a fast tokenizer: save it with a tokenizer.json")
    from tokenizers import Tokenizer

    content = _without(json.loads(backend.to_str()), set(surplus), rows)
    trimmed = copy.deepcopy(tokenizer)
    try:
        trimmed._tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise CheckpointError(f"{what}; without them the tokenizer does not work: {error}") from error
    for role, token in tokenizer.special_tokens_map.items():
        if token in surplus:
            setattr(trimmed, role, None)
    return trimmed


def _without(content: dict[str, Any], surplus: set[str], rows: int) -> dict[str, Any]:
    """Return the content of a tokenizer.json without some tokens and the merges that need them."""
    model = dict(content["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {token: index for token, index in vocabulary.items() if token not in surplus}
    elif isinstance(vocabulary, list):  # Unigram: a token's id is its place
        model["vocab"] = vocabulary[:rows]
    if "merges" in model:
        pairs = ((merge.split(" ", 1) if isinstance(merge, str) else merge, merge) for merge in model["merges"])
        model["merges"] = [
            merge for (left, right), merge in pairs if not surplus.intersection((left, right, left + right))
        ]
    added = [token for token in content["added_tokens"] if token["id"] < rows]
    return {**content, "model": model, "added_tokens": added}


def _content(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return something that two tokenizers have in common if they turn every text into the same tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    return backend.to_str(), tokenizer.special_tokens_map
