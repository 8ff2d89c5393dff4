"""Tokenizers made of several: what is added, what is taken away, and whose files are kept."""

import pytest
from transformers import AutoTokenizer

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.merged_tokenizer import merge_tokenizers
from evomerge.errors import CheckpointError
from evomerge.testing.tiny_vocabularies import KINDS, WORDS, tiny_vocabularies

SIZES = {"base": 290, "a": 300}
EXTRA = {"a": ["<|im_start|>"]}


def opened(folder, kind="bytes", **more):
    paths = tiny_vocabularies(folder, kind, sizes=SIZES, extra=EXTRA, hidden=8, **more)
    return {name: Checkpoint(path, name) for name, path in paths.items()}


def rows(checkpoints):
    return {name: each.config["vocab_size"] for name, each in checkpoints.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_cuts_texts_as_the_base_where_nothing_new_stands(tmp_path, kind):
    checkpoints = opened(tmp_path, kind)
    union = merge_tokenizers("union", "base", checkpoints, rows(checkpoints))
    base = AutoTokenizer.from_pretrained(checkpoints["base"].folder)
    assert base.get_vocab().items() <= union.vocabulary.items()
    assert set(union.vocabulary) == set(base.get_vocab()) | set(union.vocabularies["a"])
    assert sorted(union.vocabulary.values()) == list(range(len(union.vocabulary)))
    new = set(union.vocabulary) - set(base.get_vocab())
    old = [word for word in WORDS if not any(token in f" ▁{word}" for token in new)]
    assert old or kind == "unigram"
    for word in old:
        assert union.tokenizer(word)["input_ids"] == base(word)["input_ids"]
    index = union.vocabulary["<|im_start|>"]
    assert index in union.tokenizer("x<|im_start|>y")["input_ids"]
    assert union.tokenizer.decode([index], skip_special_tokens=True) == ""  # it stays special


def test_it_does_not_depend_on_hashes(tmp_path):
    checkpoints = opened(tmp_path)
    first, second = (merge_tokenizers("union", "base", checkpoints, rows(checkpoints)) for _ in range(2))
    assert first.vocabulary == second.vocabulary
    tokens = sorted(set(first.vocabularies["a"]) - set(first.vocabularies["base"]) - {"<|im_start|>"})
    assert [first.vocabulary[each] for each in sorted(tokens, key=first.vocabularies["a"].__getitem__)] == list(
        range(290, 290 + len(tokens))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_the_base_without_rows_are_taken_away(tmp_path, kind):
    checkpoints = opened(tmp_path, kind, padding={"base": -2})
    size = checkpoints["base"].config["vocab_size"]
    merged = merge_tokenizers("base", "base", checkpoints, rows(checkpoints))
    assert len(merged.vocabulary) == size
    assert max(merged.vocabulary.values()) == size - 1
    assert merged.unchanged is None
    merged.write(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == merged.vocabulary
    assert max(again(" ".join(WORDS))["input_ids"]) < size


def test_special_tokens_without_rows_lose_their_role(tmp_path):
    """Saved with its role, the token would be added again on loading, with an id beyond the embedding."""
    checkpoints = opened(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["base"].folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(checkpoints["base"].folder)
    merged = merge_tokenizers("base", "base", checkpoints, rows(checkpoints))
    merged.write(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.pad_token is None
    assert "[PAD]" not in again.get_vocab()


def test_an_unchanged_tokenizers_files_are_copied(tmp_path):
    checkpoints = opened(tmp_path / "models")
    merged = merge_tokenizers("a", "base", checkpoints, rows(checkpoints))
    assert merged.unchanged is checkpoints["a"]
    merged.write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (checkpoints["a"].folder / name).read_bytes()
    assert merge_tokenizers("a", "base", checkpoints, rows(checkpoints), ["<|new|>"]).unchanged is None


def test_a_model_without_tokenizer_is_taken_to_have_the_bases(tmp_path):
    checkpoints = opened(tmp_path)
    for file in checkpoints["a"].folder.glob("tokenizer*"):
        file.unlink()
    merged = merge_tokenizers("base", "base", checkpoints, rows(checkpoints))
    assert merged.vocabularies["a"] == merged.vocabularies["base"]
    with pytest.raises(CheckpointError, match="a: has no tokenizer files; name another model"):
        merge_tokenizers("a", "base", checkpoints, rows(checkpoints))
