"""What users get wrong: a clear message before any work, and exit code 2."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli import main
from evomerge.testing.tiny_experiment import tiny_experiment


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("prototype")).parent


@pytest.fixture
def folder(prototype: Path, tmp_path: Path) -> Path:
    shutil.copytree(prototype, tmp_path / "mine")
    return tmp_path / "mine"


def call(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["evomerge", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Run the experiment with one thing changed; return the message of the refusal."""

    def run(*, replace: tuple[str, str] | None = None, options: tuple[str, ...] = (), out: str | None = None) -> str:
        file = folder / "experiment.yaml"
        if replace:
            assert replace[0] in file.read_text()
            file.write_text(file.read_text().replace(*replace))
        target = out or str(folder / "run")
        code, output = call("run", str(file), "--out", target, *options, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 2, output
        assert "Traceback" not in output
        assert output.startswith("error: ")
        assert not (folder / "run").exists()
        return output

    return run


def test_a_missing_parent(refused) -> None:
    message = refused(replace=("./models/c", "./models/nowhere"))
    assert "experiment.yaml:3: parents.c: " in message
    assert "models/nowhere': no such folder" in message


def test_a_zoo_name_with_a_slip(refused, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "empty"))
    assert "evomerge zoo build" in refused(replace=("./models/c", "zoo/math-en"))


def test_shapes_that_differ_are_named_with_both(refused, folder) -> None:
    path = folder / "models" / "b" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-4].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    message = refused()
    assert name in message
    assert "44" in message
    assert "48" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_or_inf_in_a_parent_is_found_by_tensor(refused, folder, value) -> None:
    path = folder / "models" / "b" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.tensor(value)
    save_file(tensors, path, metadata={"format": "pt"})
    message = refused()
    assert "NaN or Inf in the weights: model.layers.1.self_attn.q_proj.weight" in message
    assert "models/b" in message


def test_an_unknown_task_says_the_nearest(refused) -> None:
    message = refused(replace=('function: "./score.py:near"', "task: gsm8kk"))
    assert "unknown task 'gsm8kk'" in message
    assert "gsm8k" in message
    assert "experiment.yaml:7" in message


def test_a_function_that_does_not_exist(refused) -> None:
    assert "did you mean 'near'" in refused(replace=("score.py:near", "score.py:neaar"))


def test_a_typo_in_the_file_says_the_line_and_the_nearest_field(refused) -> None:
    message = refused(replace=("budget:", "buget:"))
    assert "experiment.yaml:10: buget: unknown field 'buget'" in message
    assert "did you mean 'budget'?" in message


def test_a_typo_in_the_merge_method(refused) -> None:
    assert "did you mean 'ties'" in refused(replace=("method: ties", "method: tiess"))


def test_all_problems_are_listed_at_once(refused) -> None:
    message = refused(
        replace=("./models/c", "./models/nowhere"), options=("--set", "fitness.objectives.0.function=./score.py:nope")
    )
    assert message.startswith("error: 2 problems:")


def test_an_output_folder_that_cannot_be_written(refused, folder) -> None:
    (folder / "file").write_text("")
    assert "cannot write there" in refused(out=str(folder / "file" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(refused, folder) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert "cannot write there: Permission denied" in refused(out=str(folder / "locked" / "run"))


def test_a_missing_shard(refused, folder) -> None:
    model = folder / "models" / "a"
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = list(load_file(model / "model-00001-of-00002.safetensors"))
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "model-00002-of-00002.safetensors" in refused()


def test_a_truncated_file(refused, folder) -> None:
    path = folder / "models" / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused()


def test_an_experiment_that_does_not_exist(capsys, monkeypatch) -> None:
    code, message = call("run", "quikstart", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "unknown experiment 'quikstart'" in message
    assert "did you mean 'quickstart'?" in message


def test_a_folder_that_holds_no_run(tmp_path, capsys, monkeypatch) -> None:
    for command in ("resume", "status", "report", "front"):
        code, message = call(command, str(tmp_path / "none"), capsys=capsys, monkeypatch=monkeypatch)
        assert code == 1
        assert "holds no run" in message


def test_an_unknown_command(capsys, monkeypatch) -> None:
    code, message = call("rnu", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "did you mean 'run'?" in message) == (2, True)


def test_an_unknown_option(capsys, monkeypatch) -> None:
    code, message = call("run", "x", "--ot", "y", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "--out" in message) == (2, True)
