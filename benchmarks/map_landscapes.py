"""How well quadratic surrogates describe published landscapes of merged models, without a model.

    python benchmarks/map_landscapes.py FOLDER

FOLDER holds ``fusion_bench_tables/`` (FusionBench's sweeps of the scaling coefficient: GPT-2 on seven GLUE tasks, by
task arithmetic and by TIES, and Flan-T5 on eight) and ``landscape/`` (AdaMerging's logs: eight coefficients, eight
accuracies). For each task it prints the share of variance explained, the same of evaluations left out with its
standard error, the error of predicting them, the best coefficient predicted and that of the table, and whether the
surrogate is flagged as poor.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.searchers.surrogates.explanation import facts_of
from evomerge.searchers.surrogates.links import Array
from evomerge.searchers.surrogates.quadratic import Quadratic, fit

SWEEPS = {
    "GPT-2, task arithmetic": "modelpool__gpt2_classification__L125",
    "GPT-2, TIES": "modelpool__gpt2_classification__L161",
    "Flan-T5, task arithmetic": "modelpool__flan-t5_generation__L189",
}
LOGS = {
    "AdaMerging": "adamerging_20230921_202228_Task_wise_AdaMerging",
    "AdaMerging++": "adamerging_20230921_205130_Task_wise_AdaMergingPP",
}
_GRID = np.linspace(0, 1, 1001)[:, None]


@dataclass(frozen=True)
class Landscape:
    """Accuracies of one task over merging coefficients, each scaled to the unit box."""

    models: str
    task: str
    points: Array
    accuracies: Array


def landscapes(folder: Path) -> Iterator[Landscape]:
    """Yield the published landscapes under ``folder``."""
    for models, name in SWEEPS.items():
        rows = _rows(folder / "fusion_bench_tables" / f"{name}.csv")
        coefficient, *tasks = rows[0]
        for task in tasks:
            told = [row for row in rows if row[task]]
            values = _column(told, task)
            yield Landscape(
                models, task, _column(told, coefficient)[:, None], values / (100 if values.max() > 1 else 1)
            )
    for models, name in LOGS.items():
        rows = _rows(folder / "landscape" / f"{name}.csv")
        points = np.stack([_column(rows, f"c{task}") for task in range(1, 9)], axis=1)
        points = (points - points.min(0)) / np.ptp(points, axis=0)
        for task in [field for field in rows[0] if not field[1:].isdigit() and field != "epoch"]:
            yield Landscape(models, task, points, _column(rows, task))


def best_coefficients(landscape: Landscape, surrogate: Quadratic) -> tuple[float, float]:
    """Return where a sweep's task is predicted to be best, and where its table is."""
    best = float(_GRID[surrogate(_GRID).argmax(), 0])
    return best, float(landscape.points[landscape.accuracies.argmax(), 0])


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    print(f"{'':<36}{'R²':>7}{'left out':>16}{'error':>8}{'best':>7}{'table':>7}")
    for landscape in landscapes(arguments.parse_args().folder):
        surrogate = fit(landscape.points, landscape.accuracies, "logit")
        facts = facts_of(surrogate, len(landscape.points))
        line = (
            f"{landscape.models:<25}{landscape.task:<11}{facts.r2:7.3f}"
            f"{facts.r2_left_out:9.3f} ± {facts.r2_error:.2f}{facts.error_left_out:8.4f}"
        )
        if landscape.points.shape[1] == 1:
            line += "{:7.2f}{:7.2f}".format(*best_coefficients(landscape, surrogate))
        print(line + ("  poor" if facts.is_poor else ""))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _column(rows: list[dict[str, str]], field: str) -> Array:
    return np.array([float(row[field]) for row in rows])


if __name__ == "__main__":
    main()
