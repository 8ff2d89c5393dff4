"""Models that are scored beside the parents and take no part in merges."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.experiments.journal import Journal
from evomerge.experiments.run import start
from evomerge.experiments.schema import parse_experiment, read_experiment, write_experiment
from evomerge.experiments.summarise import summarise
from evomerge.recipes import yaml
from evomerge.reports.html import render_report
from evomerge.reports.score_table import confirmed_scores
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
ONLY_A_AND_B = "parents={a: ./models/a, b: ./models/b}"
ALSO_C = "also_score={c: ./models/c}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(file: Path) -> Iterator[Path]:
    import ray

    out = file.parent / "run"
    settings = (ONLY_A_AND_B, ALSO_C, "budget.trials=6", "pick='prefer:far=3'", "workers.count=1")
    start(read_experiment(str(file), settings), out, SilentDisplay())
    yield out
    ray.shutdown()


def test_it_is_scored_in_the_search_and_on_the_confirmation_items(run: Path) -> None:
    facts = Journal.read(run / "journal.log").facts()
    kinds = {"base": "base", "a": "parent", "b": "parent", "c": "parent", "uniform": "uniform"}
    assert {reference["name"]: reference["kind"] for reference in facts["references"]} == kinds
    assert {row.label: row.kind for row in summarise(run).confirmed if row.trial is None} == kinds


def test_no_merge_has_a_part_of_it(run: Path) -> None:
    third = str(run.parent / "models" / "c")
    for line in (run / "front.jsonl").read_text().splitlines():
        recipe = json.dumps(json.loads(line)["recipe"])
        assert third not in recipe
        assert str(run.parent / "models" / "b") in recipe
    assert not any(gene.startswith("c.") for gene in summarise(run).genes)
    uniform = next(row for row in summarise(run).references if row.name == "uniform")
    assert uniform.objectives != next(row for row in summarise(run).references if row.name == "c").objectives


def test_the_tables_show_it(run: Path) -> None:
    summary = summarise(run)
    assert "c" in [row.label for row in confirmed_scores(summary).rows]
    assert '<span class="mark parent"></span>c <small>parent</small>' in render_report(summary)


def test_the_pick_is_by_the_preference(run: Path) -> None:
    summary = summarise(run)
    assert summary.pick_rule == "prefer:far=3"
    assert summary.winner is not None


def test_another_preference_picks_anew_for_an_export(run: Path) -> None:
    from evomerge.experiments.export_run import choose, export

    scores = {row.trial: row.objectives for row in summarise(run).confirmed if row.trial is not None}
    for name in ("near", "far"):
        other = "far" if name == "near" else "near"
        best = max(scores, key=lambda trial, name=name: scores[trial][name].value)
        assert choose(run, trial=None, pick=f"prefer:{name}=1,{other}=0") == best
    assert export(run, run.parent / "model", choose(run, trial=None, pick="prefer:near=9")).responses_checked > 0


def test_it_is_written_and_read_back_with_absolute_paths(file: Path) -> None:
    experiment = read_experiment(str(file), (ONLY_A_AND_B, ALSO_C))
    assert experiment.also_score == {"c": str(file.parent / "models" / "c")}
    again = parse_experiment(yaml.loads(write_experiment(experiment), "experiment.yaml"), folder=Path("/"))
    assert again.also_score == experiment.also_score
    assert list(again.references) == ["base", "a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("also_score={a: ./models/c}",), "'a' is a parent already, which is scored anyway"),
        (("also_score={base: ./models/c}",), "'base' cannot name a model"),
        ((ONLY_A_AND_B, "also_score={c: ./models/nowhere}"), "also_score.c(.|\n)*nowhere"),
    ],
)
def test_what_cannot_be_scored_is_refused(file: Path, tmp_path: Path, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start(read_experiment(str(file), settings), tmp_path / "run", SilentDisplay())
