"""Which trials a recipe of a run is made of: its sources, their sources, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from evomerge.recipes.recipe import Recipe
from evomerge.recipes.references import trial_of


def sources_of(recipe: Recipe) -> list[str]:
    """Return the hashes of the trials that a recipe names as sources, in its order."""
    return [found for reference in recipe.parents() if (found := trial_of(reference)) is not None]


def with_ancestors(trials: Iterable[str], sources: Callable[[str], Sequence[str]]) -> list[str]:
    """Return these trials and all that they are made of, each once and after its own sources.

    Args:
        trials: hashes of recipes.
        sources: returns the sources of a trial; called once for each.
    """
    done: dict[str, None] = {}
    opened: set[str] = set()
    waiting = [*trials][::-1]
    while waiting:  # no recursion: a lineage may be thousands of generations deep
        trial = waiting[-1]
        if trial in opened:
            done.setdefault(waiting.pop())
        else:
            opened.add(trial)
            waiting += [source for source in reversed(sources(trial)) if source not in opened]
    return list(done)
