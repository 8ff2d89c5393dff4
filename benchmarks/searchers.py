"""Searchers side by side: the front that each finds in few trials, as a share of a dense grid's.

    python benchmarks/searchers.py PARENTS TRIALS [--seeds 10] [--searchers map nsga2 …] [--out runs/searchers]

The experiment of `experiments/searchers` on the zoo with its first PARENTS experts (2 or 3; as many objectives): every
trial is really merged and evaluated, with as many in flight as in a run. Prints the hypervolume of the trials' front as
a share of that of the grid's front (`benchmarks/tables/zoo-PARENTS.csv`, the same items), beyond the worst scores of
the base, the experts and their uniform merge; and the same for both fronts confirmed on items that nobody searched on.
Searchers that predict a front have it confirmed too: as many of its points as a run confirms by default, more, and all.
Results are kept in OUT, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo_grid import TABLES, experiment

from evomerge.cli.display import make_display
from evomerge.experiments import fronts
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import search
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run_workers import open_workers
from evomerge.recipes import Recipe
from evomerge.search_spaces.lineage import lineage_of
from evomerge.searchers import SEARCHERS as KINDS
from evomerge.searchers import Searcher, read_searcher
from evomerge.searchers.map import AMORTIZED, MapConfig
from evomerge.searchers.surrogates.explanation import Explains

SEARCHERS = {
    "random": {"kind": "random"},
    "sobol": {"kind": "qmc"},
    "nsga2": {"kind": "nsga2", "population": 12},
    "cma-es": {"kind": "cma-es"},
    "tpe": {"kind": "optuna", "sampler": "TPESampler"},
    "gp": {"kind": "optuna", "sampler": "GPSampler", "options": {"deterministic_objective": True}},
    "map": {"kind": "map", "confirm": AMORTIZED},
    "map-bayesian": {"kind": "map", "variant": "bayesian", "confirm": AMORTIZED},
    "map-bins": {"kind": "map", "variant": "bayesian", "acquisition": "bins", "confirm": AMORTIZED},
}
IN_FLIGHT = 8
PREDICTED = (MapConfig().confirm, 100, 200, AMORTIZED)  # the most promising come first, however many are asked for


class Bench:
    """Evaluates recipes once, whoever asks for them.

    Args:
        prepared: the experiment. Its space is copied, as one of lineage knows the trials of one search only.
        pool: returns the workers.
        folder: for responses.
    """

    def __init__(self, prepared: Prepared, pool, folder: Path) -> None:
        self.prepared = prepared = replace(prepared, space=copy.deepcopy(prepared.space))
        self.lineage = lineage_of(prepared.space)
        plans = {
            split: FixedPlan(split, prepared.fitness, Asked(prepared.fitness.items(split), {}))
            for split in ("search", "confirmation")
        }
        self.evaluations = {
            split: Evaluations(pool, plan, folder, lineage=self.lineage) for split, plan in plans.items()
        }

    def scores(self, recipes: list[Recipe], split: str) -> list[dict[str, float]]:
        for recipe in recipes:
            self.evaluations[split].start(recipe)
        found = [self.evaluations[split].trial(0, {}, recipe) for recipe in recipes]
        assert not any(trial.failed for trial in found)
        return [trial.objectives or {} for trial in found]

    def run(self, config: Mapping[str, Any], seed: int, trials: int) -> tuple[list[Trial], Searcher]:
        """Return the trials of one search, and the searcher afterwards."""
        prepared, evaluations = self.prepared, self.evaluations["search"]
        experiment = prepared.experiment.model_copy(update={"searcher": read_searcher({**config, "seed": seed})})
        searcher = replace(prepared, experiment=experiment).searcher(trials)
        told: list[Trial] = []

        def record(trial: Trial) -> None:
            told.append(trial)
            if self.lineage is not None:
                self.lineage.told(trial.genome, trial.recipe_hash, failed=trial.failed)

        search(
            searcher,
            prepared.space,
            evaluations,
            recorded=[],
            record=record,
            told=lambda trial, open_: None,
            budget=trials,
            in_flight=IN_FLIGHT,
            item_scores=partial(evaluations.item_scores, fitness=prepared.fitness)
            if KINDS[experiment.searcher.kind].per_item
            else None,
        )
        return told, searcher

    def predicted(self, searcher: Searcher) -> list[Recipe]:
        """Return the points of the front that a searcher predicts, the most promising first; none if it does not."""
        found = searcher.explanation() if isinstance(searcher, Explains) else None
        places = found.confirm if found else ()
        return [self.prepared.space.express(found.front[place].genome) for place in places]

    def front(self, points: list[dict[str, float]], scores: list[dict[str, float]]) -> list[Recipe]:
        rows = fronts.front(scores, self.prepared.objectives)
        return list({r.hash: r for r in (self.prepared.space.express(points[row]) for row in rows)}.values())

    def volume(self, scores: list[dict[str, float]], corner: dict[str, float]) -> float:
        return fronts.hypervolume(scores, self.prepared.objectives, corner)


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parents", type=int, choices=(2, 3))
    arguments.add_argument("trials", type=int)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    arguments.add_argument("--search-only", action="store_true", help="confirm no front: the grid's may be large")
    arguments.add_argument("--items", type=int, help="of each task that fronts are confirmed on; left out: 600")
    arguments.add_argument("--out", type=Path, default=Path("runs/searchers"))
    options = arguments.parse_args()
    on = f"-{options.items}-items" if options.items else ""
    out = options.out / f"{options.parents}-parents{on}"
    out.mkdir(parents=True, exist_ok=True)
    settings = [f"fitness.confirmation_items={options.items}"] if options.items else []
    prepared = prepare(experiment(options.parents, *settings))
    kept = out / f"{options.trials}-trials.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    with make_display() as display, open_workers(prepared, display, None, lambda: None) as workers:
        bench = Bench(prepared, workers.pool, out / "responses")
        splits = ["search"] if options.search_only else ["search", "confirmation"]
        corners, grid = of_grid(bench, options.parents, splits)
        for seed in range(options.seeds):
            for name in options.searchers:
                if f"{name} {seed}" not in found:
                    begun = time.perf_counter()
                    told, searcher = bench.run(SEARCHERS[name], seed, options.trials)
                    seconds = time.perf_counter() - begun
                    scores = [trial.objectives or {} for trial in told]
                    volume = bench.volume(scores, corners["search"])
                    recipes = bench.front([trial.genome for trial in told], scores)
                    confirmed = math.nan
                    if "confirmation" in splits:
                        of_front = bench.scores(recipes, "confirmation")
                        confirmed = bench.volume(of_front, corners["confirmation"])
                        if predicted := bench.scores(bench.predicted(searcher), "confirmation"):
                            found[f"{name} {seed} predicted"] = [
                                [
                                    min(most, len(predicted)),
                                    bench.volume(of_front + predicted[:most], corners["confirmation"]),
                                ]
                                for most in PREDICTED
                            ]
                    found[f"{name} {seed}"] = [volume, confirmed, seconds, len(recipes)]
                    kept.write_text(json.dumps(found, indent=0))
                print(name, seed, found[f"{name} {seed}"], found.get(f"{name} {seed} predicted", ""), flush=True)
    print("grid: hypervolume " + ", ".join(f"{grid[split]:.4f} on {split} items" for split in splits))
    print(f"{options.trials} trials, {options.seeds} seeds   share of the grid's     least   confirmed       seconds")
    for name in options.searchers:
        rows = np.array([found[f"{name} {seed}"] for seed in range(options.seeds)])
        shares, confirmed = 100 * rows[:, 0] / grid["search"], 100 * rows[:, 1] / grid.get("confirmation", math.nan)
        print(
            f"{name:<16} {told_as(shares)}%  {shares.min():6.1f}%  {told_as(confirmed)}%   "
            f"{statistics.median(rows[:, 2]):6.1f}   {rows[:, 3].mean():.0f} on the front"
        )
        if f"{name} 0 predicted" in found:
            predicted = np.array([found[f"{name} {seed} predicted"] for seed in range(options.seeds)])
            for most, column in zip(PREDICTED, predicted.swapaxes(0, 1), strict=True):
                share, count = 100 * column[:, 1] / grid["confirmation"], column[:, 0].mean()
                print(f"  with at most {most} predicted points (mean {count:.0f}): confirmed {told_as(share)}%")


def of_grid(bench: Bench, parents: int, splits: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the reference points and the hypervolumes of the grid's front, by split."""
    with (TABLES / f"zoo-{parents}.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    objectives, genes = [o.name for o in bench.prepared.objectives], bench.prepared.space.genes
    scores = [{name: row[name] for name in objectives} for row in rows]
    points = [{gene.name: row[gene.name.split(".")[0]] for gene in genes} for row in rows]
    references = [recipe for _, recipe in bench.prepared.reference_recipes.values()]
    known = {split: bench.scores(references, split) for split in splits}
    corners = {split: fronts.reference_point(each, bench.prepared.objectives) for split, each in known.items()}
    volumes = {"search": bench.volume(scores, corners["search"])}
    if "confirmation" in splits:
        confirmed = bench.scores(bench.front(points, scores), "confirmation")
        volumes["confirmation"] = bench.volume(confirmed, corners["confirmation"])
    return corners, volumes


def told_as(values: np.ndarray) -> str:
    """Return mean and 95% interval of the mean (normal)."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{values.mean():5.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
