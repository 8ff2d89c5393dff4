"""Calibration examples for ``evomerge statistics``: from text files and from tasks, as tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.errors import ConfigError, Problem

if TYPE_CHECKING:
    from evomerge.merging.gathering import Example

Split = Literal["train", "search", "confirmation"]
FIELDS = (("prompt", "answer"), ("prompt", "completion"), ("input", "output"), ("question", "answer"))
MASKED = 0.15  # share of tokens hidden from masked language models (Devlin et al. 2019)


@dataclass(frozen=True)
class Source:
    """Where a model's calibration texts come from.

    Args:
        text: a file, plain text or JSON lines.
        task: the name of a task, as an experiment's objectives would give it.
        split: of the task's items.
    """

    text: Path | None = None
    task: str | None = None
    split: Split = "search"

    def read(self) -> list[tuple[str, str]]:
        """Return (prompt, what follows); a plain text has an empty prompt.

        Raises:
            ConfigError: the file cannot be read, or has no text.
            FitnessError: the task cannot be used.
        """
        if self.text is not None:
            return _read_text(self.text)
        from evomerge.fitness.objectives import TaskSettings
        from evomerge.fitness.sources import load_task
        from evomerge.fitness.tasks import LmEvalTask

        name = str(self.task)
        task = LmEvalTask(name, load_task(name), TaskSettings(), confirmation_share=0.5, seed=0)
        items = task.training_items() if self.split == "train" else task.pools[self.split]
        if not items:
            raise ConfigError(Problem(f"task {name!r} has no {self.split} items", "--split", "choose another split"))
        return [task.worked(item) for item in items]


def sources(texts: Sequence[str], tasks: Sequence[str], split: Split, models: Sequence[str]) -> dict[str, Source]:
    """Return each model's source from options such as ``--task NAME`` (for all) and ``--task MODEL=NAME``.

    Raises:
        ConfigError: a model has no source, or two.
    """
    given = [(option, "--text", Source(text=Path(option.rpartition("=")[2]))) for option in texts]
    given += [(option, "--task", Source(task=option.rpartition("=")[2], split=split)) for option in tasks]
    chosen: dict[str, Source] = {}
    problems = []
    for option, flag, source in given:
        model = option.rpartition("=")[0]
        if model and model not in models:
            problems.append(Problem(f"{model!r} is none of the models: {', '.join(models)}", f"{flag} {option}"))
        elif model in chosen:
            whose = f"for {model}" if model else "for all models"
            problems.append(Problem(f"a second source {whose}", f"{flag} {option}", "give one, or MODEL=… for each"))
        chosen[model] = source
    missing = [model for model in models if model not in chosen and "" not in chosen]
    if missing:
        what = f"no calibration text for {', '.join(missing)}"
        problems.append(Problem(what, "--text", "give --text FILE or --task NAME for all, or MODEL=… for each"))
    if problems:
        raise ConfigError(problems)
    return {model: chosen.get(model, chosen.get("", Source())) for model in models}


def encode(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, *, count: int, length: int, seed: int, mask: bool = False
) -> list[Example]:
    """Return at most ``count`` examples of at most ``length`` tokens, a random choice that ``seed`` fixes.

    Plain texts are joined and cut into blocks; prompts with answers stay whole, less what is too long at their start.

    Args:
        mask: for masked language models: hide tokens and ask for those.
    """
    from evomerge.merging.gathering import answered, blocks, masked

    plain = [_tokens(tokenizer, text) for prompt, text in pairs if not prompt]
    examples = blocks(plain, length) if plain else []
    for prompt, answer in ((prompt, answer) for prompt, answer in pairs if prompt):
        whole, start = _tokens(tokenizer, prompt + answer), _tokens(tokenizer, prompt)
        shared = next((n for n, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b), len(start))
        cut = max(0, len(whole) - length)
        examples.append(answered(whole[cut : max(cut, shared)], whole[max(cut, shared) :]))
    examples = [example for example in examples if example.length > 1]
    chosen = sorted(random.Random(seed).sample(range(len(examples)), min(count, len(examples))))
    examples = [examples[index] for index in chosen]
    if mask:
        if tokenizer.mask_token_id is None:
            raise ConfigError("a masked language model whose tokenizer has no mask token cannot be calibrated on text")
        examples = [masked(each, tokenizer.mask_token_id, MASKED, seed + n) for n, each in enumerate(examples)]
    if not examples:
        raise ConfigError("the calibration texts hold less than two tokens; give more text")
    return examples


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _read_text(file: Path) -> list[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            Problem(f"cannot be read: {error}", str(file), "give a UTF-8 text or JSON lines file")
        ) from None
    if file.suffix not in (".jsonl", ".json"):
        pairs = [("", text)] if text.strip() else []
    else:
        pairs = [_row(line, f"{file}:{n}") for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not pairs:
        raise ConfigError(Problem("holds no text", str(file)))
    return pairs


def _row(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(Problem(f"is no JSON: {error}", where, "write one JSON object a line")) from None
    if isinstance(row, str):
        return "", row
    if isinstance(row, Mapping):
        if isinstance(row.get("text"), str):
            return "", row["text"]
        for prompt, answer in FIELDS:
            if isinstance(row.get(prompt), str) and isinstance(row.get(answer), str):
                return row[prompt], row[answer]
    raise ConfigError(
        Problem("has neither a text nor a prompt and answer", where, 'write {"text": …} or {"prompt": …, "answer": …}')
    )
