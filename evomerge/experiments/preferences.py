"""Preferences: how much each objective counts, and what suits them best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.experiments.fronts import Scores, as_gains
from evomerge.searchers import ObjectiveSpec

_AUGMENTED = 1e-3  # share of the summed shortfalls, which tells apart what is equal in the worst one


def read_preference(text: str, objectives: Sequence[ObjectiveSpec], where: str = "--prefer") -> dict[str, float]:
    """Return the weights that ``math=2,japanese=1`` gives; an objective that is not named has weight 1.

    Raises:
        ConfigError: an unknown objective, or a weight that is not a number above 0 (0 leaves an objective out).
    """
    names = [objective.name for objective in objectives]
    weights = dict.fromkeys(names, 1.0)
    problems = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in weights:
            problems.append(Problem(f"no objective is called {name!r}", where, suggest(name, names)))
            continue
        weight = _number(number)
        if not equals or weight is None:
            what = f"{part!r} gives no weight"
            problems.append(Problem(what, where, f"write it as {name}=2, with a number that is not negative"))
            continue
        weights[name] = weight
    if not problems and not any(weights.values()):
        problems.append(Problem("all weights are 0", where, "give at least one objective a weight above 0"))
    if problems:
        raise ConfigError(problems)
    return weights


def best(
    candidates: Sequence[Scores],
    weights: Mapping[str, float],
    objectives: Sequence[ObjectiveSpec],
    among: Sequence[bool] | None = None,
) -> int:
    """Return which candidate suits the weights best.

    The one whose largest weighted shortfall is the smallest (Wierzbicki 1980, the achievement function of reference
    points): a shortfall is what an objective lacks of the candidates' best value, as a share of their range. Twice the
    weight asks for half the shortfall. Unlike a weighted sum this reaches every part of a front, hollow ones included.

    Args:
        candidates: at least one.
        weights: of the objectives.
        objectives: what the candidates are compared by.
        among: which candidates may be chosen; all set the range.
    """
    gains = as_gains(candidates, objectives)
    spread = np.ptp(gains, axis=0)
    lacking = (gains.max(0) - gains) / np.where(spread > 0, spread, 1)
    weighted = lacking * np.array([weights[objective.name] for objective in objectives])
    shortfall = weighted.max(1) + _AUGMENTED * weighted.sum(1)
    if among is not None:
        shortfall = np.where(among, shortfall, np.inf)
    return int(shortfall.argmin())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
