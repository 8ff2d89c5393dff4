"""Hybrid runs on tiny models: two stages, each resumed exactly, one recipe of the parents alone at the end."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.errors import ConfigError
from evomerge.experiments import hybrid
from evomerge.experiments.export_run import _is_rounding, describe, export
from evomerge.experiments.journal import Journal
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.experiments.staging import as_stages
from evomerge.merging.stages import merge_stages
from evomerge.recipes import PathStep, read_recipes, routed_recipe
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SPACE = (
    "search_space={kind: hybrid, parameter: {method: ties, granularity: global}, "
    "routing: {repetitions: 1, scales: step}, trials: 7}"
)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    path = tiny_experiment(tmp_path_factory.mktemp("tiny"))
    return read_experiment(str(path), (SPACE,))


@pytest.fixture(scope="module")
def whole(experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(experiment, out, SilentDisplay()).finished
    return out


def trials(run: Path) -> list[tuple[int, dict[str, float], dict[str, float] | None]]:
    return [(t.number, t.genome, t.objectives) for t in Journal.read(run / "journal.log").trials()]


def test_the_budget_is_shared_between_the_stages(whole: Path) -> None:
    assert (len(trials(whole / hybrid.FIRST)), len(trials(whole))) == (7, 11)
    second = RunFolder(whole).read_experiment()
    assert next(iter(second.parents.items())) == ("merged", str(whole / hybrid.FIRST / "model"))
    assert second.search_space.kind == "layer_routing"


def test_the_second_stage_starts_from_the_pick_itself(whole: Path) -> None:
    references = {r["name"]: r["objectives"] for r in Journal.read(whole / "journal.log").facts()["references"]}
    assert trials(whole)[0][2] == references["merged"]


@pytest.mark.slow
def test_a_cut_in_either_stage_changes_nothing(whole: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"  # killed in the first stage: half of its journal, and nothing of the second
    shutil.copytree(whole / hybrid.FIRST, first / hybrid.FIRST, ignore=shutil.ignore_patterns("model", "conf*"))
    shutil.copy(whole / "experiment.yaml", first)
    journal = first / hybrid.FIRST / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]))
    second = tmp_path / "second"  # killed in the second
    shutil.copytree(whole, second)
    journal = second / "journal.log"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-3]))
    for out in (first, second):
        assert resume(out, SilentDisplay()).finished
        assert trials(out) == trials(whole)
        assert trials(out / hybrid.FIRST) == trials(whole / hybrid.FIRST)


def test_the_exported_recipe_needs_the_parents_alone(whole: Path, tmp_path: Path) -> None:
    number = 3
    export(whole, tmp_path / "model", number)
    stages = read_recipes(tmp_path / "model" / "recipe.yaml")
    assert [stage.name for stage in stages] == ["merged", None]
    merge_stages(stages, tmp_path / "again")
    ours, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    card = describe(whole, number)[2]
    assert str(whole) not in "".join(parent.reference for parent in card.parents)


def test_a_path_without_the_merged_model_is_one_recipe() -> None:
    path = routed_recipe([PathStep("a", 0), PathStep("b", 1)])
    models = {"merged": Path("merged model")}
    assert [stage.recipe for stage in as_stages(path, models, {"merged": path})] == [path]


def test_a_card_and_an_export_know_nothing_of_the_folder(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    exported = export(moved, tmp_path / "model", 3)
    card = (exported.folder / "README.md").read_text()
    assert str(whole) not in card
    assert str(moved) not in card


def test_half_precision_exports_differ_by_rounding_only() -> None:
    right = [1.0, 0.0] * 50
    nearly = [*right[:-3], 1.0, 1.0, 0.0]
    assert _is_rounding(right, nearly, 2)
    assert not _is_rounding(right, [1.0 - value for value in right], 100)
    assert not _is_rounding(right, [0.0] * 30 + right[30:], 15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": {"trials": 7}}, "the first stage gets 7 and the second 0"),
        ({"parents": {"merged": "x", "b": "y"}}, "'merged' is what the second stage calls"),
    ],
)
def test_what_cannot_be_split_is_refused(experiment: ExperimentConfig, change: dict, words: str) -> None:
    budget = experiment.budget.model_copy(update=change.pop("budget", {}))
    with pytest.raises(ConfigError, match=words):
        hybrid.settled(experiment.model_copy(update={"budget": budget, **change}))
