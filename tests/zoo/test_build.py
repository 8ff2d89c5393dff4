"""Building the zoo: complete or absent, the same bytes every time, readable by everybody else's tools."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import evomerge
from evomerge.checkpoints.resolve import ZOO_VERSION
from evomerge.errors import CheckpointError, EvomergeError
from evomerge.zoo import building
from evomerge.zoo.building import build_zoo, read_score_table
from evomerge.zoo.family import DATA_TASKS, EXPERTS, FAMILY, MODELS, TASKS, Plan
from evomerge.zoo.processes import Progress, run_all
from evomerge.zoo.scoring import answer, score
from evomerge.zoo.training import train_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!evomerge).*"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
TINY = Plan(
    train_items=120, search_items=30, test_items=30, hidden_size=32, intermediate_size=48, layers=2, heads=2,
    batch_size=8, base_steps=3, expert_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("cache") / "zoo" / ZOO_VERSION, plan=TINY, progress=False)


def test_every_model_loads_with_transformers_alone_and_is_small(zoo):
    for name in FAMILY:
        model = AutoModelForCausalLM.from_pretrained(zoo / name)
        tokenizer = AutoTokenizer.from_pretrained(zoo / name)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert tokenizer.pad_token_id == model.config.pad_token_id
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert (zoo / name / "generation_config.json").is_file()


def test_full_plan_stays_under_a_million_parameters():
    from transformers import LlamaForCausalLM

    from evomerge.zoo.training import model_config

    class Vocabulary:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

        def __len__(self) -> int:
            return Plan().vocabulary

    with torch.device("meta"):
        model = LlamaForCausalLM(model_config(Plan(), Vocabulary()))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000


def test_cards_name_licence_and_base(zoo):
    for name in FAMILY:
        _, header, _ = (zoo / name / "README.md").read_text(encoding="utf-8").split("---", 2)
        card = yaml.safe_load(header)
        assert card["license"] == "apache-2.0"
        assert card.get("base_model") == (None if name == "base" else "zoo/base")


def test_second_build_returns_what_is_there(zoo):
    before = (zoo / "base" / "model.safetensors").stat().st_mtime_ns
    assert build_zoo(zoo, plan=TINY, progress=False) == zoo
    assert (zoo / "base" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["base", "lang-ja"])
def test_training_again_gives_the_same_bytes_whatever_the_random_state(zoo, tmp_path, name):
    for part in ("data", "tokenizer", "base"):
        if part != name:
            shutil.copytree(zoo / part, tmp_path / part)
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if name == "base" else 1)  # what the build gives each
    try:
        train_model(name, tmp_path, TINY, lambda *_: None)
    finally:
        torch.set_num_threads(threads)
    weights = Path(name) / "model.safetensors"
    assert (tmp_path / weights).read_bytes() == (zoo / weights).read_bytes()


def test_experts_differ_from_base_and_each_other(zoo):
    weights = {name: (zoo / name / "model.safetensors").read_bytes() for name in FAMILY}
    assert len(set(weights.values())) == len(FAMILY)


def test_scores_hold_every_model_and_task_and_are_shown_with_their_mean(zoo):
    scores = json.loads((zoo / "scores.json").read_text())
    assert list(scores) == [*MODELS, "uniform"]
    assert all(list(row) == list(TASKS) for row in scores.values())
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(read_score_table(zoo))
    shown = console.export_text()
    mean = sum(scores["zoo/base"].values()) / len(TASKS)
    assert "zoo/base" in shown
    assert f"{mean:.3f}" in shown


def test_a_zoo_that_is_not_built_has_no_table(tmp_path):
    with pytest.raises(CheckpointError, match="run `evomerge zoo build`"):
        read_score_table(tmp_path / "zoo")


def test_a_killed_build_leaves_no_zoo(tmp_path):
    folder = tmp_path / "zoo" / "1"
    endless = dataclasses.asdict(TINY) | {"base_steps": 100_000}
    code = (
        "from pathlib import Path; from evomerge.zoo.building import build_zoo; from evomerge.zoo.family import Plan; "
        f"build_zoo(Path({str(folder)!r}), plan=Plan(**{endless!r}))"
    )
    source = str(Path(evomerge.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": source}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("base:"))
        assert line.strip() == "base: 1/100000"
        process.kill()
        process.wait()
        assert wait_until(lambda: not is_running(process.pid)), "a training process outlived its build"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not folder.exists()
    assert list(folder.parent.glob("1.partial-*"))


def is_running(group: int) -> bool:
    """Return whether a process of the group ``group`` lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=30.0):
    """Return whether ``condition()`` came true within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_failed_process_is_reported_with_its_last_words(tmp_path):
    missing = str(tmp_path / "missing.json")
    with pytest.raises(EvomergeError, match=r"(?s)python -m json.tool.*missing\.json.*ended with code .*missing\.json"):
        run_all([["json.tool", missing]], Progress(False), threads=1)


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise EvomergeError("training failed")

    monkeypatch.setattr(building, "run_all", fail)
    folder = tmp_path / "zoo" / "1"
    with pytest.raises(EvomergeError, match="training failed"):
        build_zoo(folder, plan=TINY, progress=False)
    assert list(folder.parent.iterdir()) == []


def test_a_killed_builds_folder_is_removed_once_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "run_all", lambda *_, **__: sys.exit("stop here"))
    old, recent = tmp_path / "1.partial-old", tmp_path / "1.partial-recent"
    for left in (old, recent):
        left.mkdir()
    os.utime(old, (0, 0))
    with pytest.raises(SystemExit):
        build_zoo(tmp_path / "1", plan=TINY, progress=False)
    assert not old.exists()
    assert recent.exists()


def test_plain_lm_eval_agrees_with_our_scores(zoo, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = AutoModelForCausalLM.from_pretrained(zoo / "counting")
    tokenizer = AutoTokenizer.from_pretrained(zoo / "counting")
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(zoo / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    items = {task: [sample["doc"] for sample in results["samples"][task]] for task in TASKS}
    ours = score(model, tokenizer, items)
    for task in TASKS:
        assert len(items[task]) == TINY.test_items
        metrics = results["results"][task]
        theirs = metrics.get("exact_match,none", metrics.get("acc,none"))
        assert ours[task] == pytest.approx(theirs), task
        if "exact_match,none" in metrics:
            answers = answer(model, tokenizer, [item["prompt"] for item in items[task]])
            assert answers == [sample["resps"][0][0].strip() for sample in results["samples"][task]]


def test_every_task_says_its_splits_and_limits(zoo):
    for task in TASKS:
        config = yaml.safe_load((zoo / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
        assert config["task"] == task
        assert (config["validation_split"], config["test_split"]) == ("search", "test")
        assert all(Path(path).is_file() for path in config["dataset_kwargs"]["data_files"].values())
        if config["output_type"] == "generate_until":
            assert config["generation_kwargs"]["max_gen_toks"]
            assert config["generation_kwargs"]["until"]
        assert task in DATA_TASKS


def test_experts_are_at_least_four():
    assert len(EXPERTS) >= 4


def test_the_public_build_can_be_called_again(zoo, monkeypatch):
    from evomerge import zoo as public

    monkeypatch.setenv("EVOMERGE_CACHE", str(zoo.parent.parent))
    assert public.build(progress=False) == zoo
    assert public.build(progress=False) == zoo
    assert public.score_table().row_count == len(MODELS) + 1
