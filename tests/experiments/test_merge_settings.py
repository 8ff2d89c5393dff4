"""Runs whose merges need more than a method: one vocabulary, statistics, adapters; searched, resumed and exported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from evomerge.cli.statistics import command as statistics
from evomerge.errors import ConfigError, RunError
from evomerge.experiments.export_run import choose, export
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import read_experiment
from evomerge.recipes import read_recipe
from evomerge.testing.tiny_adapters import tiny_adapter
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment
from evomerge.testing.tiny_vocabularies import tiny_vocabularies

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SETTINGS = ("searcher=random", "budget.trials=4", "workers.count=1")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_experiment(tmp_path).parent


def run(folder: Path, *overrides: str) -> Path:
    """Start a run, stop it half way, resume and export it; the export is verified against the run's responses."""
    out = folder / "run"
    file = str(folder / "experiment.yaml")
    start(read_experiment(file, [*SETTINGS, "budget.trials=2", *overrides]), out, SilentDisplay())
    assert resume(out, SilentDisplay(), extend_trials=2).finished
    exported = export(out, folder / "exported", choose(out, trial=None, pick=None))
    assert exported.responses_checked
    return folder / "exported"


def test_parents_with_other_vocabularies_are_searched_with_their_union(folder: Path) -> None:
    paths = tiny_vocabularies(folder / "others", "words", sizes={"x": 40, "y": 55})
    merge = "merge={tokenizer_source: union}"
    parents = f"parents={{x: {paths['x']}, y: {paths['y']}}}"
    plain = "search_space={kind: parameter, method: linear, granularity: global}"
    with pytest.raises(ConfigError, match="tokenizer_source"):
        run(folder, parents, plain, "base=null")
    exported = run(folder, parents, plain, "base=null", merge)
    assert read_recipe(exported / "recipe.yaml").tokenizer_source == "union"
    rows = json.loads((exported / "config.json").read_text())["vocab_size"]
    assert rows > max(json.loads((path / "config.json").read_text())["vocab_size"] for path in paths.values())


def test_methods_that_need_statistics_find_them_and_notice_others_on_resume(folder: Path) -> None:
    (folder / "texts.txt").write_text("one text\nanother text\n")
    models = [option for name in "abc" for option in ("--model", str(folder / "models" / name))]
    command = [str(folder / "stats"), *models, "--text", str(folder / "texts.txt"), "--kinds", "fisher"]
    made = CliRunner().invoke(statistics, command)
    assert made.exit_code == 0, made.output
    space = "search_space={kind: parameter, method: fisher, granularity: global}"
    exported = run(folder, space, "merge={statistics: ./stats}")
    assert read_recipe(exported / "recipe.yaml").statistics == str(folder / "stats")
    (folder / "stats").rename(folder / "old")
    (folder / "texts.txt").write_text("something else altogether\n")
    assert CliRunner().invoke(statistics, command).exit_code == 0
    with pytest.raises(RunError, match="the statistics"):
        resume(folder / "run", SilentDisplay(), extend_trials=1)


def test_adapters_are_merged_by_their_factors_and_refused_if_their_ranks_differ(folder: Path) -> None:
    base = folder / "models" / "base"
    ranks = {"one": 4, "two": 4, "wide": 6}
    adapters = {name: tiny_adapter(folder / name, base, rank, rank=rank) for name, rank in ranks.items()}
    settings = ("search_space={kind: parameter, method: evo_merging, granularity: global}", f"base={base}")

    def parents(*names: str) -> str:
        return "parents={" + ", ".join(f"{name}: {base}+{adapters[name]}" for name in names) + "}"

    with pytest.raises(ConfigError) as refused:
        run(folder, parents("one", "two", "wide"), *settings)
    (problem,) = refused.value.problems
    assert f"rank 4: {base}+{adapters['one']}, {base}+{adapters['two']}; rank 6: {base}+{adapters['wide']}" in str(
        problem
    )
    assert "use task_arithmetic" in problem.suggestion
    assert not (folder / "run").exists()
    exported = run(folder, parents("one", "two"), *settings, "search_space.fixed={density: 0.5}")
    assert read_recipe(exported / "recipe.yaml").merge_method == "evo_merging"
    assert 'granularity: global, fixed: {"density": 0.5}' in (exported / "README.md").read_text(encoding="utf-8")
