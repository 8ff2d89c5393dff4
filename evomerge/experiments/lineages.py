"""The lineage of a run's trials: recipes of as many stages, which need the parents alone."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import RunError
from evomerge.experiments.journal import Journal
from evomerge.experiments.schema import ExperimentConfig
from evomerge.recipes import NamedRecipe, Recipe, sources_of, trial_reference
from evomerge.search_spaces import ParentsInfo
from evomerge.search_spaces.lineage import LineageSpace, LineageSpaceConfig


def told_space(experiment: ExperimentConfig, journal: Path, dtype: str | None) -> LineageSpace:
    """Return the search space of a run of lineage, told all its trials; neither models nor torch are needed.

    Args:
        experiment: the run's.
        journal: of the run.
        dtype: of its recipes.
    """
    config = experiment.search_space
    assert isinstance(config, LineageSpaceConfig)
    space = LineageSpace(
        config, ParentsInfo(experiment.base, experiment.parents, (), 0, dtype, experiment.merge.fields)
    )
    for trial in Journal.read(journal).trials():
        space.told(trial.genome, trial.recipe_hash, failed=trial.failed)
    return space


def flattened(recipe: Recipe, experiment: ExperimentConfig, journal: Path) -> tuple[NamedRecipe, ...]:
    """Return a recipe of a run together with those of the trials that it is made of, each after its own sources.

    Stages are called as recipes of the run call these trials, ``trial:HASH``, and the recipes are unchanged: so are
    their hashes, and the draws of methods that draw numbers, which depend on the names of the models.

    Raises:
        RunError: a recipe is not the one that the run had, as experiment.yaml was changed since.
    """
    if not sources_of(recipe):
        return (NamedRecipe(recipe),)
    lineage = told_space(experiment, journal, recipe.dtype).lineage([recipe])
    for recipe_hash, one in lineage.items():
        if one.hash != recipe_hash:
            raise RunError(
                f"the recipe of trial:{recipe_hash} is another one now: experiment.yaml or evomerge changed since the "
                "run; restore them"
            )
    named = [(one, trial_reference(recipe_hash)) for recipe_hash, one in lineage.items()]
    return tuple(NamedRecipe(one, name, _used(one)) for one, name in [*named, (recipe, None)])


def _used(recipe: Recipe) -> tuple[str, ...]:
    return tuple(map(trial_reference, sources_of(recipe)))
