"""Item banks from the experiment itself: its parents and random merges of them, on all search items."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.errors import WorkerError
from evomerge.experiments.evaluations import Evaluations
from evomerge.experiments.preflight import Prepared
from evomerge.fitness import Fitness, Responses
from evomerge.fitness.estimate_config import CalibrationConfig
from evomerge.fitness.estimation import gold_matrix, require_unit, values_of
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.irt.calibrate import calibrate
from evomerge.fitness.irt.responses import ResponseMatrix
from evomerge.recipes import Recipe
from evomerge.search_spaces.genes import Value
from evomerge.search_spaces.lineage import lineage_of
from evomerge.searchers import build_searcher
from evomerge.searchers.random_search import RandomConfig

FEWEST = 4


def random_genomes(prepared: Prepared, config: CalibrationConfig) -> dict[str, dict[str, Value]]:
    """Return name → genome of merges drawn uniformly from the search space; of lineages, of children of parents."""
    lineage = lineage_of(prepared.space)
    genes = prepared.space.genes if lineage is None else lineage.genes_of_founders
    searcher = build_searcher(RandomConfig(kind="random", seed=config.seed), genes, prepared.objectives, config.models)
    genomes = {}
    for number in range(config.models):
        genome = searcher.ask()
        assert genome is not None, "random search always has a proposal"
        genomes[f"random merge {number}"] = genome
    return genomes


def random_merges(prepared: Prepared, config: CalibrationConfig) -> dict[str, Recipe]:
    """Return name → recipe of the same."""
    return {name: prepared.space.express(genome) for name, genome in random_genomes(prepared, config).items()}


def gather(
    recipes: Mapping[str, Recipe],
    evaluations: Evaluations,
    note: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Responses]:
    """Evaluate recipes; one that fails is noted and left out.

    Args:
        recipes: by name.
        evaluations: on all search items.
        note: told of failures.
        stopping: whether the user asked to stop.

    Raises:
        KeyboardInterrupt: the user asked to stop; what is done is kept.
    """
    for recipe in recipes.values():
        evaluations.start(recipe)
    found = {}
    for name, recipe in recipes.items():
        if stopping():
            raise KeyboardInterrupt
        outcome = evaluations.outcome(recipe)
        if outcome.responses is None:
            note(f"{name} could not be evaluated and is left out: {(outcome.error or '').strip().splitlines()[-1]}")
        else:
            found[name] = Responses.from_json(outcome.responses)
    return found


def make_banks(
    fitness: Fitness, responses: Mapping[str, Responses], parents: Sequence[str], config: CalibrationConfig
) -> dict[str, ItemBank]:
    """Return an item bank of each objective.

    Args:
        fitness: whose search items were asked.
        responses: name to responses of the models.
        parents: names of those that the others are merges of.
        config: the response model.

    Raises:
        WorkerError: there are too few models.
        FitnessError: responses that are no numbers in [0, 1].
        ConfigError: they say nothing, being all the same.
    """
    if len(responses) < FEWEST:
        raise WorkerError(f"only {len(responses)} models could be evaluated: too few to calibrate items")
    banks = {}
    for objective in fitness.objectives:
        items = fitness.items("search")[objective.task]
        rows = []
        for found in responses.values():
            values = values_of(fitness, found, objective.name)
            require_unit(objective.name, values)
            rows.append([values[item] for item in items])
        matrix = ResponseMatrix(np.array(rows), tuple(responses), items, objective.task, objective.metric)
        gold = [found.tasks[objective.task].gold for found in responses.values()]
        soft = None if gold[0] is None else gold_matrix(items, gold)
        fit = calibrate(matrix, config.model, config.dimensions, keep_constant=True)
        banks[objective.name] = fit.bank(matrix, objective.task, objective.metric, tuple(parents), soft)
    return banks


def bank_path(folder: Path, objective: str, objectives: Sequence[str]) -> Path:
    """Return where an objective's bank lies: names of objectives may hold what those of files must not."""
    return folder / f"{list(objectives).index(objective)}-{re.sub(r'[^A-Za-z0-9._-]+', '-', objective)}"


def write_banks(folder: Path, banks: Mapping[str, ItemBank]) -> None:
    """Write the banks of all objectives."""
    for objective, bank in banks.items():
        bank.write(bank_path(folder, objective, list(banks)))


def read_banks(folder: Path, objectives: Sequence[str]) -> dict[str, ItemBank]:
    """Return what `write_banks` wrote.

    Raises:
        ConfigError: one is missing or damaged.
    """
    return {objective: ItemBank.read(bank_path(folder, objective, objectives)) for objective in objectives}
