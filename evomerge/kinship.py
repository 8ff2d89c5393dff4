"""Model kinship: how alike the task vectors of models are (Hu et al. 2024, arXiv 2410.12613, Section 4.1).

All its metrics follow from sums over the entries of the task vectors δᵢ = θᵢ − θ₀: Σ δᵢ, ⟨δᵢ, δⱼ⟩ and ‖δᵢ − δⱼ‖², which
one pass over the models gives for all pairs (`evomerge.merging.task_vector_products`). Those over parts of the models
add up to those over the whole, and those over linear combinations of models follow from the models' own. So the kinship
of children and grandchildren costs no further look at weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Products:
    """What the kinship of n models follows from; ``+`` joins what is known of different tensors.

    Attributes:
        entries: how many entries the task vectors have.
        sums: (n,), Σ δᵢ over all entries.
        gram: (n, n), ⟨δᵢ, δⱼ⟩.
        squares: (n, n), ‖δᵢ − δⱼ‖²; given apart from ``gram``, of which nothing is left where models hardly differ.
    """

    entries: int
    sums: np.ndarray
    gram: np.ndarray
    squares: np.ndarray

    def __add__(self, other: Products) -> Products:
        return Products(
            self.entries + other.entries,
            self.sums + other.sums,
            self.gram + other.gram,
            self.squares + other.squares,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "entries": self.entries,
            "sums": self.sums.tolist(),
            "gram": self.gram.tolist(),
            "squares": self.squares.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Products:
        """Return what `to_json` was called on, to the last bit."""
        return cls(data["entries"], *(np.array(data[name], dtype=np.float64) for name in ("sums", "gram", "squares")))

    @property
    def lengths(self) -> np.ndarray:
        """(n,), ‖δᵢ‖: how far each model is from the base."""
        return np.sqrt(self.gram.diagonal())

    @property
    def centred(self) -> np.ndarray:
        """(n, n), the products of task vectors less the mean of their entries."""
        return self.gram - np.outer(self.sums, self.sums) / max(self.entries, 1)


def pearson_correlation(products: Products) -> np.ndarray:
    """Return the correlation of each two task vectors' entries, (n, n); NaN where one of them does not vary."""
    return _normalised(products.centred)


def cosine_similarity(products: Products) -> np.ndarray:
    """Return the cosine of the angle between each two task vectors, (n, n); NaN where one of them is zero."""
    return _normalised(products.gram)


def euclidean_distance(products: Products) -> np.ndarray:
    """Return ‖δᵢ − δⱼ‖ of each two models, (n, n)."""
    return np.sqrt(products.squares)


METRICS: Mapping[str, Callable[[Products], np.ndarray]] = {
    "pcc": pearson_correlation,
    "cs": cosine_similarity,
    "ed": euclidean_distance,
}


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Return the mean over all pairs of different models, the kinship of n models (Eq. 4); NaN of a single model."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    return float(pairs.mean()) if pairs.size else float("nan")


def kinship_to(products: Products, metric: str, one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the kinship of one linear combination of the models with m others, (m,); NaN where it is not defined.

    Args:
        products: of the n models.
        metric: one of ``METRICS``.
        one: (n,), sⱼ; the combination's task vector is Σⱼ sⱼ δⱼ.
        others: (m, n), the same of each of the others.
    """
    if metric == "ed":
        return np.sqrt(np.maximum(_squared_lengths(products.gram, others - one), 0))
    gram = products.centred if metric == "pcc" else products.gram
    squared = _squared_lengths(gram, others) * _squared_lengths(gram, one[None])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(others @ gram @ one / np.sqrt(np.maximum(squared, 0)), -1, 1)


def _squared_lengths(gram: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return np.einsum("mi,ij,mj->m", shares, gram, shares)


def _normalised(gram: np.ndarray) -> np.ndarray:
    squared = gram.diagonal()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(gram / np.sqrt(np.maximum(np.outer(squared, squared), 0)), -1, 1)
