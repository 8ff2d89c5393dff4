"""The quality of a front that grows row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evomerge.fronts.archive import Change, FrontArchive
from evomerge.fronts.gains import widths
from evomerge.fronts.neighbours import Neighbours
from evomerge.fronts.quality import Quality, checked_known, delta_star, extremes, fewest


class FrontMeter:
    """A ``FrontArchive`` with all of ``Quality``: the numbers of ``hypervolume``, ``spread`` and ``igd_plus``.

    Args:
        reference: (objectives,): hypervolume is measured from here.
        known: (known rows, objectives), the front that could be reached, if it is known.

    Raises:
        ConfigError: one of the two is not finite, or their shapes do not fit.
    """

    def __init__(self, reference: ArrayLike, known: ArrayLike | None = None) -> None:
        self.archive = FrontArchive(reference)
        self.quality = Quality(0.0, 0)
        objectives = len(self.archive.reference)
        self._goal = None if known is None else checked_known(known, objectives)
        self._scale = np.ones(objectives) if self._goal is None else widths(self._goal)
        self._different = Neighbours(objectives, None if self._goal is None else extremes(self._goal) / self._scale)
        self._first = np.empty(0, dtype=bool)  # which of the archive's rows is the first of its equals
        self._gaps = np.full(0 if self._goal is None else len(self._goal), np.inf)

    def add(self, gains: ArrayLike) -> Change:
        """Take in a row (objectives,).

        Raises:
            ConfigError: a gain is NaN or infinite, or the shape does not fit.
        """
        change = self.archive.add(gains)
        if not change.entered:
            return change
        removed = None if change.removed is None else change.removed[self._first]
        kept = self._first if change.removed is None else self._first[~change.removed]
        self._first = np.append(kept, not change.repeated)
        if not change.repeated:
            self._compare(removed)
            self._approach()
        self.quality = Quality(self.archive.hypervolume, len(self.archive), self._spread(), self._igd_plus())
        return change

    def _compare(self, removed: np.ndarray | None) -> None:
        """Bring distances up to date; the front's own ranges, by which they are scaled, change less and less often."""
        scale = widths(self.archive.gains) if self._goal is None else self._scale
        if (scale == self._scale).all():
            self._different.replace(removed, self.archive.gains[-1] / scale)
        else:
            self._scale = scale
            self._different.rebuild(self.archive.gains[self._first] / scale)

    def _approach(self) -> None:
        # A row that leaves the front is dominated by one that is no farther from any known row, so gaps only shrink.
        if self._goal is not None:
            behind = np.maximum((self._goal - self.archive.gains[-1]) / self._scale, 0.0)
            self._gaps = np.minimum(self._gaps, np.sqrt(np.square(behind).sum(axis=1)))

    def _spread(self) -> float | None:
        if len(self._different) < fewest(self._goal is not None):
            return None
        return delta_star(self._different.distances, self._different.away)

    def _igd_plus(self) -> float | None:
        return None if self._goal is None else float(self._gaps.mean())
