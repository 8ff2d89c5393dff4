"""Names to tasks: files, lm-eval's own, and clear refusals within seconds (T11, T16)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.checkpoints import zoo_folder
from evomerge.errors import FitnessError, UnknownNameError
from evomerge.fitness.isolation import quiet
from evomerge.fitness.sources import find_task, load_task, shipped_names
from evomerge.testing.tasks import write_choices, write_sums


def test_a_task_is_found_by_path_by_name_and_among_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sums(tmp_path / "fitness", "mine")
    monkeypatch.chdir(tmp_path)
    assert find_task(str(path)) == path
    assert find_task("mine") == path
    assert find_task("fitness/mine.yaml", tmp_path) == path
    assert find_task("mine.yaml", tmp_path / "fitness") == path
    assert find_task("gsm8k").name == "gsm8k.yaml"
    write_sums(tmp_path / "fitness", "gsm8k")
    assert find_task("gsm8k") == tmp_path / "fitness" / "gsm8k.yaml", "the user's own comes first"


def test_unknown_tasks_and_unreachable_data_are_refused_in_under_ten_seconds(tmp_path: Path) -> None:
    path = write_sums(tmp_path)
    path.write_text(path.read_text().replace("dataset_path: json", "dataset_path: nobody/no-such-data"))
    objectives = [{"task": "gsm8kk"}, {"task": "arc_chalenge"}, {"task": str(path)}]
    program = (
        f"from evomerge.fitness import Fitness, FitnessConfig\nFitness(FitnessConfig(objectives={objectives!r}))\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    before = _child_seconds()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "fitness.objectives[0].task: unknown task 'gsm8kk'" in done.stderr
    assert "did you mean 'gsm8k'" in done.stderr
    assert "'arc_challenge'" in done.stderr
    assert "data set 'nobody/no-such-data' is not in the local cache and cannot be downloaded" in done.stderr
    assert _child_seconds() - before < 10, "imports included"


def _child_seconds() -> float:
    """Return the processor seconds of finished child processes, which do not count other work."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_group_and_a_tag_are_refused_with_their_tasks() -> None:
    with pytest.raises(FitnessError, match=r"'mmlu_stem' is a group of tasks; name those .*mmlu_astronomy"):
        load_task("mmlu_stem")
    with pytest.raises(FitnessError, match=r"'ai2_arc' is a tag of tasks; .*arc_easy"):
        load_task("ai2_arc")


def test_the_quick_index_knows_lm_evals_tasks() -> None:
    names = shipped_names()
    for name in ("hellaswag", "mgsm_direct_ja", "arc_easy", "winogrande", "truthfulqa_mc2"):
        assert "task" in names[name], name


def test_data_files_lie_beside_the_task_or_in_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    path = write_sums(tmp_path, "mine")
    with quiet():
        assert len(load_task(str(path)).test_docs()) == 12
    folder = zoo_folder() / "data" / "sums"
    folder.mkdir(parents=True)
    for split in ("train", "search", "test"):
        (tmp_path / f"mine-{split}.jsonl").rename(folder / f"{split}.jsonl")
    with pytest.raises(FitnessError, match=r"mine-train.jsonl does not exist; paths are relative to"):
        load_task(str(path))
    path.write_text(path.read_text().replace("mine-", "zoo/data/sums/"))
    with quiet():
        assert len(load_task(str(path)).test_docs()) == 12
    (folder / "test.jsonl").unlink()
    with pytest.raises(FitnessError, match=r"test.jsonl does not exist; run `evomerge zoo build` first"):
        load_task(str(path))


def test_a_mistyped_field_of_a_task_is_named(tmp_path: Path) -> None:
    path = write_choices(tmp_path)
    path.write_text(path.read_text().replace("doc_to_text", "doc_to_txt"))
    with pytest.raises(FitnessError, match=r"unknown fields of a task: 'doc_to_txt': did you mean 'doc_to_text'"):
        load_task(str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test_split: test", "test_split: tset", r"cannot be built: KeyError: 'tset'"),
        ("doc_to_text:", "doc_to_text: {", r"cannot read .*tiny-sums.yaml"),
        ("{{question}}", "{{quesion}}", r"cannot be built: UndefinedError: 'quesion' is undefined"),
    ],
)
def test_a_task_that_cannot_be_built_says_why(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_sums(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with quiet(), pytest.raises(FitnessError, match=message):
        load_task(str(path))


def test_unknown_names_are_an_error_of_their_own() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hellaswag'"):
        find_task("helaswag")
