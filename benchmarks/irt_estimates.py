"""How far off are scores estimated from a few items? Real merges and other models, none of them calibrated on.

    python benchmarks/irt_estimates.py RESPONSES TRIPLES [--draws 20] [--items 20 50 100] [--dimensions 2]

RESPONSES is a matrix of models × items (any file that `evomerge calibrate` takes), TRIPLES a csv of merge, parent1 and
parent2. Each draw holds the merges, their parents and 300 other models out, calibrates on the rest, chooses items and
estimates the scores of the merges and of the 300. Prints mean absolute errors in points and the share of 95%
intervals that hold the truth, both with intervals over models and draws, and rank correlations over the 300.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from evomerge.fitness.irt.calibrate import calibrate
from evomerge.fitness.irt.estimate import judge
from evomerge.fitness.irt.extract import extract
from evomerge.fitness.irt.names import CHOICES, KINDS
from evomerge.fitness.irt.response_files import read_responses
from evomerge.fitness.irt.responses import ResponseMatrix

HELD_OUT = 300
Found = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, float
]  # errors and who is covered, of merges and others; ranks
INTERVAL = 1.96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("triples", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--items", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=["score-optimal", "random"])
    options = parser.parse_args()

    matrix = read_responses(options.responses)
    triples = read_triples(options.triples, matrix.models)
    draws = [one_draw(matrix, triples, seed, options) for seed in range(options.draws)]
    print(f"{len(triples)} merges, {HELD_OUT} others, {options.draws} draws; errors in points, [95% intervals]")
    print(
        "items  choice               estimate    merges                covered                others                "
        "covered                Spearman"
    )
    for key in sorted(draws[0]):
        merges, covered, others, covered_others, ranks = (
            list(part) for part in zip(*(d[key] for d in draws), strict=True)
        )
        print(
            f"{key[0]:5}  {key[1]:19}  {key[2]:10}  {told(merges)}  {told(covered)}%  "
            f"{told(others)}  {told(covered_others)}%  {np.mean(ranks):.4f}"
        )


def told(errors: list[np.ndarray]) -> str:
    each = np.array(errors) * 100
    low, high = interval(each)
    return f"{each.mean():5.2f} [{low:5.2f}, {high:5.2f}]"


def read_triples(path: Path, models: tuple[str, ...]) -> list[tuple[int, list[int]]]:
    """Return (merge, its two parents) as rows of the matrix, where all three are in it."""
    place = {name: row for row, name in enumerate(models)}
    with path.open(encoding="utf-8") as file:
        rows = [(row["merge"], row["parent1"], row["parent2"]) for row in csv.DictReader(file)]
    return [(place[merge], [place[p] for p in parents]) for merge, *parents in rows if {merge, *parents} <= set(place)]


def one_draw(
    matrix: ResponseMatrix, triples: list[tuple[int, list[int]]], seed: int, options: argparse.Namespace
) -> dict[tuple[int, str, str], Found]:
    """Return for each (items, choice, estimator) what the draw found."""
    draw = np.random.default_rng(seed)
    merges = np.array([merge for merge, _ in triples])
    family = np.unique([*merges, *(parent for _, parents in triples for parent in parents)])
    others = np.setdiff1d(np.arange(len(matrix.models)), family)
    held_out = draw.choice(others, HELD_OUT, replace=False)
    rest = np.setdiff1d(others, held_out)
    bank_matrix = ResponseMatrix(matrix.values[rest], tuple(matrix.models[row] for row in rest), matrix.items)
    bank = calibrate(bank_matrix, "2pl", options.dimensions).bank(bank_matrix, "", "")
    truth = matrix.values.mean(1)
    asked = np.concatenate([merges, held_out])
    parents = [matrix.values[rows] for _, rows in triples]
    found: dict[tuple[int, str, str], Found] = {}

    def note(key: tuple[int, str, str], values: np.ndarray, errors: np.ndarray | None) -> None:
        off = values - truth[asked]
        inside = (np.abs(off) <= INTERVAL * errors).astype(float) if errors is not None else np.full(len(off), np.nan)
        rank = spearmanr(values[len(merges) :], truth[held_out])[0] if np.ptp(values[len(merges) :]) else np.nan
        ours, others = slice(len(merges)), slice(len(merges), None)
        off = np.abs(off)
        found[key] = off[ours], inside[ours], off[others], inside[others], rank

    for count in options.items:
        note((count, "-", "population"), np.full(len(asked), truth[rest].mean()), None)
        mean_of_parents = [truth[rows].mean() for _, rows in triples]
        note((count, "-", "parents"), np.concatenate([mean_of_parents, np.full(HELD_OUT, truth[rest].mean())]), None)
        for choice in options.choices:
            subset = extract(choice, count, bank.parameters, bank.responses, seed=seed)
            values = matrix.values[asked][:, subset.rows]
            judged = judge(KINDS, bank, subset)
            for kind in KINDS:
                estimate, error = judged.estimator(kind)(values)
                each = [judged.estimator(kind, own)(values[n : n + 1]) for n, own in enumerate(parents)]
                estimate[: len(merges)] = np.concatenate([one.values for one in each])
                error[: len(merges)] = np.concatenate([one.standard_errors for one in each])
                note((count, choice, kind), estimate, error)
    return found


def interval(errors: np.ndarray) -> tuple[float, float]:
    """Return a 95% interval of the mean of (draws, merges), both resampled."""
    draw = np.random.default_rng(0)
    rows, columns = errors.shape
    means = [
        errors[draw.integers(rows, size=rows)][:, draw.integers(columns, size=columns)].mean() for _ in range(2000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
