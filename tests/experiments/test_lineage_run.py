"""Runs whose trials are children of earlier trials: killed and resumed, members evicted, exported and replayed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evomerge
import evomerge.testing.crossing
from evomerge.errors import ConfigError, RunError
from evomerge.experiments.export_run import describe, export
from evomerge.experiments.front_file import read_front, recipe_of
from evomerge.experiments.journal import Journal
from evomerge.experiments.plan import plan
from evomerge.experiments.preflight import prepare
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.experiments.staging import whole as stages_of
from evomerge.experiments.summarise import summarise
from evomerge.merging import InPlaceMerger
from evomerge.merging.members import SMALL, Members
from evomerge.merging.stages import merge_stages
from evomerge.recipes import pack_recipe, read_recipes, sources_of
from evomerge.testing.stored import keep_stored
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment
from evomerge.testing.tiny_models import tiny_family

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TRIALS = 16
SETTINGS = (
    "search_space={kind: lineage, crossover: m2n2, mutation: gaussian}",
    "searcher={kind: test-crossing, seed: 3, recent: 3}",
    f"budget.trials={TRIALS}",
    "workers.count=2",
    "workers.threads=1",
    "workers.in_flight=3",
)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own, which workers have too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EVOMERGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_experiment(tmp_path_factory.mktemp("tiny")).parent
    tiny_family(folder / "models", hidden=160)
    assert (folder / "models" / "a" / "model.safetensors").stat().st_size > SMALL  # members are kept in files
    return folder


def experiment(folder: Path, *more: str) -> ExperimentConfig:
    return read_experiment(str(folder / "experiment.yaml"), [*SETTINGS, *more])


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    assert start(experiment(folder), folder / "whole", SilentDisplay()).finished
    return folder / "whole"


def trials(run: Path) -> list[tuple[int, dict[str, float], dict[str, float] | None, str]]:
    return [(t.number, t.genome, t.objectives, t.recipe_hash) for t in Journal.read(run / "journal.log").trials()]


def deepest(run: Path) -> int:
    """Return the trial with the longest lineage."""
    prepared, _, _ = describe(run, 0)
    recipes = {t.number: prepared.space.express(t.genome) for t in Journal.read(run / "journal.log").trials()}
    return max(recipes, key=lambda number: len(prepared.space.lineage([recipes[number]])))  # type: ignore[attr-defined]


def assert_same(run: Path, other: Path) -> None:
    assert trials(run) == trials(other)
    assert (run / "front.jsonl").read_bytes() == (other / "front.jsonl").read_bytes()


def test_children_are_crossed_from_children(whole: Path, cache: Path) -> None:
    genomes = [genome for _, genome, _, _ in trials(whole)]
    assert [(g["first"], g["second"]) for g in genomes[:3]] == [(-1, -1), (-2, -2), (-3, -3)]
    assert any(g["first"] > 3 or g["second"] > 3 for g in genomes)
    assert list(cache.glob("members/*/*.safetensors"))
    assert summarise(whole).status == "finished"


@pytest.mark.parametrize("kept", [0, 2, 9, 15])
def test_a_run_cut_at_any_trial_resumes_to_the_same_trials_without_its_members(
    kept: int, folder: Path, whole: Path, cache: Path
) -> None:
    """As on another machine: the journal ends early, and nothing is in the cache."""
    lines = (whole / "journal.log").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"op_code":4' in line)
    out = folder / f"cut{kept}"
    out.mkdir()
    shutil.copy(whole / "experiment.yaml", out)
    (out / "journal.log").write_bytes(b"".join(lines[: first + kept]) + lines[first + kept][:40])
    shutil.copytree(whole / "responses", out / "responses", ignore=lambda folder, names: {"confirmation.jsonl"})
    keep_stored(out, {recipe_hash for *_, recipe_hash in trials(whole)[:kept]}.__contains__)
    shutil.rmtree(cache / "members")
    assert resume(out, SilentDisplay()).finished
    assert_same(out, whole)


def test_a_budget_of_nothing_changes_nothing(folder: Path, whole: Path, cache: Path) -> None:
    shutil.rmtree(cache / "members", ignore_errors=True)
    assert start(experiment(folder, "workers.members_gb=0"), folder / "nothing", SilentDisplay()).finished
    assert_same(folder / "nothing", whole)
    assert not list(cache.glob("members/*/*.safetensors"))


def test_a_tiny_budget_evicts_and_changes_nothing(folder: Path, whole: Path, cache: Path) -> None:
    shutil.rmtree(cache / "members", ignore_errors=True)
    size = (folder / "models" / "a" / "model.safetensors").stat().st_size
    gigabytes = 2.5 * size / 1e9
    assert start(experiment(folder, f"workers.members_gb={gigabytes}"), folder / "few", SilentDisplay()).finished
    assert_same(folder / "few", whole)
    assert sum(path.stat().st_size for path in cache.glob("members/*/*.safetensors")) <= 2.5 * size


def test_the_exported_model_is_the_searched_one_and_its_recipe_replays_to_it(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    number = deepest(whole)
    prepared, recipe, card = describe(whole, number)
    assert len(card.stages) > 4
    assert sources_of(recipe)

    exported = export(whole, tmp_path / "model", number)
    assert exported.responses_checked > 0
    weights = load_file(tmp_path / "model" / "model.safetensors")

    stages = read_recipes(tmp_path / "model" / "recipe.yaml")
    assert stages[-1].recipe.hash == recipe.hash
    merge_stages(stages, tmp_path / "replayed")
    replayed = load_file(tmp_path / "replayed" / "model.safetensors")

    members = Members(prepared.parents, prepared.donor, 0)
    members.learn({str(s.name).removeprefix("trial:"): pack_recipe(s.recipe) for s in card.stages})
    merger = InPlaceMerger(prepared.parents, base=prepared.donor, dtype=prepared.dtype, like=prepared.like)
    merger.merge(recipe, members.of(recipe))
    resident = merger.model.state_dict()

    assert weights.keys() == replayed.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, replayed[name]), name
        assert torch.equal(tensor, resident[name]), name
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "replayed" / name).read_bytes()


def test_the_card_and_the_report_tell_of_the_lineage(whole: Path, tmp_path: Path) -> None:
    number = deepest(whole)
    export(whole, tmp_path / "model", number)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "It is made in stages" in card
    summary = summarise(whole)
    assert summary.winner_recipe_yaml is not None
    assert summary.crossing is not None
    assert set(summary.genes) - set(summary.crossing.labels) == {"weight", "split", "mutation.scale"}
    assert summary.pick is not None
    genome, names = summary.trials[summary.pick].genome, dict(zip((-1, -2, -3), "abc", strict=True))
    sources = [int(genome[gene]) for gene in ("first", "second")]
    said = [f"the parent {names[source]}" if source < 0 else f"trial {source}" for source in sources]
    assert summary.crossing.sources == said


def test_recipes_of_a_run_need_its_parents_alone(whole: Path) -> None:
    written = read_experiment(str(whole / "experiment.yaml"))
    for entry in read_front(whole / "front.jsonl"):
        stages = stages_of(recipe_of(entry), written, whole)
        names = {stage.name for stage in stages}
        others = {ref for stage in stages for ref in stage.recipe.parents()} - names
        assert others <= set(written.references.values())


def test_a_changed_experiment_is_not_taken_for_the_lineage(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    text = (moved / "experiment.yaml").read_text().replace("models/c", "models/base")
    (moved / "experiment.yaml").write_text(text)
    number = deepest(whole)
    recipe = describe(whole, number)[1]
    with pytest.raises(RunError, match=r"no such trial|is another one now"):
        stages_of(recipe, read_experiment(str(moved / "experiment.yaml")), moved)


def test_responses_that_are_gone_stop_a_replay(folder: Path, whole: Path) -> None:
    out = folder / "lost"
    shutil.copytree(whole, out)
    hashes = [recipe_hash for *_, recipe_hash in trials(whole)]
    number = next(n for n in range(5, TRIALS) if hashes.count(hashes[n]) == 1)
    keep_stored(out, lambda recipe_hash: recipe_hash != hashes[number])
    (out / "confirmation.json").unlink()
    with pytest.raises(RunError, match=rf"the responses of trial {number}, which .* are not in .*search\.jsonl"):
        resume(out, SilentDisplay())


def test_item_scores_are_those_of_the_items_and_higher_is_better(folder: Path, whole: Path) -> None:
    from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan

    config = experiment(folder)
    fitness = prepare(config).fitness
    plan = FixedPlan("search", fitness, Asked(fitness.items("search"), {}))
    found = Journal.read(whole / "journal.log").trials()[4]
    scores = Evaluations(None, plan, whole / "responses").item_scores(found, fitness)  # type: ignore[arg-type]
    assert {name: each.dtype for name, each in scores.items()} == {"near": np.float64, "far": np.float64}
    assert found.objectives is not None
    for name, value in found.objectives.items():
        assert scores[name].mean() == pytest.approx(value, abs=1e-12)
    (asked,) = {len(items) for items in fitness.items("search").values()}
    assert {len(each) for each in scores.values()} == {asked}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("searcher=nsga2", "cannot choose which earlier trials are crossed"),
        ("search_space={kind: parameter, method: linear}", "crosses earlier trials, which a parameter space"),
        ("search_space.crossover=marriage", "unknown crossover 'marriage'"),
        ("fitness.estimate={kind: raw, items: 4}", "learns from every item"),
        ("merge.tokenizer_source=union", "merge.tokenizer_source cannot be had"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(experiment(folder, override))


def test_a_budget_for_the_parents_alone_is_warned_of(folder: Path) -> None:
    (warning,) = prepare(experiment(folder, "budget.trials=3")).warnings
    assert "the first 3 trials are the parents as they are, so 3 make no child" in warning
    assert "budget.trials" in warning
    assert prepare(experiment(folder, "budget.trials=4")).warnings == ()


@pytest.mark.slow
def test_what_a_run_would_take_is_told(folder: Path) -> None:
    found = plan(experiment(folder), folder / "planned", SilentDisplay())
    assert found.problems == ()
    assert found.time is not None


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_the_same(folder: Path, whole: Path, cache: Path) -> None:
    code = "import evomerge.testing.crossing; from evomerge.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(evomerge.__file__).parents[1])}
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    out = folder / "killed"
    arguments = ["run", str(folder / "experiment.yaml"), "--out", str(out), *overrides]
    shutil.rmtree(cache / "members", ignore_errors=True)
    for goal in (2, 6, 11, None):
        with open(os.devnull, "w") as nowhere:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], env=environment, stdout=nowhere, stderr=subprocess.STDOUT
            )
        while process.poll() is None and (goal is None or _written(out) < goal):
            time.sleep(0.05)
        if goal is not None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = ["resume", str(out)]
    assert process.returncode == 0
    assert_same(out, whole)


def _written(run: Path) -> int:
    try:
        return sum(json.loads(line).get("op_code") == 4 for line in (run / "journal.log").read_text().splitlines())
    except (OSError, ValueError):
        return 0
