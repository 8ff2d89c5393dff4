"""Tokenizers (T17): compared by token and by embedding rows, and copied byte for byte."""

import json
import shutil

import pytest

from evomerge.checkpoints import Checkpoint, compare_tokenizers, copy_generation_config, copy_tokenizer
from evomerge.errors import CheckpointError
from evomerge.testing.tiny_models import tiny_family, tiny_tokenizer


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"), parents=1)


@pytest.fixture
def other(family, tmp_path):
    """A copy of the parent, to be changed."""
    return shutil.copytree(family["a"], tmp_path / "other")


def compare(family, folder):
    return compare_tokenizers([Checkpoint(family["base"], "base"), Checkpoint(folder, "other")])


def test_same_tokenizer_is_identical_even_if_written_differently(family, other):
    assert compare(family, family["a"]).kind == "identical"
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))  # other white space, same meaning
    assert compare(family, other).kind == "identical"


def test_more_embedding_rows_for_the_same_tokens_are_padding(family, other):
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 128}))
    comparison = compare(family, other)
    assert comparison.kind == "padding"
    assert comparison.details == ("vocab_size is 64 in base, 128 in other",)


def test_a_token_more_is_a_difference_by_name(family, other):
    tiny_tokenizer(65).save_pretrained(other)
    comparison = compare(family, other)
    assert comparison.kind == "different"
    assert comparison.details == ("1 tokens only in other: '<extra_0>'",)


def test_equal_tokens_with_other_ids_are_a_difference(family, other):
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    comparison = compare(family, other)
    assert comparison.kind == "different"
    assert comparison.details == ("2 tokens with another id in other than in base: 'a', 'b'",)


def test_broken_tokenizer_is_an_error_with_its_model(family, other):
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="other: its tokenizer cannot be read"):
        compare(family, other)


def test_files_are_copied_byte_for_byte_with_the_chat_template(family, other, tmp_path):
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n\n")
    (other / "additional_chat_templates").mkdir()
    (other / "additional_chat_templates" / "tool_use.jinja").write_text("{{ x }}")
    out = tmp_path / "out"
    out.mkdir()
    copied = copy_tokenizer(other, out)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(copied)
    assert all((out / name).read_bytes() == (other / name).read_bytes() for name in copied if "." in name)
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ x }}"
    assert not (out / "generation_config.json").exists()
    assert copy_generation_config(other, out)
    assert (out / "generation_config.json").is_file()
