"""All that can be known to be wrong with an experiment, of all stages together: what run, plan and validate refuse."""

from __future__ import annotations

import os
from pathlib import Path

from evomerge.errors import ConfigError, EvomergeError, Problem
from evomerge.experiments import hybrid, staging
from evomerge.experiments.journals.server import check_server
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run_folder import taken
from evomerge.experiments.schema import ExperimentConfig


def check(experiment: ExperimentConfig, *, out: Path | None = None) -> tuple[Prepared, ...]:
    """Check an experiment and build the parts of each of its stages that can be checked before any work.

    Args:
        experiment: as it was read.
        out: the run folder to be, whose disk must have room.

    Raises:
        ConfigError: with every problem found in any of them.
    """
    problems: list[Problem] = []
    try:
        stages = staging.to_check(experiment)
    except ConfigError as error:
        problems += error.problems
        space = hybrid.space_of(experiment)
        plain = {} if space is None else {"search_space": space.parameter}
        stages = (experiment.model_copy(update=plain),)  # what else is wrong is told at once
    prepared = []
    for stage in stages:
        try:
            prepared.append(prepare(stage, out=out))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return tuple(prepared)


def settled(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with what its stages need to be known.

    Raises:
        ConfigError: it cannot be run in stages; with all else that is wrong with it.
    """
    try:
        return staging.settled(experiment)
    except ConfigError:
        check(experiment)
        raise


def refusals(experiment: ExperimentConfig, out: Path) -> list[Problem]:
    """Return why no run of the experiment could begin in a folder, whatever else is wrong with it."""
    problems = taken(out)
    parent = next(path for path in [out.resolve(), *out.resolve().parents] if path.exists())
    if not problems and not (parent.is_dir() and os.access(parent, os.W_OK)):
        problems.append(Problem("cannot write there", str(parent), "name a writable folder with --out"))
    if experiment.journal is not None:
        try:
            check_server(experiment.journal)
        except ConfigError as error:
            problems += error.problems
        except EvomergeError as error:
            problems.append(Problem(str(error), experiment.where(("journal",))))
    return problems
