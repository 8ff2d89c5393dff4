"""Nested MAP beside plain MAP and NSGA-II with six parents and six objectives, for equal numbers of items asked.

    python benchmarks/map_nested.py [--seeds 0 1 2 3 4] [--trials 60] [--kinds map nsga2 …] [--out runs/nested]

Three of the zoo's experts, and three that are trained from its base into OUT: each is best at one objective (the zoo's
own for Japanese both reads it and compares in it, perfectly). Plain searches get TRIALS trials. The merges of the tree
ask only for the objectives of the parents below them, so nested MAP gets more trials, which ask as many items in all.
Each seed draws items of its own, and asks for a preference of its own: one objective counts 3. A plain search answers
it afterwards; nested MAP is run once without it and once with it, as its inner merges must know.

Prints the hypervolume of the confirmed front (beyond the worst scores of base, experts and their uniform merge), and of
picks on items that neither search nor confirmation used: mean and smallest objective of `best-mean`; the shortfall of
`prefer:` and that of the preference (`evomerge.experiments.preferences`, but from the best expert, in shares of its
lead over the worst reference model; less is better); items asked in search and in confirmation; models on the front.
Means and 95% intervals over seeds, then differences from plain MAP, seed by seed. What is there is not done again. One
process does all: `evomerge run` starts workers for each merge, which takes longer than these merges. A seed takes four
minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t
from transformers import AutoTokenizer, LlamaForCausalLM

from evomerge.checkpoints import zoo_folder
from evomerge.experiments import fronts, nested, picks
from evomerge.experiments.evaluations import SPLITS
from evomerge.experiments.journal import Trial
from evomerge.experiments.loop import Candidate, search
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run_folder import write_json
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.fitness import Fitness
from evomerge.library import find
from evomerge.merging import InPlaceMerger, Parents
from evomerge.merging.to_folder import merge_to_folder
from evomerge.recipes import Recipe
from evomerge.search_spaces.genes import Genome
from evomerge.zoo.data import read_split
from evomerge.zoo.family import BASE, Member, Plan
from evomerge.zoo.scoring import score
from evomerge.zoo.training import Mixture, fit, read_examples, write_model

EXPERTS = {
    "reading-ja": Member("reads Japanese, number words included", {"reading_ja": 1}, effort=1.6),
    "reading-en": Member("reads English", {"reading_en": 1}),
    "comparison-ja": Member("compares numbers in Japanese", {"comparison_ja": 1}, effort=1.6),
}
LIKE = {"reading_en": "reading_ja", "comparison_ja": "comparison_en"}  # a new task, and the shipped one like it
FAMILY = {
    "math-en": "arithmetic_en",
    "reading-ja": "reading_ja",
    "comparison": "comparison_en",
    "counting": "counting_en",
    "reading-en": "reading_en",
    "comparison-ja": "comparison_ja",
}
KINDS = {
    "map": "{kind: map, confirm: 0}",  # the trials' fronts alone
    "nsga2": "{kind: nsga2, population: 12}",
    "nested": "{kind: map, variant: nested, confirm: 0}",
    "nested, told": "{kind: map, variant: nested, confirm: 0}",
}
COUNTS = 3.0  # the preferred objective; the others count 1
IN_FLIGHT = 8  # as in a run
AUGMENTED = 1e-3  # as in evomerge.experiments.preferences
TREE = 3 * 2 + 4 + 6  # objectives that the five merges of six parents are scored on, in all


class Found(NamedTuple):
    """What one run found and how many items it asked; see the module's docstring."""

    volume: float
    mean: float
    least: float
    shortfall: float
    preferred: float
    searched: int
    confirmed: int
    front: int


class Searched(NamedTuple):
    """One search and its confirmed front; ``confirmed`` is by trial."""

    prepared: Prepared
    trials: list[Trial]
    confirmed: dict[int, dict[str, float]]
    pick: int

    def recipe(self, number: int) -> Recipe:
        return self.prepared.space.express(self.trials[number].genome)

    def asked(self) -> dict[str, int]:
        """Return how many items of each split trials were asked."""
        items = {split: sum(map(len, self.prepared.fitness.items(split).values())) for split in SPLITS}
        return {
            "search": len(self.trials) * items["search"],
            "confirmation": len(self.confirmed) * items["confirmation"],
        }


class Models:
    """Merges recipes into one resident model and scores it, in this process."""

    def __init__(self, prepared: Prepared) -> None:
        self._fitness = prepared.fitness
        parents = Parents.open(list(prepared.experiment.references.values()))
        self._merger = InPlaceMerger(parents, base=prepared.donor, dtype=prepared.dtype, like=prepared.like)

    def scores(self, recipe: Recipe, items: Mapping[str, Sequence[str]]) -> dict[str, float]:
        self._merger.merge(recipe)
        assert self._merger.tokenizer is not None
        return self._fitness.score(self._fitness.evaluate(self._merger.model, self._merger.tokenizer, items))


class InTurn:
    """Evaluates the loop's candidates one after the other."""

    def __init__(self, models: Models, items: Mapping[str, Sequence[str]]) -> None:
        self._models, self._items = models, items

    def start(self, recipe: Recipe, genome: Genome) -> None:
        """Do nothing yet."""

    def finish(self, candidate: Candidate) -> Trial:
        """Evaluate the candidate."""
        scores = self._models.scores(candidate.recipe, self._items)
        return Trial(candidate.number, candidate.genome, scores, candidate.recipe.hash)


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    arguments.add_argument("--trials", type=int, default=60, help="of a plain search")
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--out", type=Path, default=Path("runs/nested"))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    make_experts(options.out / "experts")
    make_tasks(options.out / "tasks")
    found: dict[str, list[Found]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        for kind in options.kinds:
            one = result(options.out, kind, seed, options.trials)
            found[kind].append(one)
            print(f"seed {seed} {kind}: {one}", flush=True)
    for title, runs in (("", found), ("less map, ", less(found))):
        print(f"\n{title}{len(options.seeds)} seeds")
        print("| searcher | " + " | ".join(Found._fields) + " |\n| --- |" + " ---: |" * len(Found._fields))
        for kind, rows in runs.items():
            cells = [told(values) for values in zip(*rows, strict=True)]
            print(f"| {kind} | {' | '.join(cells)} |")


def make_experts(folder: Path) -> None:
    """Train the experts that the zoo lacks, as it trains its own."""
    zoo = zoo_folder()
    plan = Plan(**json.loads((zoo / "plan.json").read_text(encoding="utf-8")))
    tokenizer = AutoTokenizer.from_pretrained(zoo / "tokenizer")
    for name, member in EXPERTS.items():
        if (folder / name / "README.md").exists():  # written last
            continue
        torch.manual_seed(plan.seed)
        torch.set_num_threads(1)
        model = LlamaForCausalLM.from_pretrained(zoo / BASE)
        optimizer = torch.optim.AdamW(model.parameters(), plan.expert_learning_rate, (0.9, 0.98), weight_decay=0.01)
        shares = member.shares()
        mixture = Mixture({pool: read_examples(pool, zoo, tokenizer) for pool in shares}, shares, f"{plan.seed}/{name}")
        steps = round(plan.expert_steps * member.effort)
        fit(model, mixture, [optimizer], steps, plan.batch_size, lambda step: None)
        write_model(model, tokenizer, folder / name, member, name)
        tasks = {task: read_split(zoo / "data" / task, "test") for task in FAMILY.values()}
        print(f"{name}: {score(model, tokenizer, tasks)}", flush=True)


def make_tasks(folder: Path) -> None:
    """Write the two tasks that are not shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, like in LIKE.items():
        text = find("fitness", like).path.read_text(encoding="utf-8").replace(like, task)
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
        (folder / f"{task}.yaml").write_text("".join(lines), encoding="utf-8")


def experiment(out: Path, kind: str, seed: int, trials: int) -> ExperimentConfig:
    """Return the experiment of one run."""
    models = {name: (out / "experts" / name).resolve() if name in EXPERTS else f"zoo/{name}" for name in FAMILY}
    tasks = [(out / "tasks" / f"{task}.yaml").resolve() if task in LIKE else task for task in FAMILY.values()]
    nested = kind.startswith("nested")
    settings = [
        f"parents={{{', '.join(f'{name}: {model}' for name, model in models.items())}}}",
        f"fitness.objectives=[{', '.join(f'{{task: {task}}}' for task in tasks)}]",
        "fitness.search_items=100",
        "fitness.confirmation_items=200",
        f"fitness.seed={seed}",
        f"searcher={KINDS[kind]}",
        f"searcher.seed={seed}",
        f"budget.trials={(len(FAMILY) - 1) * round(len(FAMILY) * trials / TREE) if nested else trials}",
    ]
    if kind == "nested, told":
        settings += [f"searcher.prefer={{{preferred(seed)}: {COUNTS}}}"]
    return read_experiment("searchers/map", settings)


def preferred(seed: int) -> str:
    """Return the objective that counts more."""
    return list(FAMILY.values())[seed % len(FAMILY)]


def result(out: Path, kind: str, seed: int, trials: int) -> Found:
    """Return what a run found, from its file if it is there.

    Args:
        out: the benchmark's folder.
        kind: one of `KINDS`.
        seed: of the run.
        trials: of a plain search.
    """
    file, references = out / f"{kind.replace(', ', '-')}-{seed}-{trials}.json", out / f"references-{seed}.json"
    if file.exists():
        return Found(**json.loads(file.read_text(encoding="utf-8"))["found"])
    whole = experiment(out, kind, seed, trials)
    if not references.exists():
        write_json(references, scores_of_references(prepare(whole)))
    known: dict[str, dict[str, dict[str, float]]] = json.loads(references.read_text(encoding="utf-8"))
    parts = (
        up_the_tree(whole, file.with_suffix(""), known["search"]) if kind.startswith("nested") else [search_in(whole)]
    )
    root = parts[-1]
    rules = ("best-mean", "prefer:", f"prefer:{preferred(seed)}={COUNTS}")
    chosen = [root.recipe(picks.pick(rule, root.confirmed, root.prepared.objectives)) for rule in rules]
    models, items = Models(root.prepared), fresh_items(root.prepared.fitness)
    mean, equal, other = (models.scores(recipe, items) for recipe in chosen)
    corner = fronts.reference_point(list(known["confirmation"].values()), root.prepared.objectives)
    found = Found(
        fronts.hypervolume(list(root.confirmed.values()), root.prepared.objectives, corner),
        statistics.mean(mean.values()),
        min(mean.values()),
        shortfall(equal, {}, list(known["fresh"].values())),
        shortfall(other, {preferred(seed): COUNTS}, list(known["fresh"].values())),
        sum(part.asked()["search"] for part in parts),
        sum(part.asked()["confirmation"] for part in parts),
        len(root.confirmed),
    )
    write_json(
        file, {"found": found._asdict(), "picks": [mean, equal, other], "parts": [written(part) for part in parts]}
    )
    return found


def search_in(whole: ExperimentConfig) -> Searched:
    """Run one search and confirm its front, as a run does."""
    prepared, trials = prepare(whole), list[Trial]()
    models, budget = Models(prepared), whole.budget.trials
    search(
        prepared.searcher(budget),
        prepared.space,
        InTurn(models, prepared.fitness.items("search")),
        recorded=[],
        record=trials.append,
        told=lambda trial, open_: None,
        budget=budget,
        in_flight=IN_FLIGHT,
    )
    front = fronts.front([trial.objectives or {} for trial in trials], prepared.objectives)
    items = prepared.fitness.items("confirmation")
    confirmed = {n: models.scores(prepared.space.express(trials[n].genome), items) for n in front}
    return Searched(prepared, trials, confirmed, picks.pick(whole.pick, confirmed, prepared.objectives))


def up_the_tree(whole: ExperimentConfig, folder: Path, known: Mapping[str, Mapping[str, float]]) -> list[Searched]:
    """Run the searches of all nodes; the last is that of the root.

    Args:
        whole: the experiment.
        folder: for the merges' picks.
        known: scores of the parents on the search items.
    """
    objectives = prepare(whole).objectives
    nodes = nested.plan({name: known[name] for name in whole.parents}, objectives, whole.budget.trials)
    found = []
    for node in nodes:
        found.append(search_in(nested.stage(whole, nodes, node, folder, [objective.name for objective in objectives])))
        model = nested.model_of(folder, node.name)
        if node is not nodes[-1] and not model.exists():
            merge_to_folder(found[-1].recipe(found[-1].pick), model)
    return found


def scores_of_references(prepared: Prepared) -> dict[str, dict[str, dict[str, float]]]:
    """Return the objectives of base, experts and uniform merge, by items and name."""
    fitness, models = prepared.fitness, Models(prepared)
    items = {split: fitness.items(split) for split in SPLITS} | {"fresh": fresh_items(fitness)}
    recipes = {name: recipe for name, (_, recipe) in prepared.reference_recipes.items()}
    return {
        split: {name: models.scores(recipe, chosen) for name, recipe in recipes.items()}
        for split, chosen in items.items()
    }


def fresh_items(fitness: Fitness) -> dict[str, Sequence[str]]:
    """Return the items that neither search nor confirmation asks."""
    chosen = fitness.items("confirmation")
    return {task: sorted(fitness.known_items(task, "confirmation") - set(ids)) for task, ids in chosen.items()}


def written(part: Searched) -> dict[str, Any]:
    """Return a search as plain data, to be looked into."""
    return {
        "parents": list(part.prepared.experiment.parents),
        "trials": [[trial.genome, trial.objectives] for trial in part.trials],
        "confirmed": part.confirmed,
        "pick": part.pick,
    }


def shortfall(one: Mapping[str, float], weights: Mapping[str, float], known: Sequence[Mapping[str, float]]) -> float:
    """Return the augmented weighted Chebyshev shortfall from the best expert of each objective; less is better."""
    lacking = []
    for name, value in one.items():
        column = [row[name] for row in known]
        lacking.append(weights.get(name, 1.0) * (max(column) - value) / (max(column) - min(column)))
    return max(lacking) + AUGMENTED * sum(lacking)


def less(found: Mapping[str, Sequence[Found]]) -> dict[str, list[Found]]:
    """Return each run's results less those of plain MAP with the same seed."""
    return {
        kind: [Found._make(a - b for a, b in zip(*pair, strict=True)) for pair in zip(runs, found["map"], strict=True)]
        for kind, runs in found.items()
        if kind != "map" and "map" in found
    }


def told(values: Sequence[float]) -> str:
    """Return mean and 95% interval of the mean (Student's t)."""
    if isinstance(values[0], int):
        return f"{statistics.mean(values):.0f}"
    count = len(values)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5 if count > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


if __name__ == "__main__":
    main()
