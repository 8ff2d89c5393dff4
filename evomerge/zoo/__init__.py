"""The zoo: a small family of real language models, trained here, for the quickstart, the tests and the benchmarks.

It tells the field's own story in miniature, *cross-lingual mathematics*: word problems and reading questions in
English and Japanese. One expert calculates in English, another reads Japanese; arithmetic asked in Japanese is a
skill that none of them has, and that a merge can have.

``build`` imports torch and transformers only when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.checkpoints.resolve import zoo_folder
from evomerge.zoo.family import MODELS, TASKS

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["MODELS", "TASKS", "build", "build_pool", "score_table", "zoo_folder"]


def build(force: bool = False, progress: bool = True) -> Path:
    """Train the family, write its tasks, score it, and return its folder; at once when it is already there.

    Args:
        force: build again even when a complete zoo is there.
        progress: show a bar in a terminal, plain lines elsewhere.

    Raises:
        EvomergeError: training failed; the message ends with the failed process's own last words.
    """
    from evomerge.zoo.building import build_zoo

    return build_zoo(zoo_folder(), force=force, progress=progress)


def build_pool(progress: bool = True) -> Path:
    """Train the experts' checkpoints and LoRA adapters beside the zoo, and return their folder; at once if it is there.

    Args:
        progress: show a bar in a terminal, plain lines elsewhere.

    Raises:
        EvomergeError: the zoo is not built, or training failed.
    """
    from evomerge.zoo import pool

    return pool.build_pool(zoo_folder(), progress=progress)


def score_table() -> Table:
    """Return every model's measured score on every task (held-out split) as a table, the uniform average last.

    Raises:
        CheckpointError: the zoo is not built.
    """
    from evomerge.zoo.building import read_score_table

    return read_score_table(zoo_folder())
