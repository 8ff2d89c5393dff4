"""Batch sizes: found by trying, halved where memory is short, and without effect on anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from evomerge.errors import FitnessError
from evomerge.fitness import Fitness, FitnessConfig
from evomerge.fitness.batch_sizes import Cost, Peak, Remembered, best_batch_size, is_out_of_memory
from evomerge.testing.tasks import write_choices, write_sums
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FUNCTION = "def constant(model, tokenizer):\n    return 0.5\n"


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model(tiny_config("llama"), 0)


def build(folder: Path, batch_size: Any, *more: dict[str, Any]) -> Fitness:
    for write in (write_sums, write_choices):
        write(folder)
    objectives = [
        {"task": "tiny-sums.yaml", "metric": "exact_match,flexible"},
        {"task": "tiny-choices.yaml", "metric": "acc"},
        *more,
    ]
    return Fitness(
        FitnessConfig.model_validate({"objectives": objectives, "batch_size": batch_size}), base_folder=folder
    )


def short_of_memory(model: PreTrainedModel, most: int, sizes: list[int]) -> None:
    """Have the model run out of memory beyond ``most`` sequences; keep the sizes that it was asked for."""

    def check(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else None)
        sizes.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.register_forward_pre_hook(check, with_kwargs=True)


# --- the rule


def costs(seconds: Any, num_bytes: Any = lambda size: 0, fits: int = 10**9) -> Any:
    return lambda size: Cost(seconds(size), num_bytes(size)) if size <= fits else None


def test_the_fastest_size_wins_and_of_equals_the_smallest() -> None:
    assert best_batch_size(costs(lambda size: 1.0), room=1) == 256, "time does not depend on the size"
    assert best_batch_size(costs(lambda size: float(size)), room=1) == 1, "time grows with the size"
    assert best_batch_size(costs(lambda size: max(1.0, size / 16)), room=1) == 16
    assert best_batch_size(costs(lambda size: 1.0, fits=40), room=1) == 32, "64 do not fit"
    assert best_batch_size(costs(lambda size: 1.0), room=1, most=8) == 8


def test_what_would_not_fit_is_not_tried() -> None:
    tried = []

    def cost(size: int) -> Cost:
        tried.append(size)
        return Cost(1.0, 10 * size)

    assert best_batch_size(cost, room=100) == 8
    assert tried == [1, 2, 4, 8]


def test_one_doubling_that_does_not_gain_is_looked_over() -> None:
    seconds = {1: 1.0, 2: 1.99, 4: 2.0, 8: 4.0, 16: 8.0}
    assert best_batch_size(costs(seconds.__getitem__), room=1, most=16) == 4


def test_the_peak_of_memory_is_seen() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peaks are counted on Linux")
    sizes = dict(line.split(":") for line in status.read_text().splitlines() if line.startswith(("VmHWM", "VmRSS")))
    former = sum(sign * 1024 * int(sizes[name].split()[0]) for name, sign in (("VmHWM", 1), ("VmRSS", -1)))
    with Peak(torch.device("cpu")) as peak:
        torch.ones(former + 64 * 2**20, dtype=torch.uint8)
    assert 48 * 2**20 < peak.num_bytes < former + 128 * 2**20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (None, False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception | None, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    with pytest.raises(ValueError, match="outer") as outer:
        raise ValueError("outer") from error
    assert is_out_of_memory(outer.value) is expected


# --- found by trying


def test_sizes_are_found_for_each_task_that_runs_batches(tmp_path: Path, model: PreTrainedModel) -> None:
    (tmp_path / "f.py").write_text(FUNCTION, encoding="utf-8")
    fitness = build(tmp_path, "auto", {"function": "./f.py:constant"})
    found = fitness.batch_sizes(model, TOKENIZER, fitness.items("search"))
    assert set(found) == {"tiny-sums", "tiny-choices"}
    assert all(size & (size - 1) == 0 for size in found.values())


def test_no_more_is_tried_than_fits_and_than_there_are_items(tmp_path: Path, model: PreTrainedModel) -> None:
    sizes: list[int] = []
    short_of_memory(model, 4, sizes)
    fitness = build(tmp_path, "auto")
    found = fitness.batch_sizes(model, TOKENIZER, fitness.items("search"))
    assert max(found.values()) <= 4
    assert max(sizes) <= 8
    few = {task: items[:3] for task, items in fitness.items("search").items()}
    assert max(fitness.batch_sizes(model, TOKENIZER, few).values()) <= 4


def test_a_size_that_is_given_is_not_looked_for(tmp_path: Path, model: PreTrainedModel) -> None:
    fitness = build(tmp_path, 4)
    assert fitness.batch_sizes(model, TOKENIZER, fitness.items("search")) == {}


def test_a_size_is_looked_for_once_for_a_model_a_task_and_a_device(tmp_path: Path, model: PreTrainedModel) -> None:
    kept = Remembered(tmp_path / "kept")
    fitness = build(tmp_path, "auto")
    items = fitness.items("search")
    found = fitness.batch_sizes(model, TOKENIZER, items, kept)
    sizes: list[int] = []
    short_of_memory(model, 10**9, sizes)
    again = build(tmp_path, "auto")
    assert again.batch_sizes(model, TOKENIZER, items, kept) == found
    assert sizes == [], "the model was not run"
    other = tiny_model(tiny_config("llama"), 0).to(torch.bfloat16)
    more: list[int] = []
    short_of_memory(other, 10**9, more)
    again.batch_sizes(other, TOKENIZER, items, kept)
    assert more, "another dtype is another model"


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    kept = Remembered(tmp_path)
    kept.put(8, "a", "b")
    assert kept.get("a", "b") == 8
    assert kept.get("a", "c") is None
    for file in tmp_path.iterdir():
        file.write_text("{", encoding="utf-8")
    assert kept.get("a", "b") is None


def test_trying_leaves_answers_as_they_are(tmp_path: Path, model: PreTrainedModel) -> None:
    fitness, items = build(tmp_path, "auto"), build(tmp_path, "auto").items("search")
    fitness.use_batch_sizes({"tiny-sums": 4, "tiny-choices": 4})
    before = fitness.evaluate(model, TOKENIZER, items)
    fitness.batch_sizes(model, TOKENIZER, items)
    assert fitness.evaluate(model, TOKENIZER, items) == before
    assert build(tmp_path, 4).evaluate(model, TOKENIZER, items) == before


# --- halved


def test_a_lack_of_memory_halves_the_batches_and_repeats_the_task(tmp_path: Path, model: PreTrainedModel) -> None:
    fitness = build(tmp_path, 16)
    items = fitness.items("search")
    expected = build(tmp_path, 4).evaluate(model, TOKENIZER, items)
    sizes: list[int] = []
    short_of_memory(model, 5, sizes)
    assert fitness.evaluate(model, TOKENIZER, items) == expected, "as if it had been 4 from the beginning"
    assert fitness.smallest_batch == 4
    assert max(sizes) == 16
    sizes.clear()
    assert fitness.evaluate(model, TOKENIZER, items) == expected
    assert max(sizes) <= 4, "it is remembered"


def test_a_sequence_that_does_not_fit_alone_is_an_error(tmp_path: Path, model: PreTrainedModel) -> None:
    fitness = build(tmp_path, 4)
    short_of_memory(model, 0, [])
    with pytest.raises(FitnessError, match=r"tiny-sums.*OutOfMemoryError: CUDA out of memory"):
        fitness.evaluate(model, TOKENIZER, fitness.items("search"))


def test_a_shortage_weighs_more_than_what_the_run_began_with(tmp_path: Path, model: PreTrainedModel) -> None:
    fitness = build(tmp_path, "auto")
    items = fitness.items("search")
    fitness.use_batch_sizes({"tiny-sums": 16, "tiny-choices": 16})
    sizes: list[int] = []
    short_of_memory(model, 5, sizes)
    fitness.evaluate(model, TOKENIZER, items)
    fitness.use_batch_sizes({"tiny-sums": 16, "tiny-choices": 16})
    sizes.clear()
    fitness.evaluate(model, TOKENIZER, items)
    assert max(sizes) == 4
