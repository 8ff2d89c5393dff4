"""Kinship-guided greedy merging: the paper's experiment replayed, and each option by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.kinship import Products, kinship_to
from evomerge.recipes import yaml
from evomerge.search_spaces import ParentsInfo, build_search_space, read_search_space
from evomerge.search_spaces.genes import Genome, Value
from evomerge.search_spaces.lineage import LineageSpace
from evomerge.searchers import ObjectiveSpec, Searcher, build_searcher, read_searcher
from evomerge.testing.searchers import drive, products

SCORE = (ObjectiveSpec("score", "maximize"),)
Trace = list[tuple[dict[str, Value], float | None]]


def space(parents: int = 3, crossover: str = "linear") -> LineageSpace:
    names = {f"p{n}": f"zoo/p{n}" for n in range(1, parents + 1)}
    config = read_search_space({"kind": "lineage", "crossover": crossover}, yaml.Document({}, "test"))
    built = build_search_space(config, ParentsInfo("zoo/base", names, (), 2, "float32", {}))
    assert isinstance(built, LineageSpace)
    return built


def random_vectors(parents: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(parents, 200))


def build(vectors: np.ndarray | None = None, *, crossover: str = "linear", **options: Any) -> Searcher:
    vectors = random_vectors() if vectors is None else vectors
    lineage = space(len(vectors), crossover)
    config = read_searcher({"kind": "kinship", **options})
    return build_searcher(config, lineage.genes, SCORE, 100, between=lineage.between, kinship=products(vectors))


class Followed:
    """Drives a searcher, and knows the task vector of every trial."""

    def __init__(self, searcher: Searcher, vectors: np.ndarray, scores: Callable[[np.ndarray], float | None]) -> None:
        self.searcher, self.vectors, self.scores = searcher, vectors, scores
        self.trials: list[tuple[dict[str, Value], np.ndarray, float | None]] = []

    def generation(self) -> list[dict[str, Value]]:
        """Ask until the searcher waits, tell it all results, and return what it asked for."""
        asked: list[dict[str, Value]] = []
        while (genome := self.searcher.ask()) is not None:
            asked.append(genome)
            first, second = (self.vector(int(genome[name])) for name in ("first", "second"))
            vector = float(genome["first.weight"]) * first + float(genome["second.weight"]) * second
            self.trials.append((genome, vector, self.scores(vector)))
        for genome, _, value in self.trials[-len(asked) :]:
            self.searcher.tell(genome, None if value is None else {"score": value})
        return asked

    def vector(self, source: int) -> np.ndarray:
        """Return the task vector of a source, which must have been told and have a score."""
        if source < 0:
            return self.vectors[-source - 1]
        genome, vector, value = self.trials[source]
        assert value is not None, f"a failed trial is a source: {genome}"
        return vector


def pairs(genomes: Sequence[Genome]) -> list[tuple[Any, Any]]:
    return [(genome["first"], genome["second"]) for genome in genomes]


METAMATH, INSTRUCT, OPENCHAT = -1, -2, -3
PAPER = {  # the averages of the paper's Tables 3 and 9, by what the model is made of
    (1, 0, 0): 63.72,
    (0, 1, 0): 61.82,
    (0, 0, 1): 66.28,
    (1 / 2, 1 / 2, 0): 62.17,  # model-1-1
    (0, 1 / 2, 1 / 2): 64.02,  # model-1-2
    (1 / 2, 0, 1 / 2): 66.84,  # model-1-3
    (1 / 4, 0, 3 / 4): 68.72,  # model-2-1
    (1 / 4, 1 / 4, 1 / 2): 61.47,  # model-2-2
    (0, 1 / 4, 3 / 4): 61.32,  # model-2-3
    (1 / 4, 1 / 2, 1 / 4): 68.11,  # model-2-exp
    (3 / 8, 0, 5 / 8): 67.74,  # model-3-2
    (3 / 8, 1 / 4, 3 / 8): 68.61,  # model-3-4
    (1 / 8, 1 / 2, 3 / 8): 68.15,  # model-3-exp
}
MODEL_3_3 = 69.06  # made of as much of each parent as model-2-2


def test_the_papers_main_experiment_is_replayed() -> None:
    """Generations 1 to 4 of Table 9 on Mistral-7B; the parents' kinship is the paper's (0.01, -0.02, 0.05)."""
    lengths = np.diag([0.37, 1.48, 0.93])  # such that the kinship of their merges is near the paper's
    correlations = np.array([[1, 0.01, 0.05], [0.01, 1, -0.02], [0.05, -0.02, 1]])
    vectors = lengths @ np.linalg.cholesky(correlations)
    shares = np.linalg.inv(vectors)
    seen: list[tuple[float, ...]] = []

    def scores(vector: np.ndarray) -> float:
        made_of = tuple((vector @ shares).round(6).tolist())
        seen.append(made_of)
        if seen.count(made_of) > 1 and made_of == (0.25, 0.25, 0.5):
            return MODEL_3_3
        return PAPER.get(made_of, 0.0)

    run = Followed(build(vectors, metric="cs"), vectors, scores)
    assert pairs(run.generation()) == [(n, n) for n in (METAMATH, INSTRUCT, OPENCHAT)]
    first = run.generation()
    assert pairs(first) == [(OPENCHAT, METAMATH), (OPENCHAT, INSTRUCT), (METAMATH, INSTRUCT)]
    model_1_3, model_1_2, _ = 3, 4, 5
    best = [(model_1_3, OPENCHAT), (model_1_3, model_1_2), (OPENCHAT, model_1_2)]
    assert pairs(run.generation()) == [*best, (model_1_3, INSTRUCT)]  # model-2-1, -2, -3 and model-2-exp
    model_2_1, model_2_exp = 6, 9
    best = [(model_2_1, model_2_exp), (model_2_1, model_1_3), (model_2_exp, model_1_3)]
    assert pairs(run.generation()) == [*best, (model_2_1, INSTRUCT)]  # model-3-3, -2, -4 and model-3-exp
    model_3_3, model_3_4 = 10, 12
    best = [(model_3_3, model_2_1), (model_3_3, model_3_4), (model_2_1, model_3_4)]
    assert pairs(run.generation())[:3] == best  # model-4-4, -6 and -5
    assert {genome["first.weight"] for genome, _, _ in run.trials} == {0.5}


@pytest.mark.parametrize("metric", ["pcc", "cs", "ed"])
@pytest.mark.parametrize("partners", ["all", "previous"])
@pytest.mark.parametrize("explore", [0, 1, 3])
def test_the_best_is_merged_with_its_most_distant_kin(metric: str, partners: str, explore: int) -> None:
    vectors = random_vectors(4) + np.arange(4)[:, None]  # of unequal means, so that pcc and cs differ
    draw = np.random.default_rng(1)
    run = Followed(build(vectors, metric=metric, partners=partners, explore=explore), vectors, lambda _: draw.random())
    merged: set[frozenset[Any]] = set()
    ages: dict[int, int] = {}
    for generation in range(9):
        names = {-n: n - 1 for n in range(1, 5)} | {n: n for n in range(4, len(run.trials))}
        members = sorted(names, key=lambda name: -(run.trials[names[name]][2] or 0)) if run.trials else []
        asked = run.generation()
        ages |= dict.fromkeys(range(len(run.trials) - len(asked), len(run.trials)), generation)
        if generation >= 2:
            new = [pair for pair in combinations(members[:3], 2) if frozenset(pair) not in merged]
            count = len(new) or 3
            assert pairs(asked[:count]) == (new or list(combinations(members[:3], 2)))
            merged |= set(map(frozenset, new))
            best = run.vector(members[0])
            kin = {
                name: _kinship(metric, best, run.vector(name))
                for name in members[1:]
                if frozenset((members[0], name)) not in merged
                and (partners == "all" or (name >= 4 and ages[name] == generation - 1))
            }
            expected = sorted(kin, key=lambda name: kin[name])[:explore]
            assert pairs(asked[count:]) == [(members[0], name) for name in expected]
        merged |= {frozenset(pair) for pair in pairs(asked)}


def _kinship(metric: str, one: np.ndarray, other: np.ndarray) -> float:
    if metric == "ed":
        return -float(np.linalg.norm(one - other))
    a, b = (one, other) if metric == "cs" else (one - one.mean(), other - other.mean())
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_where_the_paper_stops_the_best_are_merged_again_at_other_weights() -> None:
    vectors = random_vectors()
    run = Followed(build(vectors, explore=0), vectors, lambda vector: float(vector in vectors))  # no child is as good
    seeds, first, *later = [run.generation() for _ in range(5)]
    assert {genome["first.weight"] for genome in (*seeds, *first)} == {0.5}
    assert [pairs(generation) for generation in later] == [pairs(first)] * 3
    weights = [float(genome["first.weight"]) for generation in later for genome in generation]
    assert len(set(weights)) == len(weights) == 9
    assert all(genome["second.weight"] == 1 - float(genome["first.weight"]) for genome in later[0])


def test_failed_trials_are_no_sources() -> None:
    vectors = random_vectors(5)
    draw = np.random.default_rng(2)
    run = Followed(build(vectors), vectors, lambda _: None if draw.random() < 0.4 else draw.random())
    for _ in range(30):
        assert run.generation()


def test_parents_that_fail_are_left_out_while_two_others_do_not() -> None:
    vectors = random_vectors()
    run = Followed(build(vectors), vectors, lambda vector: None if np.array_equal(vector, vectors[1]) else 0.5)
    run.generation()
    assert pairs(run.generation()) == [(-1, -3)]


def test_one_searcher_a_weight_of_slerp() -> None:
    asked = drive(build(crossover="slerp", weight=0.25), lambda genome: {"score": 0.0}, 6)
    assert [trial.genome["weight"] for trial in asked] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert all(set(trial.genome) == {"first", "second", "weight"} for trial in asked)


def test_products_survive_the_journal() -> None:
    found = products(random_vectors())
    again = Products.from_json(found.to_json())
    assert again.entries == found.entries
    for name in ("sums", "gram", "squares"):
        assert np.array_equal(getattr(again, name), getattr(found, name))


def test_what_has_no_kinship_counts_as_unrelated() -> None:
    vectors = np.concatenate([random_vectors(3) + 2, np.zeros((1, 200))])  # the last parent is the base
    assert np.isnan(kinship_to(products(vectors), "cs", np.eye(4)[0], np.eye(4)[3:]))[0]
    run = Followed(build(vectors, metric="cs"), vectors, lambda vector: float(vector.sum()))
    run.generation()
    run.generation()
    assert pairs(run.generation())


def test_children_whose_kinship_does_not_follow_are_refused() -> None:
    genes, config = space().genes, read_searcher("kinship")
    with pytest.raises(ConfigError, match=r"cannot tell the kinship of these children.*\n.*use the crossover linear"):
        build_searcher(config, genes, SCORE, 10)
    between = space().between
    with pytest.raises(ConfigError, match="a crossover needs two"):
        build_searcher(config, space(1).genes, SCORE, 10, between=between)
    searcher = build_searcher(config, genes, SCORE, 10, between=between)
    with pytest.raises(RunError, match="built without the kinship of the parents"):
        drive(searcher, lambda genome: {"score": 1.0}, 20)


def test_it_never_waits_with_nothing_in_flight() -> None:
    for evaluate in (lambda genome: {"score": 0.5}, lambda genome: None):
        assert len(drive(build(), evaluate, 200, in_flight=5)) == 200
