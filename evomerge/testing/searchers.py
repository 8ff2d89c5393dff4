"""What any searcher must pass. Subclass ``SearcherTestCase`` and give its ``config`` fixture your configs.

A searcher of lineage passes ``LineageSearcherTestCase``, with its own ``genes`` where `LINEAGE` does not suit it.

    class TestMine(SearcherTestCase):
        @pytest.fixture(params=[{}, {"population": 8}], ids=str)
        def config(self, request):
            return MyConfig(**request.param)

The module that registers the kind must be importable by name, as other processes import it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import evomerge
from evomerge.errors import RunError
from evomerge.kinship import Products
from evomerge.search_spaces.genes import ChoiceGene, FloatGene, Gene, Genome, IntGene, Value
from evomerge.search_spaces.lineage import LAST_TRIAL, SOURCES
from evomerge.searchers import (
    SEARCHERS,
    ItemSearcher,
    ObjectiveSpec,
    Searcher,
    SearcherConfig,
    build_searcher,
    read_searcher,
)

OBJECTIVES = (ObjectiveSpec("near", "maximize"), ObjectiveSpec("cost", "minimize", weight=0.5))
MIXED: tuple[Gene, ...] = (
    FloatGene("math.weight", 0.0, 1.0, 0.5),
    FloatGene("japanese.weight", -2.0, 7.5, 0.1),
    FloatGene("fixed", 0.25, 0.25, 0.25),
    FloatGene("tiny", 1e-7, 3e-7, 2e-7),
    IntGene("layers", -3, 5, 0),
    IntGene("switch", 0, 1, 0),
    ChoiceGene("method", ("linear", "ties", "slerp"), "ties"),
)
FLOATS: tuple[Gene, ...] = tuple(FloatGene(f"weight.layer{i}", -0.5, 1.5, 0.5) for i in range(5))
SINGLE: tuple[Gene, ...] = (FloatGene("weight", -1.0, 3.0, 0.0),)
SPACES = {"mixed": MIXED, "floats": FLOATS, "single": SINGLE}
PARENTS = ("math", "japanese", "code")
LINEAGE: tuple[Gene, ...] = (  # the sources, and the genes of every crossover and mutation that ships
    *(IntGene(name, -len(PARENTS), LAST_TRIAL, -1 - place) for place, name in enumerate(SOURCES)),
    FloatGene("weight", 0.0, 1.0, 0.5),
    FloatGene("split", 0.0, 1.0, 1.0),
    FloatGene("first.weight", 0.0, 2.0, 1.0),
    FloatGene("second.weight", 0.0, 2.0, 1.0),
    FloatGene("mutation.scale", 0.0, 1.0, 0.0),
    IntGene("mutation.seed", 0, 2**31 - 1, 0),
)
ITEMS = 12


@dataclass(frozen=True)
class Told:
    """One finished trial: its genome, and its objectives (``None``: it failed)."""

    genome: dict[str, Value]
    objectives: dict[str, float] | None


Evaluate = Callable[[Genome], dict[str, float] | None]


def score(genome: Genome) -> dict[str, float]:
    """Return two smooth objectives of any genome, pulling in different directions."""
    numbers = [len(value) if isinstance(value, str) else float(value) for value in genome.values()]
    return {"near": -sum((x - 0.7) ** 2 for x in numbers), "cost": sum((x + 0.2) ** 2 for x in numbers)}


def score_some(genome: Genome) -> dict[str, float] | None:
    """Return ``score``, but fail about one genome in five, always the same ones."""
    digits = json.dumps(dict(genome), sort_keys=True)
    return None if sum(digits.encode()) % 5 == 0 else score(genome)


def drive(searcher: Searcher, evaluate: Evaluate, trials: int, in_flight: int = 1) -> list[Told]:
    """Run ``trials`` trials as an experiment does: at most ``in_flight`` open, results told in ask order."""
    told: list[Told] = []
    asked: deque[dict[str, Value]] = deque()
    while len(told) < trials:
        while len(asked) < in_flight and len(told) + len(asked) < trials:
            genome = searcher.ask()
            if genome is None:
                break
            asked.append(genome)
        assert asked, "ask() returned None although no trial is in flight"
        trial = Told(asked[0], evaluate(asked.popleft()))
        searcher.tell(trial.genome, trial.objectives)
        told.append(trial)
    return told


def products(vectors: np.ndarray) -> Products:
    """Return what the kinship of task vectors follows from, (models, entries)."""
    apart = vectors[:, None] - vectors
    return Products(vectors.shape[1], vectors.sum(1), vectors @ vectors.T, (apart**2).sum(-1))


def score_items(genome: Genome, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return scores of some items in [0, 1] for each of these objectives of a genome."""
    digits = json.dumps(dict(genome), sort_keys=True).encode()
    return {name: np.random.default_rng([*digits, place]).random(ITEMS) for place, name in enumerate(names)}


class ToldItems:
    """An `ItemSearcher` that is driven like any: the scores of the items are told along."""

    def __init__(self, searcher: ItemSearcher) -> None:
        self.searcher = searcher

    def ask(self) -> dict[str, Value] | None:
        """Return the searcher's genome."""
        return self.searcher.ask()

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Tell the searcher the items' scores too; none of a trial that failed or whose objectives are not finite."""
        scores = None
        if objectives is not None and all(map(math.isfinite, objectives.values())):
            scores = score_items(genome, list(objectives))
        self.searcher.tell(genome, objectives, standard_errors, scores)


class Counted:
    """A searcher that notes how many trials it was told when it proposed each: ``told``."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.told: list[int] = []
        self._count = 0

    def ask(self) -> dict[str, Value] | None:
        """Return the searcher's genome."""
        genome = self.searcher.ask()
        if genome is not None:
            self.told.append(self._count)
        return genome

    def tell(
        self,
        genome: Genome,
        objectives: Mapping[str, float] | None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Tell the searcher."""
        self.searcher.tell(genome, objectives, standard_errors)
        self._count += 1


def built(
    config: SearcherConfig,
    genes: Sequence[Gene],
    objectives: Sequence[ObjectiveSpec],
    budget: int,
    starting_points: Sequence[Genome] = (),
) -> Searcher:
    """Return a new searcher, told items' scores if it learns from them, and how its parents are kin."""
    kinship = products(np.array([[2.0, 0.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]))
    searcher = build_searcher(
        config, genes, objectives, budget, starting_points, PARENTS, between=lambda t: {"weight": t}, kinship=kinship
    )
    return ToldItems(cast(ItemSearcher, searcher)) if SEARCHERS[config.kind].per_item else searcher


def trace(request: str) -> str:
    """Return, as JSON, the genomes of the search that ``request`` asks for: ``[module, config, genes, trials]``."""
    module, config, genes, trials = json.loads(request)
    importlib.import_module(module)
    kinds = {kind.__name__: kind for kind in (FloatGene, IntGene, ChoiceGene)}
    searched = [kinds[kind](**_with_tuples(fields)) for kind, fields in genes]
    searcher = built(read_searcher(config), searched, OBJECTIVES, trials)
    return json.dumps([trial.genome for trial in drive(searcher, score_some, trials, in_flight=3)])


def serve_traces() -> None:
    """Answer each line of standard input with its trace; what other processes run."""
    for line in sys.stdin:
        print(trace(line), flush=True)


class SearcherTestCase:
    """The contract of ``evomerge.searchers.Searcher`` as tests; ``trials`` is the length of each search."""

    trials = 40

    @pytest.fixture
    def config(self) -> SearcherConfig:
        """The config under test: override this."""
        raise NotImplementedError("override the fixture `config`")

    @pytest.fixture(params=sorted(SPACES))
    def genes(self, request: pytest.FixtureRequest) -> tuple[Gene, ...]:
        """The genes to search: override this for a searcher that takes some kinds of genes only."""
        return SPACES[request.param]

    def build(
        self,
        config: SearcherConfig,
        genes: Sequence[Gene],
        objectives: Sequence[ObjectiveSpec] = OBJECTIVES,
        budget: int = 0,
        starting_points: Sequence[Genome] = (),
    ) -> Searcher:
        """Return a new searcher."""
        return built(config, genes, objectives, budget or self.trials, starting_points)

    def test_genomes_are_plain_values_inside_the_bounds(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        for trial in drive(self.build(config, genes), score_some, self.trials, in_flight=4):
            assert list(trial.genome) == [gene.name for gene in genes]
            for gene in genes:
                value = trial.genome[gene.name]
                if isinstance(gene, ChoiceGene):
                    assert type(value) is str
                    assert value in gene.choices
                else:
                    assert type(value) is (float if isinstance(gene, FloatGene) else int)
                    assert gene.low <= value <= gene.high

    @pytest.mark.parametrize("in_flight", [1, 8])
    def test_the_same_calls_give_the_same_genomes(
        self, config: SearcherConfig, genes: tuple[Gene, ...], in_flight: int
    ) -> None:
        first, second = (drive(self.build(config, genes), score_some, self.trials, in_flight) for _ in range(2))
        assert first == second

    def test_another_seed_gives_another_search(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        seeds = (config.model_copy(update={"seed": seed}) for seed in (0, 1, 2**32 - 1))
        first, second, last = (drive(self.build(seed, genes), score, self.trials) for seed in seeds)
        assert first != second
        assert second != last

    def test_global_generators_are_neither_read_nor_written(
        self, config: SearcherConfig, genes: tuple[Gene, ...]
    ) -> None:
        expected = drive(self.build(config, genes), score_some, self.trials, in_flight=2)
        saved = random.getstate(), np.random.get_state()

        def evaluate_and_reseed(genome: Genome) -> dict[str, float] | None:
            # lm-eval does this before every evaluation.
            random.seed(0)
            np.random.seed(1234)
            return score_some(genome)

        try:
            random.seed(7)
            np.random.seed(7)
            before = random.getstate(), np.random.get_state()
            assert drive(self.build(config, genes), score_some, self.trials, in_flight=2) == expected
            after = random.getstate(), np.random.get_state()
            assert repr(before) == repr(after)
            assert drive(self.build(config, genes), evaluate_and_reseed, self.trials, in_flight=2) == expected
        finally:
            random.setstate(saved[0])
            np.random.set_state(saved[1])

    @pytest.fixture(scope="class")
    @classmethod
    def other_processes(cls) -> Iterator[list[subprocess.Popen[str]]]:
        """Three processes that differ in string hashes and in threads of linear algebra."""
        processes = [_start_server(hash_seed, threads) for hash_seed, threads in ((1, 1), (2, 2), (3, 4))]
        yield processes
        for process in processes:
            process.communicate()

    @property
    def traced(self) -> Sequence[Gene]:
        """The genes that are searched in other processes too."""
        return MIXED

    def test_other_processes_propose_the_same(
        self, config: SearcherConfig, other_processes: list[subprocess.Popen[str]]
    ) -> None:
        genes = [[type(gene).__name__, asdict(gene)] for gene in self.traced]
        request = json.dumps([type(config).__module__, config.model_dump(), genes, self.trials])
        expected = trace(request)
        for process in other_processes:
            assert process.stdin is not None
            assert process.stdout is not None
            print(request, file=process.stdin, flush=True)
            assert process.stdout.readline().strip() == expected

    @pytest.mark.parametrize("in_flight", [1, 4])
    def test_a_resumed_search_goes_on_exactly(
        self, config: SearcherConfig, genes: tuple[Gene, ...], in_flight: int
    ) -> None:
        whole = drive(self.build(config, genes), score_some, self.trials, in_flight)
        killed_after = random.Random(repr(config)).randrange(1, self.trials)
        journal = deque(whole[:killed_after])

        def evaluate(genome: Genome) -> dict[str, float] | None:
            if journal:
                recorded = journal.popleft()
                assert recorded.genome == genome, "the replay proposes another genome than the journal's"
                return recorded.objectives
            return score_some(genome)

        assert drive(self.build(config, genes), evaluate, self.trials, in_flight) == whole

    def test_a_larger_budget_begins_with_the_same_trials(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        half = drive(self.build(config, genes, budget=self.trials // 2), score, self.trials // 2)
        whole = drive(self.build(config, genes, budget=self.trials), score, self.trials)
        assert whole[: len(half)] == half

    def test_failed_trials_do_not_end_the_search(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        trials = drive(self.build(config, genes), lambda genome: None, self.trials, in_flight=4)
        assert len(trials) == self.trials

    def test_values_that_are_not_finite_count_as_failed(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        spoilt_values = cycle([float("nan"), float("inf"), float("-inf")])

        def spoilt(genome: Genome) -> dict[str, float]:
            failed = score_some(genome) is None
            return {"near": next(spoilt_values), "cost": 0.0} if failed else score(genome)

        expected = drive(self.build(config, genes), score_some, self.trials)
        found = drive(self.build(config, genes), spoilt, self.trials)
        assert [trial.genome for trial in found] == [trial.genome for trial in expected]

    def test_equal_results_do_not_end_the_search(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        same = {"near": 0.5, "cost": 0.5}
        assert len(drive(self.build(config, genes), lambda genome: same, self.trials)) == self.trials

    def test_the_direction_is_obeyed(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        up, down = (ObjectiveSpec("loss", "maximize"),), (ObjectiveSpec("loss", "minimize"),)
        first = drive(self.build(config, genes, up), lambda genome: {"loss": -score(genome)["cost"]}, self.trials)
        second = drive(self.build(config, genes, down), lambda genome: {"loss": score(genome)["cost"]}, self.trials)
        assert [trial.genome for trial in first] == [trial.genome for trial in second]

    def test_a_returned_genome_belongs_to_the_caller(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        searcher = self.build(config, genes)
        genome = searcher.ask()
        assert genome is not None
        asked = dict(genome)
        genome.clear()
        searcher.tell(asked, score(asked))

    def test_results_out_of_ask_order_are_refused(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        searcher = self.build(config, genes)
        first, second = searcher.ask(), searcher.ask()
        assert first is not None
        assert second is not None
        with pytest.raises(RunError, match=r"out of ask order: expected .+, told was"):
            searcher.tell(second, score(second))
        searcher.tell(first, score(first))
        searcher.tell(second, score(second))

    def test_a_result_that_nobody_asked_for_is_refused(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        genome = {gene.name: gene.initial for gene in genes}
        with pytest.raises(RunError, match="no genome is in flight"):
            self.build(config, genes).tell(genome, score(genome))

    def test_a_missing_objective_is_refused(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        searcher = self.build(config, genes)
        genome = searcher.ask()
        assert genome is not None
        with pytest.raises(RunError, match=r"no value told for the objectives \['cost'\]; told were \['near'\]"):
            searcher.tell(genome, {"near": 1.0})

    def test_starting_points_are_taken(self, config: SearcherConfig, genes: tuple[Gene, ...]) -> None:
        points = [{gene.name: gene.initial for gene in genes}, *_corners(genes)]
        trials = drive(self.build(config, genes, starting_points=points), score_some, self.trials, in_flight=3)
        assert len(trials) == self.trials

    def test_nothing_is_printed_or_logged(
        self,
        config: SearcherConfig,
        genes: tuple[Gene, ...],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        drive(self.build(config, genes), score_some, self.trials, in_flight=2)
        assert capfd.readouterr() == ("", "")


class LineageSearcherTestCase(SearcherTestCase):
    """The contract of a searcher whose genomes name their sources; override ``genes`` and ``traced`` together."""

    @pytest.fixture
    def genes(self) -> tuple[Gene, ...]:
        """The genes to search: the sources, and those of a crossover."""
        return LINEAGE

    @property
    def traced(self) -> Sequence[Gene]:
        """The genes that are searched in other processes too."""
        return LINEAGE

    @pytest.mark.parametrize("in_flight", [1, 5])
    def test_sources_are_parents_or_told_trials_that_did_not_fail(
        self, config: SearcherConfig, genes: tuple[Gene, ...], in_flight: int
    ) -> None:
        searcher = Counted(self.build(config, genes))
        trials = drive(searcher, score_some, self.trials, in_flight)
        named = set()
        for number, (trial, told) in enumerate(zip(trials, searcher.told, strict=True)):
            for source in (int(trial.genome[name]) for name in SOURCES):
                named.add(source)
                if source >= 0:
                    assert source < told, f"trial {number} names trial {source}, which was not told yet"
                    assert trials[source].objectives is not None, f"trial {source} failed"
        assert any(source >= 0 for source in named), "no trial is ever crossed again"


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _corners(genes: Sequence[Gene]) -> list[dict[str, Value]]:
    lowest = {gene.name: gene.choices[0] if isinstance(gene, ChoiceGene) else gene.low for gene in genes}
    highest = {gene.name: gene.choices[-1] if isinstance(gene, ChoiceGene) else gene.high for gene in genes}
    return [lowest, {name: -1 if name in SOURCES else value for name, value in highest.items()}]


def _start_server(hash_seed: int, threads: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONHASHSEED": str(hash_seed),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(Path(evomerge.__file__).parents[1]), *sys.path]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from evomerge.testing.searchers import serve_traces; serve_traces()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
