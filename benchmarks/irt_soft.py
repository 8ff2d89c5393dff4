"""What soft responses take off the errors of estimated scores, on the trials of a search.

    evomerge run quickstart --out RUN --set fitness.search_items=400
    python benchmarks/irt_soft.py RUN [--items 20] [--models 12]

Evaluates the run's reference models, random merges and trials again on all search items, with the probability of the
right answer beside each response. Calibrates on the first two, estimates the trials from a few items with soft
responses on none, on those asked, on 50 others too, and on all; prints rank correlations with the trials' exact scores
and mean absolute errors in points. On the zoo answers are one token long: a soft response costs what a response does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from evomerge.experiments import calibration
from evomerge.experiments.journal import Journal
from evomerge.experiments.preflight import prepare
from evomerge.experiments.run_folder import RunFolder
from evomerge.fitness import Responses
from evomerge.fitness.estimate_config import CalibrationConfig
from evomerge.fitness.estimation import gold_matrix, values_of
from evomerge.fitness.irt.estimate import fit_estimator
from evomerge.fitness.irt.extract import extract
from evomerge.recipes import write_recipe
from evomerge.workers import WorkerSpec
from evomerge.workers.actor import Worker


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--items", type=int, default=20)
    arguments.add_argument("--models", type=int, default=12)
    options = arguments.parse_args()

    prepared = prepare(RunFolder(options.run).read_experiment())
    fitness, config = prepared.fitness, CalibrationConfig(models=options.models)
    known = {name: recipe for name, (_, recipe) in prepared.reference_recipes.items()}
    parents = [name for name, (kind, _) in prepared.reference_recipes.items() if kind in ("parent", "base")]
    known |= calibration.random_merges(prepared, config)
    trials = Journal.read(RunFolder(options.run).journal).trials()
    recipes = known | {f"trial {t.number}": prepared.space.express(t.genome) for t in trials if not t.failed}
    worker = Worker(
        WorkerSpec(
            references=prepared.experiment.references,
            fitness=prepared.experiment.fitness.model_dump(mode="json"),
            dtype=prepared.dtype,
            donor=prepared.donor,
            device="cpu",
            threads=1,
            like=write_recipe(prepared.like),
        )
    )
    responses: dict[str, Responses] = {}
    for name, recipe in recipes.items():
        outcome = worker.evaluate(write_recipe(recipe), fitness.items("search"), fitness.items("search"), {})
        responses[name] = Responses.from_json(outcome.responses or "")
        print(f"{len(responses)} of {len(recipes)}", end="\r", flush=True)
    banks = calibration.make_banks(fitness, {name: responses[name] for name in known}, parents, config)
    for objective in fitness.objectives:
        bank = banks[objective.name]
        rows = [values_of(fitness, found, objective.name) for found in responses.values()]
        values = np.array([[row[item] for item in bank.items] for row in rows])
        gold = gold_matrix(bank.items, [found.tasks[objective.task].gold for found in responses.values()])
        of_trials = slice(len(known), None)
        truth = values[of_trials].mean(1)
        subset = extract("score-optimal", options.items, bank.parameters, bank.responses)
        everything = np.arange(len(bank.items))
        of_parents = values[[list(responses).index(name) for name in parents]]
        for label, soft in (
            ("none", None),
            ("those asked", subset.rows),
            ("50 others too", np.union1d(subset.rows, everything[:50])),
            ("all", everything),
        ):
            estimator = fit_estimator("gmp-irt", bank, subset, of_parents, soft)
            seen = np.where(np.isin(everything, soft), gold[of_trials], np.nan) if soft is not None else None
            found = estimator(values[of_trials][:, subset.rows], seen).values
            rank, error = spearmanr(found, truth)[0], 100 * np.abs(found - truth).mean()
            print(f"{objective.name:<16} soft on {label:<14} Spearman {rank:.3f}, error {error:.1f} points")


if __name__ == "__main__":
    main()
