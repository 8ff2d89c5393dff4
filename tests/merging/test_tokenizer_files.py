"""The tokenizer's files beside merged weights: which chat template they have, and that nothing else is touched."""

import json

import pytest
from transformers import AutoTokenizer

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.errors import ConfigError
from evomerge.merging import Parents, check_recipe, merge_to_folder
from evomerge.merging.tokenizer_files import merged_tokenizer
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

OWN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
OTHER = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    family = tiny_family(tmp_path_factory.mktemp("family"))
    for name in ("b", "c"):
        (family[name] / "chat_template.jinja").write_text(f"{OTHER}\n")
    return family


def recipe(paths, **more):
    models = [{"model": str(path), "parameters": {"weight": 1.0}} for path in list(paths.values())[1:]]
    return Recipe.model_validate({"merge_method": "linear", "models": models, **more})


@pytest.mark.parametrize("source", [None, "union"])
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, OWN), ("auto", OTHER), ("chatml", CHAT_TEMPLATES["chatml"]), ("B", f"{OTHER}\n"), (OTHER * 2, OTHER * 2)],
)
def test_the_template_is_the_one_asked_for(paths, tmp_path, source, chosen, expected):
    chosen = str(paths["b"]) if chosen == "B" else chosen
    each = recipe(paths, chat_template=chosen, tokenizer_source=source)
    parents = Parents.open(each.parents())
    assert check_recipe(each, parents) == []
    out = merge_to_folder(each, tmp_path / "out", parents=parents)
    assert AutoTokenizer.from_pretrained(out).chat_template.strip() == expected.strip()
    tokenizer = merged_tokenizer(each, parents.viewed(each).checkpoints)
    assert tokenizer.chat_template.strip() == expected.strip()
    assert (out / "tokenizer.json").read_bytes() == (paths["a"] / "tokenizer.json").read_bytes()


def test_a_parent_without_template_cannot_give_one(paths, tmp_path):
    (paths["c"] / "chat_template.jinja").rename(tmp_path / "kept")
    try:
        each = recipe(paths, chat_template=str(paths["c"]))
        assert "has no chat template" in str(check_recipe(each, Parents.open(each.parents()))[0])
        with pytest.raises(ConfigError, match="has no chat template"):
            merged_tokenizer(each, Parents.open(each.parents()).checkpoints)
        with pytest.raises(ConfigError, match="has no chat template"):
            merge_to_folder(each, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    finally:
        (tmp_path / "kept").rename(paths["c"] / "chat_template.jinja")


def test_the_tokenizer_of_a_merge_without_settings_is_its_donors(paths, tmp_path):
    each = recipe(paths, base_model=str(paths["base"]), parameters={"weight": 0.5})
    out = merge_to_folder(each, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (paths["base"] / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 64
