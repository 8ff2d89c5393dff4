"""Hybrid experiments: one search in parameter space, whose pick is a parent of the next, a search of paths.

The first stage is a run of its own in the folder ``parameter-space`` of the run; what it picks is exported there, and
loaded by the second stage like any parent. So each stage is resumed, confirmed and reported as any run is.
"""

from __future__ import annotations

from evomerge.errors import ConfigError, Problem
from evomerge.experiments.schema import ExperimentConfig, MergeConfig
from evomerge.search_spaces.hybrid import HybridSpaceConfig

MERGED = "merged"  # the nickname of the first stage's pick
FIRST = "parameter-space"  # the folder of the first stage, in that of the run


def space_of(experiment: ExperimentConfig) -> HybridSpaceConfig | None:
    """Return the experiment's hybrid space; None if it has another kind."""
    space = experiment.search_space
    return space if isinstance(space, HybridSpaceConfig) else None


def settled(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with the trials of a hybrid's first stage as a number, which extending does not change.

    Raises:
        ConfigError: one of the stages would have no trial, or a parent is called ``merged``.
    """
    space = space_of(experiment)
    if space is None:
        return experiment
    total = experiment.budget.trials
    first = space.trials or total // 2
    problems = []
    if not 0 < first < total:
        what = f"of {total} trials the first stage gets {first} and the second {total - first}; both need some"
        problems.append(Problem(what, experiment.where(("search_space", "trials")), "change one of the numbers"))
    if MERGED in experiment.parents:
        what = f"{MERGED!r} is what the second stage calls the first one's pick"
        problems.append(Problem(what, experiment.where(("parents", MERGED)), "give this parent another name"))
    if experiment.merge.vocabulary:
        what = "paths go through parents of one vocabulary, which these are not if the merge has to make it one"
        problems.append(Problem(what, experiment.where(("merge",)), "use kind: parameter, or other parents"))
    if problems:
        raise ConfigError(problems)
    return experiment.model_copy(update={"search_space": space.model_copy(update={"trials": first})})


def first_stage(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the search in parameter space of a settled hybrid experiment."""
    space = _space(experiment)
    update = {
        "name": f"{experiment.name}-{FIRST}",
        "search_space": space.parameter,
        "budget": experiment.budget.model_copy(update={"trials": space.trials}),
        "pick": "best-mean" if experiment.pick.startswith("trial:") else experiment.pick,
    }
    return experiment.model_copy(update=update)


def second_stage(experiment: ExperimentConfig, merged: str) -> ExperimentConfig:
    """Return the search of paths of a settled hybrid experiment.

    Args:
        merged: reference of the model that the first stage picked.
    """
    space = _space(experiment)
    trials = experiment.budget.trials - (space.trials or 0)
    update = {
        "parents": {MERGED: merged, **experiment.parents},
        "search_space": space.routing,
        "budget": experiment.budget.model_copy(update={"trials": trials}),
        "merge": MergeConfig(),
    }
    return experiment.model_copy(update=update)


def stages(experiment: ExperimentConfig) -> tuple[ExperimentConfig, ...]:
    """Return what can be checked before any work: a settled experiment, or its stages, the first parent as the pick."""
    if space_of(experiment) is None:
        return (experiment,)
    stand_in = next(iter(experiment.parents.values()))
    return first_stage(experiment), second_stage(experiment, stand_in)


def _space(experiment: ExperimentConfig) -> HybridSpaceConfig:
    space = space_of(experiment)
    assert space is not None
    return space
