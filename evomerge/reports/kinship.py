"""Kinship in the terminal and as data: a matrix of models for each group of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from evomerge.kinship import METRICS, Products, mean_of_pairs
from evomerge.reports import wording
from evomerge.reports.tables import QUIET, plain_table

NAMES = {"pcc": "Pearson correlation", "cs": "Cosine similarity", "ed": "Euclidean distance"}
_ANGLE = "Near 1: akin, a merge changes little. Near 0: unrelated, a merge may gain or lose more (Hu et al. 2024)."
MEANING = {
    "pcc": _ANGLE,
    "cs": _ANGLE,
    "ed": "Small beside the distances from the base: akin, a merge changes little (Hu et al. 2024).",
}
MOST_NAMED = 6  # models up to which columns have their names; numbers are narrower


def kinship_table(parts: Mapping[str, Products], models: Sequence[str], metric: str) -> Group:
    """Return a matrix of the models for each part; below, the mean of all pairs and how to read the numbers.

    Args:
        parts: name of a group of tensors, or the empty text for whole models → its products.
        models: what the models are called, in the products' order.
        metric: one of ``METRICS``.
    """
    numbered = len(models) > MOST_NAMED
    names = [f"{n} {model}" for n, model in enumerate(models, 1)] if numbered else list(models)
    columns = ["", *(map(str, range(1, len(models) + 1)) if numbered else models), "from base"]
    shown: list[RenderableType] = []
    for part, products in parts.items():
        matrix = METRICS[metric](products)
        rows = [
            [model, *map(wording.number, row), wording.number(length)]
            for model, row, length in zip(names, matrix.tolist(), products.lengths.tolist(), strict=True)
        ]
        of = f", {part}" if part else ""
        title = f"{NAMES[metric]} of task vectors{of} ({wording.whole(products.entries)} entries)"
        shown += [Text(title, style="bold"), plain_table(columns, rows)]
        shown.append(Text(f"mean of all pairs: {wording.number(mean_of_pairs(matrix))}\n"))
    return Group(*shown, Text(MEANING[metric], style=QUIET))


def kinship_data(parts: Mapping[str, Products], models: Mapping[str, str], base: str) -> dict[str, Any]:
    """Return all metrics of every part as JSON takes them, undefined ones as None."""
    return {"base": base, "models": dict(models), "parts": {part or "all": _data(p) for part, p in parts.items()}}


def _data(products: Products) -> dict[str, Any]:
    matrices = {metric: function(products) for metric, function in METRICS.items()}
    return {
        "entries": products.entries,
        "from_base": _plain(products.lengths),
        **{
            metric: {"matrix": _plain(matrix), "mean": _plain(np.array(mean_of_pairs(matrix)))}
            for metric, matrix in matrices.items()
        },
    }


def _plain(values: np.ndarray) -> Any:
    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(each) for each in value]
        return value if math.isfinite(value) else None

    return known(values.tolist())
