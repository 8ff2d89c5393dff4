"""Python functions as fitness."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import ConfigError, FitnessError
from evomerge.fitness import Fitness, FitnessConfig
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

SOURCE = """
def layers(model, tokenizer):
    return model.config.num_hidden_layers

def lengths_items():
    return [f"text number {n}" for n in range(20)]

def lengths(model, tokenizer, items):
    return {"tokens": [len(tokenizer.encode(item)) for item in items], "ones": [1 for _ in items]}

def broken(model, tokenizer):
    raise RuntimeError("no such thing")

def words(model, tokenizer):
    return "many"

def short_items():
    return ["a", "b", "c"]

def short(model, tokenizer, items):
    return [1.0]

def nan(model, tokenizer):
    return float("nan")

def lonely_items():
    return ["one"]

def lonely(model, tokenizer, items):
    return [1.0]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of functions."""
    (tmp_path / "my.py").write_text(SOURCE)
    return tmp_path


def build(folder: Path, *objectives: dict[str, object]) -> Fitness:
    """Return a fitness of function objectives."""
    return Fitness(FitnessConfig(objectives=objectives), base_folder=folder)


def evaluate(fitness: Fitness) -> dict[str, float]:
    """Return the scores of a tiny model on all search items."""
    model = tiny_model(tiny_config("llama"))
    return fitness.score(fitness.evaluate(model, tiny_tokenizer(), fitness.items("search")))


def test_one_number_for_the_model(folder: Path) -> None:
    fitness = build(folder, {"function": "./my.py:layers", "direction": "minimize", "name": "depth"})
    assert fitness.objectives[0].direction == "minimize"
    assert evaluate(fitness) == {"depth": 2.0}
    assert "declares no items" in fitness.warnings[0].what
    assert "layers_items()" in fitness.warnings[0].suggestion


def test_one_number_an_item_with_several_metrics(folder: Path) -> None:
    tokens, ones = ({"function": "./my.py:lengths", "metric": metric, "name": metric} for metric in ("tokens", "ones"))
    fitness = build(folder, tokens, ones)
    search, confirmation = (fitness.items(split)["./my.py:lengths"] for split in ("search", "confirmation"))
    assert len(search) + len(confirmation) == 20
    assert not set(search) & set(confirmation)
    assert fitness.objectives[0].direction == "maximize"
    assert fitness.warnings == ()
    scores = evaluate(fitness)
    assert scores["ones"] == 1.0
    assert scores["tokens"] in [n / len(search) for n in range(13 * len(search), 15 * len(search))]


def test_an_importable_module_needs_no_file() -> None:
    fitness = Fitness(FitnessConfig(objectives=[{"function": "evomerge.testing.tiny_models:tiny_tokenizer"}]))
    assert fitness.objectives[0].task == "evomerge.testing.tiny_models:tiny_tokenizer"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my.py", "write `module:function` or `./file.py:function`"),
        ("./none.py:f", "none.py does not exist"),
        ("./my.py:layer", "unknown function 'layer'.*did you mean 'layers'"),
        ("no_such_module:f", "importing 'no_such_module' failed: No module named 'no_such_module'"),
        ("./my.py:lonely", "declares 1 items; at least 2 are needed"),
    ],
)
def test_a_function_that_cannot_be_found_is_refused(folder: Path, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(folder, {"function": function})
    assert caught.value.problems[0].where == "fitness.objectives[0].function"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("words", "returned 'many' for 'score', not numbers"),
        ("short", r"returned 1 numbers for \d items"),
        ("nan", "a number that is not finite"),
    ],
)
def test_something_else_than_numbers_is_an_error(folder: Path, function: str, message: str) -> None:
    with pytest.raises(FitnessError, match=message):
        evaluate(build(folder, {"function": f"./my.py:{function}"}))


def test_an_error_in_the_function_carries_its_traceback(folder: Path) -> None:
    with pytest.raises(FitnessError, match=r"raised RuntimeError: no such thing") as caught:
        evaluate(build(folder, {"function": "./my.py:broken"}))
    assert 'raise RuntimeError("no such thing")' in str(caught.value)
    assert "my.py" in str(caught.value)


def test_a_metric_that_the_function_does_not_return_is_said(folder: Path) -> None:
    with pytest.raises(FitnessError, match=r"gave no 'score,none'; it gave: ones,none, tokens,none"):
        evaluate(build(folder, {"function": "./my.py:lengths"}))
