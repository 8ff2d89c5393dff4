"""A front that is kept up to date row by row, at a cost that does not grow with the rows seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evomerge.fronts.columns import Columns
from evomerge.fronts.gains import checked_row
from evomerge.fronts.hypervolume import exclusive


@dataclass(frozen=True)
class Change:
    """What adding a row did to the front.

    Args:
        entered: the row is on the front.
        repeated: an equal row was there before.
        removed: bool (size before,): the rows that it dominates; None if there are none.
    """

    entered: bool
    repeated: bool = False
    removed: np.ndarray | None = None


class FrontArchive:
    """The non-dominated ones of the rows added so far, equal ones included, and their hypervolume.

    A row costs a few passes over the front, as arrays, and its exclusive hypervolume. Equal rows in equal order give
    equal bits.

    Args:
        reference: (objectives,): hypervolume is measured from here.

    Raises:
        ConfigError: the reference is not finite.
    """

    def __init__(self, reference: ArrayLike) -> None:
        self.reference = checked_row(reference)
        self.hypervolume = 0.0
        self._columns = Columns(len(self.reference))
        self._members = Columns(1, np.int64)
        self._added = 0

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def gains(self) -> np.ndarray:
        """(size, objectives): the front's rows in the order they were added; a view, valid until the next row."""
        return self._columns.values.T

    @property
    def members(self) -> np.ndarray:
        """int (size,): which of the rows added these are, from 0; a view, valid until the next row."""
        return np.asarray(self._members.values[0])

    def add(self, gains: ArrayLike) -> Change:
        """Take in a row (objectives,).

        Raises:
            ConfigError: a gain is NaN or infinite, or the shape does not fit.
        """
        row = checked_row(gains, len(self.reference))
        columns, point = self._columns.values, row[:, None]
        self._added += 1
        if (columns >= point).all(axis=0).any():
            repeated = bool((columns == point).all(axis=0).any())
            if repeated:
                self._append(row)
            return Change(entered=repeated, repeated=repeated)
        self.hypervolume += exclusive(row, columns, self.reference)
        removed = np.asarray((columns <= point).all(axis=0))
        change = Change(entered=True, removed=removed if removed.any() else None)
        if change.removed is not None:
            kept = np.flatnonzero(~removed)
            self._columns.keep(kept)
            self._members.keep(kept)
        self._append(row)
        return change

    def _append(self, row: np.ndarray) -> None:
        self._columns.append(row)
        self._members.append(self._added - 1)
