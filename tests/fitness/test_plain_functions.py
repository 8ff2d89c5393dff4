"""Functions of plain tensors: one model or a batch of them, and the same numbers in any company."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import FitnessError
from evomerge.fitness import Fitness, FitnessConfig, Responses
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

SOURCE = """
import torch

CALLS = []
TEXTS = [f"item {n}" for n in range(12)]
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


def rows(items):
    return X[[TEXTS.index(item) for item in items]]


def one_items():
    return TEXTS


def one(tensors, items):
    return (rows(items) @ tensors["w"] + tensors["b"]).sum(1)


def many_items():
    return TEXTS


def many(batch, items):
    CALLS.append(len(batch["w"]))
    if any(bool(b.sum() > 100) for b in batch["b"]):
        raise ValueError("this model is too large")
    return torch.stack([(rows(items) @ w + b).sum(1) for w, b in zip(batch["w"], batch["b"])])


def whole(batch):
    return {"mean": batch["w"].mean((1, 2)), "count": [w.numel() for w in batch["w"]]}


def folded(batch, items):
    CALLS.append(len(batch["w"]))
    return rows(items).sum(1)[None] * (1 + len(batch["w"]) * 1e-7) + batch["b"].sum(1, keepdim=True)


folded_items = many_items


def drawn(tensors, items):
    return torch.rand(len(items))


drawn_items = many_items


def drawn_together(batch, items):
    return torch.rand(len(batch["w"]), len(items))


drawn_together_items = many_items


def short(batch, items):
    return torch.zeros(1, len(items))


short_items = many_items


def narrow(batch, items):
    return [[0.0] * (len(items) - int(w.sum() > 1e6)) for w in batch["w"]]


narrow_items = many_items


def split_items():
    return {"search": ["a", "b", "c"], "confirmation": ["d", "e"]}


def split(batch, items):
    return [[float(ord(item)) for item in items] for _ in batch["w"]]


def empty_items():
    return {"search": [], "confirmation": ["d"]}


def empty(batch, items):
    return []


def of_a_model(model, tokenizer):
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my.py").write_text(SOURCE)
    return tmp_path


def build(folder: Path, *names: str) -> Fitness:
    """Return a fitness of these functions of my.py; ``name/metric`` names a metric too."""
    parts = [name.partition("/") for name in names]
    return Fitness(
        FitnessConfig(
            objectives=[
                {"function": f"./my.py:{name}", "metric": metric or None, "name": f"{name}{metric}"}
                for name, _, metric in parts
            ]
        ),
        base_folder=folder,
    )


def models(count: int) -> dict[str, torch.Tensor]:
    """Return a batch of models, the first ones the same for every count."""
    each = [torch.randn(9, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return {"w": torch.stack([m[:8] for m in each]), "b": torch.stack([m[8] for m in each])}


def calls(fitness: Fitness) -> list[int]:
    """Return the sizes of the batches that the function was called with."""
    (task,) = fitness._tasks.values()
    return task._function.__globals__["CALLS"]


def answered(fitness: Fitness, batch: dict[str, torch.Tensor]) -> list[Responses]:
    found = fitness.evaluate_plain(batch, fitness.items("search"))
    assert not [each for each in found if isinstance(each, FitnessError)]
    return found


@pytest.mark.parametrize("name", ["one", "many"])
def test_a_model_s_numbers_are_those_of_the_formula(folder: Path, name: str) -> None:
    fitness = build(folder, name)
    batch = models(5)
    found = answered(fitness, batch)
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    for number, responses in enumerate(found):
        task = responses.tasks[f"./my.py:{name}"]
        expected = (x @ batch["w"][number] + batch["b"][number]).sum(1)
        rows = [int(item.partition("-")[0]) for item in task.items]
        assert rows == sorted(rows)
        torch.testing.assert_close(torch.tensor(task.values["score,none"]), expected[rows])
        alone = fitness.evaluate({k: v[number] for k, v in batch.items()}, None, fitness.items("search"))
        assert alone == responses
        assert Responses.from_json(responses.to_json()) == responses


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=24))
@pytest.mark.parametrize("name", ["many", "folded", "drawn", "drawn_together"])
def test_numbers_do_not_depend_on_the_company(folder: Path, name: str, order: list[int]) -> None:
    fitness, batch = build(folder, name), models(10)
    alone = [answered(fitness, {k: v[n : n + 1] for k, v in batch.items()})[0] for n in range(10)]
    together = answered(fitness, {k: v[order] for k, v in batch.items()})
    assert together == [alone[n] for n in order]


def test_a_function_that_answers_otherwise_in_batches_is_asked_one_by_one(folder: Path) -> None:
    exact, inexact = build(folder, "many"), build(folder, "folded")
    for fitness in (exact, inexact):
        for _ in range(2):
            answered(fitness, models(4))
    assert calls(exact) == [4, 1, 1, 1, 1, 4]
    assert calls(inexact) == [4, 1, 1, 1, 1, 1, 1, 1, 1]


def test_batches_have_few_sizes(folder: Path) -> None:
    fitness = build(folder, "many")
    for count in (7, 7):
        answered(fitness, models(count))
    assert calls(fitness) == [4, 1, 1, 1, 1, 2, 1, 1, 1, 4, 2, 1]


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_fault_of_one_model_is_its_own(folder: Path, kind: str) -> None:
    fitness, batch = build(folder, "many"), models(8)
    good = answered(fitness, batch)
    batch["b"][3] = 1e6 if kind == "raises" else torch.nan
    found = fitness.evaluate_plain(batch, fitness.items("search"))
    assert isinstance(found[3], FitnessError)
    assert ("this model is too large" if kind == "raises" else "not finite") in str(found[3])
    assert [each for n, each in enumerate(found) if n != 3] == [each for n, each in enumerate(good) if n != 3]


def test_results_of_the_wrong_shape_are_refused(folder: Path) -> None:
    fitness = build(folder, "short")
    found = fitness.evaluate_plain(models(2), fitness.items("search"))
    assert not isinstance(found[0], FitnessError), "alone it is right"
    fitness, batch = build(folder, "narrow"), models(2)
    batch["w"][1] = 1e6
    found = fitness.evaluate_plain(batch, fitness.items("search"))
    assert not isinstance(found[0], FitnessError)
    assert "numbers for" in str(found[1])


def test_one_number_a_model_and_several_metrics(folder: Path) -> None:
    fitness, batch = build(folder, "whole/mean", "whole/count"), models(3)
    scores = [fitness.score(each) for each in answered(fitness, batch)]
    assert [score["wholecount"] for score in scores] == [40.0] * 3
    torch.testing.assert_close(torch.tensor([s["wholemean"] for s in scores]), batch["w"].mean((1, 2)))
    assert "declares no items" in fitness.warnings[0].what


def test_declared_splits_are_kept(folder: Path) -> None:
    fitness = build(folder, "split")
    values: dict[str, Sequence[float]] = {}
    for split in ("search", "confirmation"):
        (found,) = fitness.evaluate_plain(models(1), fitness.items(split))
        values[split] = found.tasks["./my.py:split"].values["score,none"]
    assert values == {"search": [97.0, 98.0, 99.0], "confirmation": [100.0, 101.0]}
    with pytest.raises(Exception, match="a mapping with items for each of 'search' and 'confirmation'"):
        build(folder, "empty")


def test_what_a_function_takes_must_suit_the_parents(folder: Path) -> None:
    plain, language = build(folder, "one", "many"), build(folder, "of_a_model")
    assert plain.plain_problems() == [] == language.problems(None)
    assert "takes plain tensors (its first parameter is 'tensors')" in plain.problems(None)[0].what
    assert "takes a language model, and the parents are plain tensors" in language.plain_problems()[0].what
    assert build(folder, "many").takes_batches
    assert not plain.takes_batches
    assert not language.takes_batches
    with pytest.raises(FitnessError, match="takes a language model"):
        language.evaluate_plain(models(1), language.items("search"))
    with pytest.raises(FitnessError, match="names no right answers"):
        plain.evaluate_plain(models(1), {}, plain.items("search"))
    model = tiny_model(tiny_config("llama"))
    assert language.score(language.evaluate(model, tiny_tokenizer(), language.items("search"))) == {"of_a_model": 1.0}


def test_global_random_state_is_left_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    answered(build(folder, "drawn", "drawn_together"), models(3))
    assert torch.equal(torch.rand(3), expected)
