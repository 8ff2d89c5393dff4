"""A table that grows and shrinks at little cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

FIRST_CAPACITY = 64


class Columns:
    """Columns of numbers, appended one by one; each row of the table lies in one contiguous run of memory.

    Args:
        rows: the numbers in a column.
        dtype: theirs.
    """

    def __init__(self, rows: int, dtype: DTypeLike = np.float64) -> None:
        self._values = np.empty((rows, FIRST_CAPACITY), dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """(rows, columns): a view, valid until the next change."""
        return self._values[:, : self._size]

    def append(self, column: ArrayLike) -> None:
        """Add a column (rows,) at the end."""
        if self._size == self._values.shape[1]:
            self._values = np.concatenate([self._values, np.empty_like(self._values)], axis=1)
        self._values[:, self._size] = column
        self._size += 1

    def keep(self, places: np.ndarray) -> None:
        """Keep the columns at ``places``, an increasing int array, and no others."""
        kept = self.values.take(places, axis=1)
        self._size = len(places)
        self._values[:, : self._size] = kept
