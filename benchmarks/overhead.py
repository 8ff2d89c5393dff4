"""How much of a search is not the models' forward passes, and how it compares with mergekit + lm_eval.

    python benchmarks/overhead.py [--trials 60] [--peer PYTHON]

Prints, from one run: the share of the workers' time outside the model's forward passes (merging, lm-eval's own work,
journal, Ray, waiting), and, when a Python interpreter with mergekit and lm_eval is given, our trials per minute as a
multiple of a loop that merges each of the same recipes to disk with mergekit and scores it with
``lm_eval.simple_evaluate`` on the same items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from evomerge.cli.display import make_display
from evomerge.experiments.front_file import read_front, recipe_of
from evomerge.experiments.journal import Journal
from evomerge.experiments.preflight import prepare
from evomerge.experiments.run import start
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.merging import Parents
from evomerge.recipes import write_recipe

PEER = Path(__file__).with_name("peer_loop.py")
PEER_TRIALS = 4


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--experiment", default="quickstart")
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--peer", help="a Python interpreter that has mergekit and lm_eval")
    options = arguments.parse_args()
    experiment = read_experiment(options.experiment, [f"budget.trials={options.trials}"])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with make_display() as display:
            start(experiment, run, display)
        per_minute = report_overhead(run)
        if options.peer:
            report_peer(options.peer, experiment, run, per_minute)


def report_overhead(run: Path) -> float:
    """Print where the workers' time went; return trials per minute of the search phase."""
    journal = Journal.read(run / "journal.log")
    trials = [t for t in journal.trials() if not t.cached and not t.failed]
    workers = journal.facts()["placement"]["workers"]
    begun, ended = min(t.started for t in trials if t.started), max(t.finished for t in trials if t.finished)
    wall = (ended - begun).total_seconds()
    capacity = workers * wall
    forward, merge = sum(t.forward_seconds for t in trials), sum(t.merge_seconds for t in trials)
    inside = sum(t.seconds for t in trials)
    print(f"{len(trials)} trials in {wall:.1f} s on {workers} workers: {60 * len(trials) / wall:.0f} trials a minute")
    for label, seconds in (
        ("forward passes", forward),
        ("merging", merge),
        ("lm-eval, generation and tokenization", inside - forward - merge),
        ("Ray, journal, searcher, waiting", capacity - inside),
    ):
        print(f"  {label:<38} {seconds / capacity:6.1%}  {1000 * seconds / len(trials):7.1f} ms a trial")
    print(
        f"share outside the forward passes: {1 - forward / capacity:.1%}; "
        f"of a trial in its worker: {1 - forward / inside:.1%}"
    )
    return 60 * len(trials) / wall


def report_peer(peer: str, experiment: ExperimentConfig, run: Path, per_minute: float) -> None:
    """Print our trials per minute as a multiple of the peer loop's, on recipes that our search proposed."""
    prepared = prepare(experiment)
    recipes = [recipe_of(entry) for entry in read_front(run / "front.jsonl")][:PEER_TRIALS]
    folders = {r: str(c.folder) for r, c in Parents.open(list(experiment.references.values())).checkpoints.items()}
    texts = [write_recipe(recipe) for recipe in recipes]
    for reference, folder in folders.items():
        texts = [text.replace(f": {reference}\n", f": {folder}\n") for text in texts]
    items = {
        task: [int(name.split("-")[0]) for name in names] for task, names in prepared.fitness.items("search").items()
    }
    job = {
        "recipes": texts,
        "items": items,
        "tasks": str(zoo_tasks()),
        "batch_size": experiment.fitness.batch_size,
    }
    started = time.perf_counter()
    done = subprocess.run([peer, str(PEER)], input=json.dumps(job), text=True, stdout=subprocess.PIPE, check=True)
    seconds = float(done.stdout.strip().splitlines()[-1])
    print(
        f"mergekit to disk + simple_evaluate: {60 / seconds:.1f} trials a minute "
        f"({time.perf_counter() - started:.0f} s in all)"
    )
    print(f"evomerge: {per_minute * seconds / 60:.1f} times as many")


def zoo_tasks() -> Path:
    """Return the folder of the zoo's task files with absolute paths, as plain lm_eval reads them."""
    from evomerge.checkpoints import zoo_folder

    return zoo_folder() / "tasks"


if __name__ == "__main__":
    main()
