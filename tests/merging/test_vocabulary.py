"""Merged vocabularies: rows where they belong, ids that mean what they meant, refusals (mergekit: tests/references)."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.vocabulary_tensors import vocabulary_axes
from evomerge.errors import ConfigError
from evomerge.merging import InPlaceMerger, Parents, check_recipe, merge_tensors, merge_to_folder
from evomerge.merging.tokenizer_files import merged_tokenizer
from evomerge.merging.vocabulary import vocabulary_of
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family
from evomerge.testing.tiny_vocabularies import tiny_vocabularies

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIZES = {"base": 20, "a": 24, "b": 28}
EXTRA = {"a": ["<|im_start|>"], "b": ["<|im_start|>", "<|tool|>"]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny_vocabularies(tmp_path_factory.mktemp("models"), "words", sizes=SIZES, extra=EXTRA, hidden=16)


@pytest.fixture
def parents(paths):
    return Parents.open([str(path) for path in paths.values()])


def linear(paths, names=("base", "a", "b"), **more):
    models = [{"model": str(paths[name]), "parameters": {"weight": 1.0}} for name in names]
    return Recipe.model_validate({"merge_method": "linear", "models": models, **more})


def messages(recipe, parents):
    return "\n".join(map(str, check_recipe(recipe, parents)))


def test_vocabularies_that_differ_are_refused_with_counts_and_examples(paths, parents):
    found = messages(linear(paths), parents)
    assert "the models have different vocabularies" in found
    ours, theirs = (AutoTokenizer.from_pretrained(paths[name]).get_vocab() for name in ("base", "b"))
    missing = sorted(set(theirs) - set(ours))
    assert f"{len(missing)} tokens only in {paths['b']}: {missing[0]!r}" in found
    assert "tokenizer_source: base, union, or one of the models" in found


@pytest.mark.parametrize("source", ["base", "union", "a"])
def test_each_row_is_the_tokens_row(paths, parents, source):
    """Written again, row by row, from the rules: own row; only owner's; base's; the average; zero."""
    base = str(paths["base"])
    chosen = str(paths[source]) if source in paths and source != "base" else source
    recipe = linear(paths, base_model=base, tokenizer_source=chosen)
    assert check_recipe(recipe, parents) == []
    seen = parents.viewed(recipe)
    vocabulary = merged_tokenizer(recipe, seen.checkpoints).get_vocab()
    own = {each: AutoTokenizer.from_pretrained(each).get_vocab() for each in parents.checkpoints}
    for name in (EMBED, HEAD):
        for model in parents.checkpoints:
            rows = seen.tensor(model, name)
            assert rows.shape == (len(vocabulary), 16)
            for token, index in vocabulary.items():
                having = [each for each in own if token in own[each]]
                donors = [model] if model in having else [base] if base in having else having
                found = [parents.tensor(donor, name)[own[donor][token]] for donor in donors]
                torch.testing.assert_close(rows[index], torch.stack(found).mean(0), rtol=1e-6, atol=1e-7)


def test_a_union_keeps_the_bases_ids_and_the_parents_files(paths, parents, tmp_path):
    recipe = linear(paths, tokenizer_source="union", base_model=str(paths["base"]))
    out = merge_to_folder(recipe, tmp_path / "union", parents=parents)
    ours, base = (AutoTokenizer.from_pretrained(each).get_vocab() for each in (out, paths["base"]))
    assert base.items() <= ours.items()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(ours)
    taken = merge_to_folder(linear(paths, tokenizer_source=str(paths["b"])), tmp_path / "b", parents=parents)
    assert (taken / "tokenizer.json").read_bytes() == (paths["b"] / "tokenizer.json").read_bytes()


def test_the_same_vocabulary_needs_no_source_and_changes_nothing(tmp_path):
    family = tiny_family(tmp_path, parents=2)
    recipe = linear(family, ("a", "b"))
    plain, named = (
        dict(merge_tensors(each, Parents.open(each.parents())))
        for each in (recipe, recipe.model_copy(update={"tokenizer_source": "union"}))
    )
    assert plain.keys() == named.keys()
    assert all(torch.equal(tensor, named[name]) for name, tensor in plain.items())


@pytest.fixture
def padded(tmp_path):
    """The same tokens everywhere, in 64, 72 and 80 rows."""
    family = tiny_family(tmp_path / "family", parents=2)
    for name, rows in (("a", 72), ("b", 80)):
        tensors = load_file(family[name] / "model.safetensors")
        for each in (EMBED, HEAD):
            tensors[each] = torch.cat((tensors[each], torch.full((rows - 64, 32), float(rows))))
        save_file(tensors, family[name] / "model.safetensors", {"format": "pt"})
        config = json.loads((family[name] / "config.json").read_text())
        (family[name] / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return family


def test_padding_is_kept_at_its_largest(padded, tmp_path):
    recipe = linear(padded)
    parents = Parents.open(recipe.parents())
    assert parents.problems() == []
    assert check_recipe(recipe, parents) == []
    out = merge_to_folder(recipe, tmp_path / "out", parents=parents)
    merged = load_file(out / "model.safetensors")
    means = sum(parents.tensor(str(path), EMBED)[:64] for path in padded.values()) / 3
    torch.testing.assert_close(merged[EMBED][:64], means)
    assert (merged[EMBED][64:72] == 76).all()  # where base has no row, but both others have
    assert (merged[EMBED][72:] == 80).all()
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 80


def test_padding_that_a_named_source_leaves_out_is_told(padded, caplog):
    recipe = linear(padded, tokenizer_source="union")
    with caplog.at_level(logging.WARNING, "evomerge"):
        rows = dict(merge_tensors(recipe, Parents.open(recipe.parents())))[EMBED]
    assert len(rows) == 64
    assert f"the merged vocabulary has 64 rows, {padded['a']} has 72, {padded['b']} has 80" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"<x>": {"source": "A"}}, "the embedding of '<x>' is to come from A, which has no such token"),
        ({"<x>": {"source": {"kind": "model_token", "model": "A", "token": "<y>"}}}, "has no such token"),
        ({"<x>": {"source": {"kind": "model_token", "model": "A", "token_id": 999}}}, "has no such token"),
        ({"": {"source": {"kind": "zero"}}}, "the empty text is no token"),
        ({"<x>": {"source": "B"}}, "'B', which is none of the recipe's models"),
    ],
)
def test_tokens_without_a_source_are_refused_by_name(paths, parents, tokens, expected):
    text = json.dumps({"source": "union", "tokens": tokens}).replace('"A"', json.dumps(str(paths["a"])))
    recipe = linear(paths, tokenizer=json.loads(text))
    assert expected.replace(" A,", f" {paths['a']},") in messages(recipe, parents)


def test_a_source_without_tokenizer_or_of_nobody_is_refused(paths, tmp_path):
    bare = shutil.copytree(paths["a"], tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    models = {"base": paths["base"], "bare": bare}
    recipe = linear(models, ("base", "bare"), tokenizer_source=str(bare))
    assert f"{bare}: has no tokenizer files" in messages(recipe, Parents.open(recipe.parents()))
    recipe = linear(models, ("base", "bare"), tokenizer_source="bsae")
    assert "none of the recipe's models" in messages(recipe, Parents.open(recipe.parents()))
    with pytest.raises(ConfigError, match="none of the recipe's models"):
        Parents.open(recipe.parents()).viewed(recipe)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5", "gpt2", "qwen2_vl", "vit"])
def test_vocabulary_tensors_are_found_without_a_list(tmp_path, architecture):
    """Vocabulary, hidden size and positions are equally many: sizes alone cannot tell."""
    folder = tiny_family(tmp_path, architecture, parents=0, hidden=64)["base"]
    expected = {
        "llama": {EMBED, HEAD},
        "bert": {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"},
        "t5": {"shared.weight"},
        "gpt2": {"transformer.wte.weight"},
        "qwen2_vl": {EMBED, HEAD},
        "vit": set(),
    }
    found = vocabulary_axes(Checkpoint(folder))
    assert {name for name in found if "decoder." not in name or architecture == "gpt2"} == expected[architecture]
    assert set(found.values()) <= {0}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bert", "t5", "bart", "qwen2_vl"])
def test_a_model_merged_with_itself_under_other_ids_is_itself(tmp_path, architecture):
    """Every tensor with a row for each token is found, biases and buffers too, or a merge would mix rows."""
    folder = tiny_family(tmp_path, architecture, parents=0, vocab=67)["base"]  # 67: no other size of these models
    tensors = load_file(folder / "model.safetensors")
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    moved = shutil.copytree(folder, tmp_path / "moved")
    for name, tensor in tensors.items():
        for axis, size in enumerate(tensor.shape):
            tensor = tensor.index_select(axis, order) if size == 67 else tensor
        tensors[name] = tensor.contiguous()
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    file = moved / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    new = {int(old): index for index, old in enumerate(order)}
    tokenizer["model"]["vocab"] = {token: new[index] for token, index in tokenizer["model"]["vocab"].items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    file.write_text(json.dumps(tokenizer))
    recipe = linear({"base": folder, "moved": moved}, ("base", "moved"), tokenizer_source="base")
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    for name, tensor in merge_tensors(recipe, parents):
        torch.testing.assert_close(tensor, parents.tensor(str(folder), name))


def test_a_tied_model_and_an_untied_one_keep_their_heads(tmp_path):
    """The tied model's head is its embedding, in the merged vocabulary too; the merge is untied."""
    models = {}
    for name, tied in (("base", True), ("a", False)):
        models |= tiny_vocabularies(
            tmp_path, "words", sizes={name: SIZES[name]}, extra=EXTRA, hidden=16, tied=tied, seed=len(name)
        )
    recipe = linear(models, ("base", "a"), tokenizer_source="union")
    parents = Parents.open(recipe.parents())
    assert check_recipe(recipe, parents) == []
    seen = parents.viewed(recipe)
    ids = merged_tokenizer(recipe, seen.checkpoints).get_vocab()
    own = AutoTokenizer.from_pretrained(models["a"]).get_vocab()["<|im_start|>"]
    head = seen.tensor(str(models["base"]), HEAD)[ids["<|im_start|>"]]
    assert torch.equal(head, parents.tensor(str(models["a"]), HEAD)[own])
    out = merge_to_folder(recipe, tmp_path / "out", parents=parents)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.lm_head.weight, load_file(out / "model.safetensors")[HEAD])


def test_tied_models_stay_tied(tmp_path):
    models = tiny_vocabularies(tmp_path / "models", "words", sizes=SIZES, extra=EXTRA, hidden=16, tied=True)
    out = merge_to_folder(linear(models, tokenizer_source="union"), tmp_path / "out")
    assert HEAD not in load_file(out / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_ids_of_configs_follow_their_tokens(paths, tmp_path):
    """With a parent's tokenizer, end of text and its like are the parent's."""
    models = {name: shutil.copytree(path, tmp_path / name) for name, path in paths.items()}
    fields = {"eos_token_id": [2, 1], "pad_token_id": 3, "temperature": 0.5}
    (models["base"] / "generation_config.json").write_text(json.dumps(fields))
    tokens = {name: AutoTokenizer.from_pretrained(path).get_vocab() for name, path in models.items()}
    end = tokens["b"]["<|tool|>"]
    (models["b"] / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "temperature": 1.5}))
    config = json.loads((models["b"] / "config.json").read_text())
    (models["b"] / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
    settings = {"base_model": str(models["base"]), "tokenizer_source": str(models["b"])}
    out = merge_to_folder(linear(models, **settings), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == end
    said = json.loads((out / "generation_config.json").read_text())
    assert said == {"eos_token_id": end, "pad_token_id": tokens["b"]["<pad>"], "temperature": 0.5}
    union = merge_to_folder(linear(models, **settings | {"tokenizer_source": "union"}), tmp_path / "union")
    assert json.loads((union / "generation_config.json").read_text()) == fields


def test_a_resident_model_has_the_merged_rows(paths, parents, tmp_path):
    base = str(paths["base"])
    recipes = [linear(paths, names, base_model=base, tokenizer_source="union") for names in (("base", "a", "b"),)]
    seen = parents.viewed(recipes[0])
    merger = InPlaceMerger(seen, base=base)
    out = merge_to_folder(recipes[0], tmp_path / "out", parents=parents)
    merger.merge(recipes[0])
    expected = AutoModelForCausalLM.from_pretrained(out)
    state = merger.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())
    assert merger.model.config.vocab_size == expected.config.vocab_size
    alone = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(paths["b"])}]})
    merger.merge(alone)  # a parent alone, as searches evaluate it, in the same vocabulary
    assert torch.equal(merger.model.state_dict()[EMBED], seen.tensor(str(paths["b"]), EMBED))


def test_what_is_seen_twice_is_the_same_and_has_its_own_fingerprint(paths, parents):
    recipe = linear(paths, tokenizer_source="union")
    seen = parents.viewed(recipe)
    again = seen.viewed(recipe)
    prints = {model: seen[model].fingerprint for model in seen.checkpoints}
    assert prints == {model: again[model].fingerprint for model in again.checkpoints}
    assert all(prints[model] != parents[model].fingerprint for model in prints)
    other = parents.viewed(linear(paths, tokenizer_source=str(paths["a"])))
    assert all(prints[model] != other[model].fingerprint for model in prints)
    assert vocabulary_of(seen[str(paths["a"])]) is not None
    assert vocabulary_of(parents[str(paths["a"])]) is None
