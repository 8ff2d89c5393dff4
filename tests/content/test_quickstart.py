"""The quickstart, measured: the found merge beats every parent and every uniform merge, outside the interval."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.checkpoints import zoo_folder
from evomerge.experiments import statistics
from evomerge.experiments.front_file import read_front, recipe_of
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run import start
from evomerge.experiments.schema import read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.merging import InPlaceMerger
from evomerge.recipes import ModelInput, Recipe
from evomerge.testing.tiny_experiment import SilentDisplay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not zoo_folder().exists(), reason="the zoo is not built: run `evomerge zoo build`"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import ray

    out = tmp_path_factory.mktemp("quickstart") / "run"
    start(read_experiment("quickstart"), out, SilentDisplay())
    ray.shutdown()
    return out


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(read_experiment("quickstart"))


def test_the_winner_beats_every_parent_and_the_uniform_merge(run: Path) -> None:
    summary = summarise(run)
    assert summary.winner is not None
    assert [comparison.against for comparison in summary.comparisons[1:]] == ["base", "uniform"]
    for comparison in summary.comparisons:
        assert comparison.difference.low > 0.05, comparison
        assert comparison.p_value < 0.01, comparison
    rivals = [row for row in summary.confirmed if row.trial is None]
    assert all(summary.winner.mean.low > row.mean.high for row in rivals)


def test_the_winner_beats_task_arithmetic_with_the_best_single_coefficient(run: Path, prepared: Prepared) -> None:
    experiment, fitness = prepared.experiment, prepared.fitness
    torch.set_num_threads(1)
    merger = InPlaceMerger(prepared.parents, base=str(experiment.base))

    def answers(recipe: Recipe) -> dict[str, np.ndarray]:
        merger.merge(recipe)
        responses = fitness.evaluate(merger.model, merger.tokenizer, fitness.items("confirmation"))
        return {o.name: np.array(fitness.item_values(responses, o.name)) for o in fitness.objectives}

    winner = next(e for e in read_front(run / "front.jsonl") if e["trial"] == summarise(run).pick)
    found = answers(recipe_of(winner))
    weights = dict.fromkeys(found, 1.0)
    for coefficient in LAMBDAS:
        models = tuple(ModelInput(model=r, parameters={"weight": coefficient}) for r in experiment.parents.values())
        same_for_all = Recipe(merge_method="task_arithmetic", base_model=experiment.base, models=models)
        assert statistics.paired_difference(found, answers(same_for_all), weights).low > 0, coefficient


def test_search_and_confirmation_items_are_disjoint_and_from_their_splits(prepared: Prepared) -> None:
    search, confirmation = prepared.fitness.items("search"), prepared.fitness.items("confirmation")
    for task in search:
        assert len(search[task]) == 100
        assert len(confirmation[task]) == 400
        contents = [{name.split("-")[1] for name in items[task]} for items in (search, confirmation)]
        assert not contents[0] & contents[1]
