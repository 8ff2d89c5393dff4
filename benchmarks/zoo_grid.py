"""Every merge of a dense grid, truly evaluated: what searches on few evaluations are compared with.

    python benchmarks/zoo_grid.py PARENTS STEPS [--out runs/grid]

Evaluates the zoo's first PARENTS (2 or 3) experts, each with STEPS weights from 0 to 1, on the items and objectives of
`experiments/searchers`, and writes `benchmarks/tables/zoo-PARENTS.csv`: a weight for each parent, then the objectives.
A run that is there is gone on with. 41 steps of 2 parents take 4 minutes on two cores, 16 steps of 3 take 12.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from evomerge.cli.display import make_display
from evomerge.experiments.journal import Journal
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.search_spaces.genes import FloatGene, Genome, Value
from evomerge.searchers import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.results import InFlight

TABLES = Path(__file__).parent / "tables"
FAMILY = {"math-en": "arithmetic_en", "lang-ja": "reading_ja", "counting": "counting_en"}


class GridConfig(SearcherConfig):
    """A full grid over the bounds, one point after the other."""

    kind: Literal["grid"] = Field("grid", description="the searcher's name")
    steps: int = Field(ge=2, description="values of each gene")


class GridSearcher:
    """Asks the points of the grid in their order."""

    def __init__(self, config: GridConfig, setting: Setting) -> None:
        axes = [axis(gene, config.steps) for gene in setting.genes if isinstance(gene, FloatGene)]
        self._names = [gene.name for gene in setting.genes]
        self._points = itertools.product(*axes)
        self._in_flight: InFlight[None] = InFlight()

    def ask(self) -> dict[str, Value]:
        """Return the next point."""
        return self._in_flight.asked(dict(zip(self._names, next(self._points), strict=True)), None)

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Forget the result."""
        self._in_flight.told(genome)


def axis(gene: FloatGene, steps: int) -> list[float]:
    return [gene.low + (gene.high - gene.low) * k / (steps - 1) for k in range(steps)]


def experiment(parents: int, *settings: str) -> ExperimentConfig:
    """Return the experiment of `experiments/searchers` with so many parents and an objective for each."""
    some = dict(list(FAMILY.items())[:parents])
    models = ", ".join(f"{name}: zoo/{name}" for name in some)
    tasks = ", ".join(f"{{task: {task}}}" for task in some.values())
    return read_experiment("searchers/random", (f"parents={{{models}}}", f"fitness.objectives=[{tasks}]", *settings))


def main() -> None:
    """Evaluate the grid and write its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parents", type=int, choices=(2, 3))
    arguments.add_argument("steps", type=int)
    arguments.add_argument("--out", type=Path, default=Path("runs/grid"))
    options = arguments.parse_args()
    SEARCHERS.add(
        "grid",
        SearcherEntry(GridConfig, GridSearcher, "a full grid", paper="", multi_objective=True, needs_generations=False),
        origin=__name__,
    )
    out = options.out / f"{options.parents}-parents-{options.steps}"
    trials = options.steps**options.parents
    with make_display() as display:
        if RunFolder(out).experiment.exists():
            resume(out, display)
        else:
            searcher = f"searcher={{kind: grid, steps: {options.steps}}}"
            start(experiment(options.parents, searcher, f"budget.trials={trials}"), out, display)
    journal = Journal.read(RunFolder(out).journal)
    TABLES.mkdir(exist_ok=True)
    with (TABLES / f"zoo-{options.parents}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        names = [objective.name for objective in journal.objectives]
        found = journal.trials()
        table.writerow([*(name.split(".")[0] for name in found[0].genome), *names])
        for trial in found:
            values = [*trial.genome.values(), *(trial.objectives or {}).values()]
            table.writerow([f"{value:.6g}" for value in values])


if __name__ == "__main__":
    main()
