"""``evomerge statistics`` and what the methods make of it: both engines, several architectures."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.cli import main
from evomerge.cli.calibration import encode, sources
from evomerge.errors import ConfigError
from evomerge.merging import InPlaceMerger, Parents, merge_to_folder
from evomerge.merging.statistics import Statistics
from evomerge.recipes import Recipe, read_recipe
from evomerge.testing.tiny_models import tiny_family, tiny_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. 12 + 34 = 46, and so on and so forth!\n" * 8
KINDS = "fisher,gram,gradient,scale,sample,loss"
METHODS = {
    "fisher": {},
    "regmean": {"alpha": 0.9},
    "mats": {"iterations": 4, "start": 1.2},
    "mats_fisher": {"iterations": 3},
    "lm_cocktail": {"temperature": 0.1},
    "ties": {"weight": 0.5, "density": 0.5},
}


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command; return its exit code and output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", "statistics", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def model_options(paths):
    return [option for path in paths.values() for option in ("--model", path)]


def recipe(method, paths, folder):
    base = {} if method in ("fisher", "regmean", "lm_cocktail") else {"base_model": str(paths["base"])}
    fields = {"statistics": str(folder)} | ({"aim": {"omega": 0.3}} if method == "ties" else {})
    return Recipe.model_validate(
        {
            "merge_method": method,
            "models": [{"model": str(paths[name])} for name in "ab"],
            "parameters": METHODS[method],
            **base,
            **fields,
        }
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_statistics_are_gathered_and_both_engines_merge_with_them_to_the_same_bits(call, text, tmp_path, architecture):
    paths = tiny_family(tmp_path / "family", architecture, parents=2)
    folder = tmp_path / "statistics"
    options = ("--text", text, "--kinds", KINDS, "--length", 24, "--samples", 12, "--rows", 20)
    code, output = call(folder, *model_options(paths), *options)
    assert code == 0, output
    assert f"{paths['a']}: 12 examples, 288 tokens, loss 4." in output
    merger = InPlaceMerger(Parents.open([str(path) for path in paths.values()]), base=str(paths["base"]))
    average = None
    for method in METHODS:
        made = recipe(method, paths, folder)
        merger.merge(made)
        loaded = AutoModelForCausalLM.from_pretrained(merge_to_folder(made, tmp_path / method))
        ours, theirs = merger.model.state_dict(), loaded.state_dict()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        matrix = next(ours[name] for name in ours if "down_proj" in name or "mlp.c_proj.weight" in name).clone()
        assert average is None or not torch.equal(matrix, average)
        average = matrix


def test_sample_holds_the_same_number_of_rows_for_every_model(call, text, tmp_path):
    paths = tiny_family(tmp_path / "family", parents=2)
    assert call(tmp_path / "s", *model_options(paths), "--text", text, "--kinds", "sample", "--rows", 17)[0] == 0
    opened = Statistics.open(tmp_path / "s")
    rows = {opened.tensor(str(p), "sample", "model.layers.1.mlp.up_proj.weight").shape for p in paths.values()}
    assert rows == {(17, 32)}


def test_models_and_kinds_come_from_a_recipe(call, text, tmp_path):
    paths = tiny_family(tmp_path / "family", parents=2)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"merge_method: mats\nbase_model: {paths['base']}\naim: {{omega: 0.4}}\n"
        f"models: [{{model: {paths['a']}}}, {{model: {paths['b']}}}]\n"
    )
    assert call(tmp_path / "s", "--recipe", file, "--text", text)[0] == 0
    models = Statistics.open(tmp_path / "s").models
    assert set(models) == set(read_recipe(str(file)).parents())
    assert {model.kinds for model in models.values()} == {("gram", "scale")}


def test_each_model_may_have_its_own_text_unless_they_are_compared(call, text, tmp_path):
    paths = tiny_family(tmp_path / "family", parents=2)
    rows = [{"prompt": "2 + 2 =", "answer": " 4"}, {"prompt": "3 + 4 =", "answer": " 7"}, {"text": TEXT}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [*model_options({name: paths[name] for name in "ab"})]
    options += ["--text", f"{paths['a']}={text}", "--text", f"{paths['b']}={tmp_path / 'rows.jsonl'}"]
    assert call(tmp_path / "s", *options, "--kinds", "loss", "--samples", 4)[0] == 0
    models = Statistics.open(tmp_path / "s").models
    assert len({model.data for model in models.values()}) == 2
    code, output = call(tmp_path / "t", *options, "--kinds", "sample")
    assert code == 2
    assert "do not see the same tokens" in output
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no models; name them with --model"),
        (("--model", "{a}"), "no calibration text for .*a\n.*--text FILE or --task NAME"),
        (("--model", "{a}", "--text", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--model", "{a}", "--text", "{text}", "--kinds", "grams"), "no kind 'grams'\n.*did you mean 'gram'"),
        (("--model", "{a}", "--text", "{text}", "--text", "{text}"), "a second source for all models"),
        (("--model", "{a}", "--text", "zoo/x={text}"), "'zoo/x' is none of the models"),
        (("--model", "{a}", "--task", "no_such_task"), "unknown task 'no_such_task'"),
    ],
)
def test_what_cannot_be_used_is_told(call, text, tmp_path, options, message):
    import re

    paths = tiny_family(tmp_path / "family", parents=1)
    code, output = call(tmp_path / "s", *(option.format(a=paths["a"], text=text) for option in options))
    assert code == 2
    assert re.search(message, output), output
    assert not (tmp_path / "s").exists()


def test_rows_that_are_no_text_are_named_by_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    for content, message in (
        ('{"text": 3}', "rows.jsonl:1: has neither a text"),
        ('"a"\n{', "rows.jsonl:2: is no JSON"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            sources([str(file)], [], "search", ["m"])["m"].read()
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no text"):
        sources([str(file)], [], "search", ["m"])["m"].read()


def test_answers_alone_are_asked_for_and_long_prompts_lose_their_start():
    tokenizer = tiny_tokenizer()
    (example,) = encode([("what is 2 + 2? ", "four")], tokenizer, count=5, length=64, seed=0)
    assert [int(label) for label in example.labels if label != -100] == tokenizer("four")["input_ids"]
    (short,) = encode([("what is 2 + 2? ", "four")], tokenizer, count=5, length=6, seed=0)
    assert tokenizer.decode(short.inputs["input_ids"]) == "? four"
    assert int((short.labels != -100).sum()) == 4


def test_choice_of_examples_depends_on_the_seed_alone():
    tokenizer, pairs = tiny_tokenizer(), [("", TEXT)]
    drawn = [
        [each.inputs["input_ids"].tolist() for each in encode(pairs, tokenizer, count=3, length=16, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
