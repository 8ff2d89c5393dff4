"""Nearest neighbours in a set that changes point by point."""

from __future__ import annotations

import numpy as np

from evomerge.fronts.columns import Columns
from evomerge.fronts.quality import nearest_others, nearest_to

NOBODY = -1


class Neighbours:
    """Each point's distance to the nearest other one, and the distances of fixed landmarks to the nearest point.

    A point that comes costs a pass over the set, and so does each point whose nearest leaves: not all pairs.

    Args:
        objectives: the length of a point.
        landmarks: (landmarks, objectives).
    """

    def __init__(self, objectives: int, landmarks: np.ndarray | None = None) -> None:
        self._objectives = objectives
        self._landmarks = np.empty((0, objectives)) if landmarks is None else landmarks
        self._clear()

    def __len__(self) -> int:
        return len(self._points)

    @property
    def distances(self) -> np.ndarray:
        """(points,): each point's to the nearest other one, infinite for a single point."""
        return np.asarray(self._distances.values[0])

    @property
    def away(self) -> np.ndarray:
        """(landmarks,): each landmark's distance to the nearest point."""
        return self._away

    def rebuild(self, points: np.ndarray) -> None:
        """Forget all points, and take in ``points`` (points, objectives), which differ from each other."""
        self._clear()
        if len(points) == 1:
            distances, nearest = np.array([np.inf]), np.array([NOBODY])
        else:
            distances, nearest = nearest_others(points)
        for point, distance, other in zip(points, distances, nearest, strict=True):
            self._append(point, distance, other)
        for index in range(len(self._landmarks)):
            self._look_around(index)

    def replace(self, removed: np.ndarray | None, point: np.ndarray) -> None:
        """Take out points and take in one that differs from all others.

        Args:
            removed: bool (points,); None for none.
            point: (objectives,).
        """
        lost = self._take_out(np.flatnonzero(~removed)) if removed is not None else np.empty(0, dtype=np.int64)
        squares = np.square(self._points.values - point[:, None]).sum(axis=0)
        distances = np.sqrt(squares)
        nearer = np.flatnonzero(distances < self.distances)
        self._distances.values[0, nearer], self._nearest.values[0, nearer] = distances[nearer], len(self)
        nearest = int(np.argmin(distances)) if len(distances) else NOBODY
        self._append(point, distances[nearest] if len(distances) else np.inf, nearest)
        for index in map(int, lost):
            self._distances.values[0, index], self._nearest.values[0, index] = self._nearest_of(index)
        for index, landmark in enumerate(self._landmarks):
            distance = float(np.sqrt(np.square(landmark - point).sum()))
            if self._closest[index] == NOBODY:
                self._look_around(index)
            elif distance < self._away[index]:
                self._away[index], self._closest[index] = distance, len(self) - 1

    def _clear(self) -> None:
        self._points, self._distances = Columns(self._objectives), Columns(1)
        self._nearest = Columns(1, np.int64)
        self._away = np.full(len(self._landmarks), np.inf)
        self._closest = np.full(len(self._landmarks), NOBODY)

    def _append(self, point: np.ndarray, distance: float, nearest: int) -> None:
        self._points.append(point)
        self._distances.append(distance)
        self._nearest.append(nearest)

    def _take_out(self, kept: np.ndarray) -> np.ndarray:
        """Return the points, of those kept, whose nearest left; landmarks whose nearest left have nobody."""
        place = np.full(len(self) + 1, NOBODY)  # one more, so that NOBODY stays so
        place[kept] = np.arange(len(kept))
        for table in (self._points, self._distances, self._nearest):
            table.keep(kept)
        self._nearest.values[0] = place[self._nearest.values[0]]
        self._closest = place[self._closest]
        lost = np.flatnonzero(self._nearest.values[0] == NOBODY)
        self._distances.values[0, lost] = np.inf
        return lost

    def _nearest_of(self, index: int) -> tuple[float, int]:
        columns = self._points.values
        squares = np.square(columns - columns[:, index, None]).sum(axis=0)
        squares[index] = np.inf
        nearest = int(np.argmin(squares))
        return float(np.sqrt(squares[nearest])), nearest

    def _look_around(self, landmark: int) -> None:
        found = nearest_to(self._landmarks[landmark], self._points.values)
        self._away[landmark], self._closest[landmark] = found
