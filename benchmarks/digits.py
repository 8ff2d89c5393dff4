"""Networks for handwritten digits: our throughput and progress beside the authors' code (Abrantes et al. 2025).

    evomerge zoo build digits
    python benchmarks/digits.py speed                       ours: a worker's calls on each core, and a whole run
    python benchmarks/digits.py curves --out curves.json    accuracy against evaluations, several seeds; what the file
                                                            has already is kept
    python benchmarks/digits_plot.py curves.json curves.svg

CMA-ES searches all 19,210 numbers of one network, with the variances alone adapted (``diagonal``), as the whole matrix
would take 3 GB and seconds a generation; the authors' program is given the same option.

With ``--authors FOLDER --python PYTHON`` also theirs, in the same run: FOLDER is a checkout of
github.com/SakanaAI/natural_niches, PYTHON an interpreter with jax, optax, cma, scikit-learn and tqdm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

BATCH, WARM_BATCHES, EVERY = 64, 3, 100
VARIANTS: dict[str, dict[str, object]] = {
    "m2n2": {},
    "no-split": {"split": False},
    "no-attraction": {"attraction": False},
    "no-competition": {"competition": False},
    "ga": {"competition": False, "attraction": False},
    "map-elites": {},
    "cma-es": {},
}
POPULATION = 20  # of CMA-ES, as in the authors' program


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["speed", "curves"])
    parser.add_argument("--authors", type=Path, help="their code")
    parser.add_argument("--python", help="an interpreter that has what it needs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement of speed, by turns")
    parser.add_argument("--passes", type=int, default=10000, help="forward passes of each curve")
    parser.add_argument("--runs", type=int, default=10, help="seeds of each curve")
    parser.add_argument("--their-runs", type=int, help="seeds of each of theirs, if fewer")
    parser.add_argument("--halves", action="store_true", help="start curves from the half-trained networks")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path("digits-curves.json"))
    arguments = parser.parse_args()
    (speed if arguments.command == "speed" else curves)(arguments)


def theirs(arguments: argparse.Namespace, **job: object) -> dict[str, object]:
    """Return what the authors' code answers to a job."""
    text = json.dumps({"code": str(arguments.authors.absolute()), **job})
    peer = [arguments.python, str(Path(__file__).with_name("peer_digits.py"))]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    done = subprocess.run(peer, input=text, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def speed(arguments: argparse.Namespace) -> None:
    """Print evaluations a second: merged (or crossed and mutated) and scored on the 1437 images of the search."""
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, experiment in (("weighted sum", "digits-halves"), ("crossed and mutated (M2N2)", "digits-m2n2")):
            found.setdefault(f"ours: a worker's calls, {name}", []).append(of_workers(arguments, experiment))
        if arguments.authors:
            alone = theirs(arguments, passes=0, repeats=3000)
            found.setdefault("theirs: crossed, mutated and scored, compiled as one", []).append(1 / alone["seconds"])
            loop = theirs(arguments, variant="m2n2", pretrained=False, passes=2000, runs=1, every=EVERY, networks=[])
            found.setdefault("theirs: the whole loop (M2N2)", []).append(1 / loop["seconds"])
    for name, experiment in (("weighted sum, CMA-ES", "digits-halves"), ("M2N2", "digits-m2n2")):
        found[f"ours: a whole run, {name}"] = [of_a_run(experiment)]
    table = Table("", "evaluations a second", "range", title=f"{arguments.processes} processes")
    for name, rates in found.items():
        spread = f"{min(rates):.0f} to {max(rates):.0f}" if len(rates) > 1 else ""
        table.add_row(name, f"{statistics.median(rates):.0f}", spread)
    Console().print(table)


def of_workers(arguments: argparse.Namespace, experiment: str) -> float:
    """Return the evaluations a second of workers in processes of their own, called with batches without a pause."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.processes) as pool:
        barrier = context.Manager().Barrier(arguments.processes)
        jobs = [(experiment, seed, arguments.seconds, barrier) for seed in range(arguments.processes)]
        return sum(pool.starmap(of_a_worker, jobs, chunksize=1))


def of_a_worker(experiment: str, seed: int, seconds: float, barrier: object) -> float:
    """Return one worker's evaluations a second."""
    import random

    from evomerge.experiments.preflight import prepare
    from evomerge.experiments.schema import read_experiment
    from evomerge.recipes import pack_recipe, write_recipe
    from evomerge.search_spaces import FloatGene, Gene
    from evomerge.workers import Worker, WorkerSpec

    prepared = prepare(read_experiment(experiment))
    read, generator = prepared.experiment, random.Random(seed)
    fitness = read.fitness.model_dump(mode="json")
    like = write_recipe(prepared.like)
    worker = Worker(WorkerSpec(read.references, fitness, prepared.dtype, prepared.donor, "cpu", 1, like=like))
    items = prepared.fitness.items("search")

    def value(gene: Gene) -> object:
        if gene.name in ("first", "second"):
            return -1 if gene.name == "first" else -2
        if gene.name == "mutation.scale":
            return 0.01
        drawn = generator.uniform(gene.low, gene.high)  # type: ignore[union-attr]
        return drawn if isinstance(gene, FloatGene) else int(drawn)

    def batches() -> Iterator[list[tuple[str, dict[str, str]]]]:
        while True:
            genomes = [{gene.name: value(gene) for gene in prepared.space.genes} for _ in range(BATCH)]
            yield [(pack_recipe(prepared.space.express(genome)), {}) for genome in genomes]  # type: ignore[arg-type]

    asked = [next(made) for made in [batches()] for _ in range(8)]
    for batch in asked[:WARM_BATCHES]:
        worker.evaluate_batch(batch, items, {})
    barrier.wait()  # type: ignore[attr-defined]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        outcomes = worker.evaluate_batch(asked[done // BATCH % len(asked)], items, {})
        assert all(outcome.responses is not None for outcome in outcomes), outcomes[0].error
        done += len(outcomes)
    return done / (time.perf_counter() - began)


def of_a_run(experiment: str) -> float:
    """Return the trials a second of a whole run, from the first trial to the last, as the journal has it."""
    import ray

    from evomerge.experiments.journal import Journal
    from evomerge.experiments.run import start
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.schema import read_experiment
    from evomerge.testing.tiny_experiment import SilentDisplay

    with tempfile.TemporaryDirectory() as folder:
        read = read_experiment(experiment, ["budget.trials=3000", "workers.in_flight=128"])
        start(read, Path(folder, "run"), SilentDisplay())
        trials = Journal.read(RunFolder(Path(folder, "run")).journal).trials()
        ray.shutdown()
    took = trials[-1].finished - trials[0].finished
    return (len(trials) - 1) / took.total_seconds()


def curves(arguments: argparse.Namespace) -> None:
    """Write and print the accuracy on the confirmation images of the best living network, every hundred evaluations."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))["curves"]
    context = multiprocessing.get_context("spawn")
    for variant in arguments.variants:
        known = found.setdefault(variant, {})
        if "ours" not in known:
            with context.Pool(arguments.processes) as pool:
                seeds = range(arguments.runs)
                if variant == "cma-es":
                    known["ours"] = pool.starmap(curve_of_cma_es, [(seed, arguments.passes) for seed in seeds], 1)
                else:
                    jobs = [(variant, seed, arguments.passes, arguments.halves) for seed in seeds]
                    known["ours"] = pool.starmap(curve, jobs, 1)
        if arguments.authors and "theirs" not in known:
            answer = theirs(
                arguments,
                variant=variant,
                pretrained=arguments.halves,
                passes=arguments.passes,
                runs=arguments.their_runs or arguments.runs,
                every=EVERY,
                networks=_halves() if arguments.halves else [],
            )
            known["theirs"] = answer["curves"]  # type: ignore[assignment]
        arguments.out.write_text(json.dumps({"every": EVERY, "curves": found}), encoding="utf-8")
    _print(found, arguments)


def _halves() -> list[list[float]]:
    """Return our half-trained networks, for the authors' code to start from the same."""
    from safetensors.torch import load_file

    from evomerge.checkpoints.resolve import digits_folder
    from evomerge.zoo.digits import HALVES, TENSOR

    return [load_file(digits_folder() / name / "model.safetensors")[TENSOR].tolist() for name in HALVES]


def _print(found: dict[str, dict[str, list[list[float]]]], arguments: argparse.Namespace) -> None:
    import numpy as np
    from scipy import stats

    rows = arguments.passes // EVERY
    shown = [n - 1 for n in sorted({max(1, rows // 10), max(1, rows // 4), max(1, rows // 2), rows})]
    title = "test accuracy: mean and 95% interval (t)"
    table = Table("variant", "whose", "seeds", *(f"{(n + 1) * EVERY} evaluations" for n in shown), title=title)
    for variant, sides in found.items():
        for side, values in sides.items():
            array = np.array(values)[:, shown]
            half = stats.t.ppf(0.975, max(len(array) - 1, 1)) * array.std(axis=0, ddof=1) / len(array) ** 0.5
            cells = [f"{m:.3f} ± {h:.3f}" for m, h in zip(array.mean(axis=0), half, strict=True)]
            table.add_row(variant, side, str(len(values)), *cells)
    Console().print(table)


def curve(variant: str, seed: int, passes: int, halves: bool) -> list[float]:
    """Return one seed's curve: our searcher, search space and merges, one trial after the other as in the paper."""
    import numpy as np
    import torch

    from evomerge.experiments.preflight import prepare
    from evomerge.experiments.schema import read_experiment
    from evomerge.merging import InPlaceMerger
    from evomerge.merging.members import Members
    from evomerge.recipes import pack_recipe, sources_of
    from evomerge.zoo import digits

    torch.set_num_threads(1)
    elites = variant == "map-elites"
    parents = ["low", "high"] if halves else [f"random-{(2 * seed + n) % len(digits.RANDOM):02d}" for n in range(2)]
    overrides = [f"parents={{a: zoo/digits/{parents[0]}, b: zoo/digits/{parents[1]}}}", f"searcher.seed={seed}"]
    overrides += [f"searcher.{name}={json.dumps(value)}" for name, value in VARIANTS[variant].items()]
    overrides += ["search_space={kind: lineage, crossover: m2n2}"] if halves else []
    prepared = prepare(read_experiment("digits-map-elites" if elites else "digits-m2n2", overrides))
    space, searcher, data = prepared.space, prepared.searcher(passes), digits.images()
    merger = InPlaceMerger(prepared.parents, base=prepared.donor)
    searched = slice(data.searched)
    groups = {"odd": data.digits % 2 == 1, "even": data.digits % 2 == 0, "correct": data.digits >= 0}
    names = [objective.name for objective in prepared.objectives]
    tests: list[float] = []  # of each trial
    trained: list[float] = []
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        members = Members(prepared.parents, prepared.donor, 2**32, Path(folder))
        for number in range(passes):
            genome = searcher.ask()
            assert genome is not None
            recipe = space.express(genome)
            members.learn({each: pack_recipe(space.recipe_of(each)) for each in sources_of(recipe)})  # type: ignore[attr-defined]
            merger.merge(recipe, members.of(recipe))
            right = digits.logits(merger.model[digits.TENSOR], data.pixels).argmax(1) == data.digits
            items = {name: right[searched][groups[name][searched]].numpy().astype(float) for name in names}
            tests.append(float(right[data.searched :].float().mean()))
            trained.append(float(right[searched].float().mean()))
            space.told(genome, recipe.hash, failed=False)  # type: ignore[attr-defined]
            told = [genome, {name: float(scores.mean()) for name, scores in items.items()}, None]
            searcher.tell(*told, *([] if elites else [items]))  # type: ignore[arg-type]
            if (number + 1) % EVERY == 0:
                living = _living(searcher, len(parents))
                found.append(tests[max(living, key=lambda trial: trained[trial])])
    assert np.isfinite(found).all()
    return found


def curve_of_cma_es(seed: int, passes: int) -> list[float]:
    """Return one seed's curve of our CMA-ES over the numbers of a network."""
    import numpy as np
    import torch

    from evomerge.search_spaces import FloatGene
    from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
    from evomerge.zoo import digits

    torch.set_num_threads(1)
    data = digits.images()
    start = digits.random_network(1000 + seed).tolist()
    genes = [FloatGene(str(number), -0.5, 0.5, value) for number, value in enumerate(start)]
    options = {"kind": "cma-es", "diagonal": True, "population": POPULATION, "sigma0": digits.SPREAD, "seed": seed}
    searcher = build_searcher(read_searcher(options), genes, [ObjectiveSpec("correct", "maximize")], passes)
    best, best_test, found = -1.0, 0.0, list[float]()
    for number in range(passes):
        genome = searcher.ask()
        assert genome is not None
        network = torch.tensor(np.fromiter(genome.values(), np.float32, len(genome)))
        right = (digits.logits(network, data.pixels).argmax(1) == data.digits).float()
        trained = float(right[: data.searched].mean())
        if trained > best:
            best, best_test = trained, float(right[data.searched :].mean())
        searcher.tell(genome, {"correct": trained})
        if (number + 1) % EVERY == 0:
            found.append(best_test)
    return found


def _living(searcher: object, parents: int) -> list[int]:
    """Return the trials that live in the searcher's archive; the first trials are the parents, in order."""
    if hasattr(searcher, "members"):
        names = searcher.members
    else:
        names = [elite.name for elite in searcher.archives["quality"].elites.values()]  # type: ignore[attr-defined]
    return [name if name >= 0 else -name - 1 for name in names]


if __name__ == "__main__":
    main()
