"""Nested MAP: the tree by hand, and runs up it on tiny models: resumed exactly, exported as the parents' alone."""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.cli import main
from evomerge.errors import ConfigError, RunError
from evomerge.experiments import nested, staging
from evomerge.experiments.export_run import choose, describe, export
from evomerge.experiments.journal import Journal
from evomerge.experiments.nested import Node, plan, problems_of, read_tree, write_tree
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.experiments.write_reports import write_reports
from evomerge.export.card import render_card
from evomerge.merging.stages import merge_stages
from evomerge.recipes import Recipe, parse_recipes, read_recipes
from evomerge.searchers import ObjectiveSpec
from evomerge.testing.stored import stored_responses
from evomerge.testing.tiny_experiment import SilentDisplay
from evomerge.testing.tiny_models import tiny_family

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SCORE = '''\
"""One objective for each of four parents: how near a model is to that parent, seen by its logits."""

import torch

TEXTS = [f"item {number}" for number in range(12)]
TARGETS = {}


def _near(name, model, items):
    from transformers import AutoModelForCausalLM

    if name not in TARGETS:
        TARGETS[name] = AutoModelForCausalLM.from_pretrained(f"FOLDER/models/{name}").eval()
    tokens = torch.tensor([[1 + (7 * TEXTS.index(item) + 5 * place) % 59 for place in range(6)] for item in items])
    with torch.no_grad():
        gaps = (model(input_ids=tokens).logits - TARGETS[name](input_ids=tokens).logits).abs().mean(dim=(1, 2))
    return torch.exp(-20 * gaps).tolist()
'''
FUNCTION = """

def like_{name}_items():
    return TEXTS


def like_{name}(model, tokenizer, items):
    return _near("{name}", model, items)
"""
EXPERIMENT = """\
name: nested
base: ./models/base
parents: {a: ./models/a, b: ./models/b, c: ./models/c, d: ./models/d}
search_space: {kind: parameter, method: task_arithmetic, granularity: global}
fitness:
  objectives:
    - {function: "./score.py:like_a", name: like_a}
    - {function: "./score.py:like_b", name: like_b}
    - {function: "./score.py:like_c", name: like_c}
    - {function: "./score.py:like_d", name: like_d}
searcher: {kind: map, variant: nested, points: 4, prefer: {like_a: 2}}
workers: {count: 1, threads: 1}
budget: {trials: 26}
"""


def maximised(*names: str) -> list[ObjectiveSpec]:
    return [ObjectiveSpec(name, "maximize") for name in names]


def table(objectives: list[ObjectiveSpec], **rows: tuple[float, ...]) -> dict[str, dict[str, float]]:
    return {name: dict(zip([o.name for o in objectives], row, strict=True)) for name, row in rows.items()}


# The tree, by hand


def test_the_most_alike_in_their_own_objectives_are_merged_first() -> None:
    objectives = maximised("w", "x", "y", "z")
    scores = table(objectives, a=(0.9, 0, 0, 0), b=(0, 0.5, 0, 0), c=(0, 0, 0.8, 0), d=(0, 0, 0, 0.6))
    assert plan(scores, objectives, 30) == (
        Node("merged-1", "a", "c", ("w", "y"), 10),  # 0.9 and 0.8 differ by as little as 0.5 and 0.6; they come first
        Node("merged-2", "b", "d", ("x", "z"), 10),
        Node("merged-3", "merged-1", "merged-2", ("w", "x", "y", "z"), 10),
    )


def test_an_odd_parent_waits_for_the_next_level() -> None:
    objectives = maximised("x", "y", "z")
    scores = table(objectives, a=(0.9, 0, 0), b=(0, 0.2, 0), c=(0, 0, 0.85))
    assert plan(scores, objectives, 21) == (
        Node("merged-1", "a", "c", ("x", "z"), 10),
        Node("merged-2", "merged-1", "b", ("x", "y", "z"), 10),  # the odd trial is the root's: see `stage`
    )


def test_a_smaller_score_is_better_where_it_is_minimised() -> None:
    objectives = [ObjectiveSpec("loss", "minimize"), ObjectiveSpec("x", "maximize"), ObjectiveSpec("y", "maximize")]
    scores = table(objectives, a=(0.5, 0.1, 0.0), b=(2.0, 0.9, 0.1), c=(3.0, 0.2, 0.8))
    first, last = plan(scores, objectives, 20)
    assert (first.left, first.right, first.objectives) == ("b", "c", ("x", "y"))  # the loss is a's
    assert last.objectives == ("loss", "x", "y")


def test_parents_that_are_best_at_nothing_are_merged_for_all_objectives() -> None:
    objectives = maximised("x", "y")
    scores = table(objectives, best=(0.9, 0.9), b=(0.5, 0.1), c=(0.4, 0.3))
    nodes = plan(scores, objectives, 20)
    assert nodes[0] == Node("merged-1", "b", "c", ("x", "y"), 10)  # their means are 0.3 and 0.35


def test_an_objective_of_two_equals_belongs_to_the_first() -> None:
    objectives = maximised("x", "y")
    scores = table(objectives, a=(0.7, 0), b=(0.7, 0.1), c=(0.1, 0.9))
    assert plan(scores, objectives, 20)[0].objectives in (("x",), ("y",), ("x", "y"))
    only_first = plan(table(objectives, a=(0.7, 0), b=(0.7, 0), c=(0, 0.7)), objectives, 20)[0]
    assert (only_first.left, only_first.right, only_first.objectives) == ("a", "c", ("x", "y"))


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=3, max_size=9), st.integers(0, 7))
def test_every_tree_merges_each_model_once_and_ends_in_one(rows: list[list[float]], directions: int) -> None:
    objectives = [ObjectiveSpec(f"o{i}", "minimize" if directions >> i & 1 else "maximize") for i in range(3)]
    parents = [f"p{i}" for i in range(len(rows))]
    scores = {name: {f"o{i}": value for i, value in enumerate(row)} for name, row in zip(parents, rows, strict=True)}
    nodes = plan(scores, objectives, 100)
    assert len(nodes) == len(parents) - 1
    merged = [name for node in nodes for name in (node.left, node.right)]
    assert sorted(merged) == sorted([*parents, *(node.name for node in nodes[:-1])])
    made = list(parents)
    for node in nodes:  # each after those that it needs
        assert node.left in made
        assert node.right in made
        made.append(node.name)
    assert nodes[-1].objectives == ("o0", "o1", "o2")
    assert read_back(nodes) == nodes


def read_back(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    return tuple(Node(**{**node, "objectives": tuple(node["objectives"])}) for node in json.loads(write_tree(nodes)))


@pytest.mark.parametrize("parents", [4, 8, 16, 32])
def test_the_cost_grows_as_t_log_t(parents: int) -> None:
    objectives = maximised(*(f"o{i}" for i in range(parents)))
    scores = table(objectives, **{f"p{i}": tuple(float(i == j) for j in range(parents)) for i in range(parents)})
    nodes = plan(scores, objectives, 10 * (parents - 1))
    assert sum(node.trials * len(node.objectives) for node in nodes) == 10 * parents * math.log2(parents)


def test_a_tree_is_read_back_and_a_damaged_one_is_said_to_be(tmp_path: Path) -> None:
    nodes = (Node("merged-1", "a", "b", ("x",), 9),)
    path = tmp_path / "tree.json"
    with pytest.raises(RunError, match="does not exist"):
        read_tree(path)
    path.write_text(write_tree(nodes))
    assert read_tree(path) == nodes
    for damage in ("[{", "[{}]", "[1]", '[{"name": "merged-1", "objectives": []}]', "{}", "null", "[]", "3"):
        path.write_text(damage)
        with pytest.raises(RunError, match="is damaged"):
            read_tree(path)


# Experiments


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    tiny_family(folder / "models", parents=4)
    score = SCORE.replace("FOLDER", str(folder)) + "".join(FUNCTION.format(name=name) for name in "abcd")
    (folder / "score.py").write_text(score, encoding="utf-8")
    path = folder / "experiment.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("budget.trials=23", r"23 trials are 7 for each of 3 merges\n.*give at least 24"),
        ("merge={seed: 1}", "takes no fields of `merge`"),
        ("parents.merged-1=./models/a", "'merged-1' may be the name of a merge"),
        ("search_space={kind: layer_routing}", "search spaces of the kind parameter"),
    ],
)
def test_what_cannot_be_merged_up_a_tree_is_refused_before_any_work(
    file: Path, tmp_path: Path, change: str, words: str
) -> None:
    experiment = read_experiment(str(file), (change,))
    assert problems_of(experiment)
    with pytest.raises(ConfigError, match=words):
        start(experiment, tmp_path / "run", SilentDisplay())
    assert not (tmp_path / "run").exists()


def test_two_parents_are_merged_without_a_tree(file: Path) -> None:
    two = read_experiment(str(file), ("parents={a: ./models/a, b: ./models/b}",))
    assert not staging.is_staged(two)
    assert staging.last(two, Path("nowhere")) is two


def test_each_stage_has_its_objectives_its_share_of_the_trials_and_its_preference(file: Path, tmp_path: Path) -> None:
    experiment = read_experiment(str(file))
    names = ("like_a", "like_b", "like_c", "like_d")
    nodes = (
        Node("merged-1", "c", "d", ("like_c", "like_d"), 8),
        Node("merged-2", "a", "b", ("like_a", "like_b"), 8),
        Node("merged-3", "merged-1", "merged-2", names, 8),
    )
    first, second, root = (nested.stage(experiment, nodes, node, tmp_path, names) for node in nodes)
    assert [o.name for o in first.fitness.objectives] == ["like_c", "like_d"]
    assert [stage.budget.trials for stage in (first, second, root)] == [8, 8, 10]
    assert [stage.pick for stage in (first, second, root)] == ["prefer:", "prefer:like_a=2.0", "prefer:like_a=2.0"]
    assert list(root.parents) == ["merged-1", "merged-2"]
    assert root.also_score == experiment.parents
    assert (first.also_score, first.parents) == ({}, {name: experiment.parents[name] for name in "cd"})
    assert not any(staging.is_staged(stage) for stage in (first, second, root))


# Whole runs


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def experiment(file: Path) -> ExperimentConfig:
    return read_experiment(str(file))


@pytest.fixture(scope="module")
def whole(experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    ended = start(experiment, out, SilentDisplay())
    assert (ended.finished, ended.trials, ended.budget) == (True, 26, 26)
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def trials(run: Path) -> list[tuple[int, dict[str, float], dict[str, float] | None]]:
    return [(t.number, t.genome, t.objectives) for t in Journal.read(run / "journal.log").trials()]


def inner(run: Path) -> list[Path]:
    return [run / "tree" / "merged-1", run / "tree" / "merged-2"]


def test_every_parent_is_best_at_being_itself_so_the_tree_pairs_objectives_with_parents(whole: Path) -> None:
    nodes = read_tree(whole / "tree.json")
    for node in nodes[:2]:
        assert node.objectives == tuple(f"like_{name}" for name in sorted((node.left, node.right)))
    assert {nodes[2].left, nodes[2].right} == {"merged-1", "merged-2"}
    assert [len(trials(run)) for run in (*inner(whole), whole)] == [8, 8, 10]


def test_a_merge_is_scored_on_its_own_objectives_alone(whole: Path) -> None:
    nodes, asked = read_tree(whole / "tree.json"), 0
    for node, run in zip(nodes, (*inner(whole), whole), strict=True):
        recorded = Journal.read(run / "journal.log").trials()
        assert all(set(trial.objectives or {}) == set(node.objectives) for trial in recorded)
        assert all(len(trial.items) == len(node.objectives) for trial in recorded if not trial.cached)
        for part in ("search", "confirmation"):
            for tasks in stored_responses(run, part).values():
                assert run == whole or len(tasks) == len(node.objectives)
        asked += sum(len(trial.objectives or {}) for trial in recorded)
    assert asked == 8 * 2 + 8 * 2 + 10 * 4  # of 26 · 4 without a tree


def test_a_pick_is_the_parent_of_the_merge_above(whole: Path) -> None:
    root = RunFolder(whole).read_experiment()
    assert root.parents == {node.name: str(node / "model") for node in inner(whole)}
    references = {r["name"]: r["objectives"] for r in Journal.read(whole / "journal.log").facts()["references"]}
    assert set(references) == {"base", "merged-1", "merged-2", "a", "b", "c", "d", "uniform"}
    above = {row.label: row for row in summarise(whole).confirmed}
    for run in inner(whole):
        picked = summarise(run).winner  # a trial or a prediction, confirmed on the same items
        assert picked is not None
        for name, one in picked.objectives.items():
            assert above[run.name].objectives[name].value == pytest.approx(one.value, abs=1e-5)


def cut(journal: Path, lines: int) -> None:
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-lines]))


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", ["before the tree", "the second merge", "the root"])
def test_a_run_that_was_killed_goes_on_as_if_it_never_was(whole: Path, tmp_path: Path, killed_in: str) -> None:
    out = tmp_path / "run"
    if killed_in == "before the tree":
        out.mkdir()
        shutil.copy(whole / "experiment.yaml", out)
    elif killed_in == "the second merge":
        shutil.copytree(whole / "tree" / "merged-1", out / "tree" / "merged-1")
        ignored = shutil.ignore_patterns("model", "confirmation.json", "amortized.json")
        shutil.copytree(whole / "tree" / "merged-2", out / "tree" / "merged-2", ignore=ignored)
        cut(out / "tree" / "merged-2" / "journal.log", 3)
        for name in ("experiment.yaml", "tree.json"):
            shutil.copy(whole / name, out)
    else:
        shutil.copytree(whole, out, ignore=shutil.ignore_patterns("confirmation.json"))
        cut(out / "journal.log", 4)
    assert resume(out, SilentDisplay()).finished
    assert read_tree(out / "tree.json") == read_tree(whole / "tree.json")
    for run, undisturbed in zip((out, *inner(out)), (whole, *inner(whole)), strict=True):
        assert trials(run) == trials(undisturbed)


def test_more_trials_are_the_roots(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    ended = resume(out, SilentDisplay(), extend_trials=3)
    assert (ended.trials, ended.budget) == (29, 29)
    assert trials(out)[:10] == trials(whole)
    assert len(trials(out)) == 13
    assert [trials(run) for run in inner(out)] == [trials(run) for run in inner(whole)]


def same_weights(left: Path, right: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (left, right))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_exported_recipe_needs_the_parents_alone(whole: Path, tmp_path: Path, experiment: ExperimentConfig) -> None:
    number = choose(whole, trial=None, pick=None)
    assert export(whole, tmp_path / "model", number).responses_checked > 0
    stages = read_recipes(tmp_path / "model" / "recipe.yaml")
    assert [stage.name for stage in stages] == ["merged-1", "merged-2", None]
    assert str(whole) not in (tmp_path / "model" / "recipe.yaml").read_text()
    merge_stages(stages, tmp_path / "again")
    assert same_weights(tmp_path / "model", tmp_path / "again")
    card = describe(whole, number)[2]
    assert {parent.reference for parent in card.parents} == {str(experiment.base), *experiment.parents.values()}
    assert {parent.nickname for parent in card.parents} == {"", *experiment.parents}


def test_the_card_tells_of_the_whole_tree_and_not_of_the_folder(whole: Path) -> None:
    text = render_card(describe(whole, choose(whole, trial=None, pick=None))[2])
    for merge in summarise(whole).tree[:-1]:
        left, right = sorted((merge.left, merge.right))
        assert f"- before: {merge.name} = {merge.left} + {merge.right}, on like_{left}, like_{right}: 8 trials" in text
    assert "The picks of the searches before it were made on these items too" in text
    assert str(whole) not in text


def test_the_report_and_the_status_show_the_tree(call, whole: Path, tmp_path: Path) -> None:
    written = write_reports(whole)
    assert written == [*(run / "report.html" for run in inner(whole)), whole / "report.html"]
    page = written[-1].read_text(encoding="utf-8").split("<script")[0]
    assert 'href="tree/merged-1/report.html"' in page
    assert page.index(">merged-3<") < page.index(">merged-2<")
    *_, elsewhere = write_reports(whole, tmp_path / "report.html")
    link = elsewhere.read_text(encoding="utf-8").split('href="')[1].split('"')[0]
    assert (tmp_path / link).resolve() == (whole / "tree" / "merged-1" / "report.html").resolve()
    code, text = call("status", whole)
    assert code == 0
    assert text.startswith("nested: finished, 10 of 10 trials of the last merge (26 in the tree)\n")
    for run in inner(whole):
        row = summarise(run).winner
        assert row is not None
        told = ", ".join(f"{name} {one.value:.3f}" for name, one in row.objectives.items())
        assert f"  {run.name}: 8 trials, on {', '.join(row.objectives)}; {row.label}: {told}\n" in text


def test_a_preferred_recipe_is_of_the_parents_alone(call, whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    texts = []
    for run in (whole, moved):
        code, text = call("front", run, "--prefer", "like_b=3")
        assert code == 0, text
        assert str(whole) not in text
        stages = parse_recipes(text)
        assert set(stages[-1].uses) == {"merged-1", "merged-2"}
        texts.append(text)
    assert texts[0] == texts[1]


def test_earlier_picks_are_found_where_the_run_lies_now(whole: Path, tmp_path: Path) -> None:
    written, there = RunFolder(whole).read_written(), whole.resolve() / "tree" / "merged-1" / "model"
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)

    def of(reference: str) -> Recipe:
        parts = [{"model": reference}, {"model": written.parents["a"]}]
        return Recipe.model_validate({"merge_method": "linear", "models": parts, "parameters": {"weight": 0.5}})

    assert [stage.name for stage in staging.whole(of(str(there)), written, moved)] == ["merged-1", None]
    parent = "/elsewhere/tree/merged-1/model"  # a parent of this run, and another run's pick
    theirs = written.model_copy(update={"parents": written.parents | {"e": parent}})
    assert [stage.recipe for stage in staging.whole(of(parent), theirs, moved)] == [of(parent)]


# Before the root


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A run that was killed inside its second merge."""
    out = tmp_path / "begun"
    shutil.copytree(whole / "tree" / "merged-1", out / "tree" / "merged-1")
    ignored = shutil.ignore_patterns("model", "confirmation.json")
    shutil.copytree(whole / "tree" / "merged-2", out / "tree" / "merged-2", ignore=ignored)
    cut(out / "tree" / "merged-2" / "journal.log", 3)
    for name in ("experiment.yaml", "tree.json"):
        shutil.copy(whole / name, out)
    return out


def test_the_status_says_which_merge_a_run_is_at(call, begun: Path) -> None:
    code, text = call("status", begun)
    assert code == 0
    assert text.startswith("nested: interrupted, before the last of its stages\n  merged-1 = ")
    assert ": 8 trials, picked prediction " in text
    assert ": 5 of 8 trials\n" in text
    assert text.endswith(f"next: evomerge resume {begun}\n")


@pytest.mark.parametrize(
    "arguments", [("front",), ("front", "--json"), ("front", "--prefer", "like_a=1"), ("report",), ("export",)]
)
def test_what_asks_for_the_root_is_told_how_far_the_run_is(call, begun: Path, arguments: tuple[str, ...]) -> None:
    code, text = call(arguments[0], begun, *arguments[1:])
    assert code == 1
    assert "has not begun its last stage yet (merged-1 = " in text
    assert "5 of 8 trials" in text
    assert f"go on with `evomerge resume {begun}`" in text
    assert f"`evomerge report {begun / 'tree' / 'merged-2'}`" in text


@pytest.mark.parametrize("arguments", [("status",), ("front",), ("front", "--prefer", "like_a=1"), ("report",)])
def test_a_run_without_a_tree_says_so(call, whole: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shutil.copy(whole / "experiment.yaml", tmp_path)
    code, text = call(arguments[0], tmp_path, *arguments[1:])
    assert code == (0 if arguments[0] == "status" else 1)
    assert "all parents are evaluated" in text
    assert f"evomerge resume {tmp_path}" in text
