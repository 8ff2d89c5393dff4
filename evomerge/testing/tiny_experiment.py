"""A whole experiment on random models of a few thousand weights: runs in seconds, needs no zoo and no task library."""

from __future__ import annotations

from pathlib import Path

from evomerge.testing.tiny_models import tiny_family

SCORE = '''\
"""Two objectives that pull against each other, on any causal model; and faults on demand."""

import os
import signal
from pathlib import Path

import torch

TEXTS = [f"item {number}" for number in range(24)]


def near_items():
    return TEXTS


def near(model, tokenizer, items):
    """Grows with the mean logit on random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, min(60, model.config.vocab_size), (len(items), 12), generator=generator)
    means = model(input_ids=tokens).logits.mean(dim=(1, 2))
    return [float(torch.tanh(3 * mean + index / 40)) for index, mean in enumerate(means)]


def far_items():
    return TEXTS


def far(model, tokenizer, items):
    """Falls as `near` grows."""
    return [1 - value * value for value in near(model, tokenizer, items)]


def right_items():
    return TEXTS


def right(model, tokenizer, items):
    """Responses in [0, 1], each by its item alone."""
    numbers = torch.tensor([TEXTS.index(text) for text in items])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, min(60, model.config.vocab_size), (len(TEXTS), 12), generator=generator)[numbers]
    means = model(input_ids=tokens).logits.mean(dim=(1, 2))
    return torch.sigmoid(20 * means + numbers / 8 - 1.5).tolist()


def fails(model, tokenizer):
    """Raises for every model."""
    raise ValueError("this function always fails")


def picky(model, tokenizer):
    """Raises for about a third of the merges, never for a model that is not merged."""
    value = near(model, tokenizer, TEXTS)[0]
    if int(value * 1e6) % 3 == 0 and os.environ.get("EVOMERGE_TEST_PICKY", "1") == "1":
        raise ValueError("this merge is not to my taste")
    return value


def whole(model, tokenizer):
    """Returns one number for the model as a whole."""
    return near(model, tokenizer, TEXTS)[0]


def dies_once(model, tokenizer):
    """Kills its own process the first time that it is called after the reference models are through."""
    folder = Path(__file__).parent
    calls = folder / "calls"
    with calls.open("a") as file:
        file.write("x")
    if calls.stat().st_size > 8 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return near(model, tokenizer, TEXTS)[0]


def always_dies(model, tokenizer):
    """Kills its own process for a merge, every time; the reference models pass."""
    folder = Path(__file__).parent
    calls = folder / "calls"
    with calls.open("a") as file:
        file.write("x")
    if calls.stat().st_size > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5
'''

EXPERIMENT = """\
name: tiny
base: ./models/base
parents: {a: ./models/a, b: ./models/b, c: ./models/c}
search_space: {kind: parameter, method: ties, granularity: layer}
fitness:
  objectives:
    - {function: "./score.py:near", name: near}
    - {function: "./score.py:far", name: far}
searcher: {kind: nsga2, population: 6, seed: 1}
budget: {trials: 18}
"""


def tiny_experiment(folder: Path) -> Path:
    """Write models, fitness and experiment file into ``folder``; return the experiment file's path."""
    tiny_family(folder / "models")
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    experiment = folder / "experiment.yaml"
    experiment.write_text(EXPERIMENT, encoding="utf-8")
    return experiment


class SilentDisplay:
    """A display that keeps what it is told, for tests."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.told_numbers: list[int] = []

    def __enter__(self) -> SilentDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def started(self, *facts: object) -> None:
        """Keep nothing."""

    def told(self, trial: object, progress: object) -> None:
        """Keep the trial's number."""
        self.told_numbers.append(trial.number)  # type: ignore[attr-defined]

    def workers(self, rows: object) -> None:
        """Keep nothing."""

    def note(self, text: str) -> None:
        """Keep the line."""
        self.notes.append(text)

    def finished(self, summary_line: str) -> None:
        """Keep the line."""
        self.notes.append(summary_line)
