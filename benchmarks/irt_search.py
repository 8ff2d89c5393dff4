"""Searches that see a twentieth of the items against the same searches on all, by what they are confirmed to find.

    python benchmarks/irt_search.py [--seeds 10] [--out runs/irt] [--searchers nsga2 cma-es]
        [--variants exact gmp-irt …]

Runs the shipped experiment `few-items` exactly and with each way of estimating, over several seeds. Prints for each the
hypervolume of the confirmed front (beyond the worst scores of the reference models, on items that no search saw) as a
share of the exact run's with the same seed, how many times fewer items were asked before confirmation, calibration
included, and how many trials were confirmed (the best of more is better by chance). A run that is there is gone on
with.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

from evomerge.cli.display import make_display
from evomerge.experiments import fronts
from evomerge.experiments.confirmation import read_confirmation
from evomerge.experiments.journal import Journal
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import read_experiment

SEARCHERS = {"nsga2": "{kind: nsga2, population: 24}", "cma-es": "{kind: cma-es}"}
CALIBRATION = "items: 10, calibration: {models: 8}"
ALONE = f"smooth: false, {CALIBRATION}"  # each trial's estimate by itself
VARIANTS = {
    "exact": "null",
    "raw, alone": f"{{kind: raw, choice: random, {ALONE}}}",
    "gmp-irt, alone": f"{{kind: gmp-irt, choice: score-optimal, {ALONE}}}",
    "gmp-irt": f"{{kind: gmp-irt, {CALIBRATION}}}",
    "gmp-irt, race": f"{{kind: gmp-irt, adaptive: {{batch: 3}}, {CALIBRATION}}}",
    "gmp-irt, soft": f"{{kind: gmp-irt, soft: {{items: 0}}, {CALIBRATION}}}",
    "gmp-irt, all soft": f"{{kind: gmp-irt, soft: {{}}, {CALIBRATION}}}",
}


class Found(NamedTuple):
    """Hypervolume of the confirmed front, items asked of models before confirmation, and trials confirmed."""

    volume: float
    asked: int
    confirmed: int


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--trials", type=int, default=300)
    arguments.add_argument("--out", type=Path, default=Path("runs/irt"))
    arguments.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    arguments.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = arguments.parse_args()
    for searcher in options.searchers:
        found: dict[str, list[Found]] = {}
        for seed in range(options.seeds):
            for variant in options.variants:
                out = options.out / f"{searcher}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
                run(searcher, variant, seed, options.trials, out)
                one = result(out)
                found.setdefault(variant, []).append(one)
                print(f"{searcher} seed {seed} {variant}: {one}", flush=True)
        exact = found.get("exact") or next(iter(found.values()))
        print(f"{searcher}, {options.seeds} seeds  hypervolume      share of exact     items asked  fewer  confirmed")
        for variant, runs in found.items():
            shares = [100 * ours.volume / theirs.volume for ours, theirs in zip(runs, exact, strict=True)]
            items = statistics.mean(one.asked for one in runs)
            print(
                f"{variant:<18} {told([one.volume for one in runs], 4)}  {told(shares, 1)}%   {items:9.0f}  "
                f"{statistics.mean(one.asked for one in exact) / items:5.1f}×  "
                f"{statistics.mean(one.confirmed for one in runs):5.1f}"
            )


def run(searcher: str, variant: str, seed: int, trials: int, out: Path) -> None:
    """Run one search to its end, or go on with it."""
    if read_confirmation(RunFolder(out).confirmation) is not None:
        return
    settings = (
        f"searcher={SEARCHERS[searcher]}",
        f"searcher.seed={seed}",
        f"budget.trials={trials}",
        f"fitness.estimate={VARIANTS[variant]}",
    )
    with make_display() as display:
        if (out / "experiment.yaml").exists():
            resume(out, display)
        else:
            start(read_experiment("few-items", settings), out, display)


def result(out: Path) -> Found:
    """Return what a finished run found and what it asked for."""
    folder = RunFolder(out)
    journal, confirmation = Journal.read(folder.journal), read_confirmation(folder.confirmation)
    assert confirmation is not None, f"{out} is not finished"
    known = [row.scores for row in confirmation.rows if row.trial is None]
    corner = fronts.reference_point(known, journal.objectives)
    volume = fronts.hypervolume([row.scores for row in confirmation.trials.values()], journal.objectives, corner)
    facts = journal.facts()
    on_all = len(facts.get("calibration", facts["references"])) * sum(facts["item_counts"]["search"].values())
    asked = on_all + sum(sum(trial.items.values()) for trial in journal.trials() if not trial.cached)
    return Found(volume, asked, len(confirmation.trials))


def told(values: list[float], digits: int) -> str:
    """Return mean and 95% interval of the mean (normal)."""
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
