"""A pickle that runs a command when it is read, planted in every kind of file: it never is, and the user is told."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from evomerge.cli import main
from evomerge.merging.preparations import SUFFIX, Preparations
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from evomerge.experiments.run import start
    from evomerge.experiments.schema import read_experiment

    folder = tmp_path_factory.mktemp("prototype")
    experiment = read_experiment(str(tiny_experiment(folder)), ["budget.trials=6"])
    assert start(experiment, folder / "run", SilentDisplay()).finished
    ray.shutdown()
    return folder / "run"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Return a function that calls the command line and returns its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone-off")))
    assert (tmp_path / "gone-off").exists()


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("experiment.yaml", ("status", "report", "resume", "export")),
        ("journal.log", ("status", "report", "resume", "export")),
        ("front.jsonl", ("front",)),
        ("confirmation.json", ("report", "export")),
        ("amortized.json", ("front --prefer near=1",)),
    ],
)
def test_a_pickle_in_a_run_folder_is_refused_in_words(
    finished: Path, said: Callable[..., tuple[int, str]], tmp_path: Path, file: str, commands: tuple[str, ...]
) -> None:
    run, trace = tmp_path / "run", tmp_path / "gone-off"
    shutil.copytree(finished, run)
    (run / file).write_bytes(pickle.dumps(Bomb(trace)))
    for command in commands:
        name, *options = command.split()
        more = [str(tmp_path / "model")] if name == "export" else []
        code, text = said(name, str(run), *more, *options)
        assert code in (1, 2), f"{command}: {text}"
        assert "error: " in text
        assert "Traceback" not in text
    assert not trace.exists()


def test_stored_responses_that_are_a_pickle_are_evaluated_anew(finished: Path, tmp_path: Path) -> None:
    from evomerge.experiments.response_store import ResponseStore

    line = b'{"recipe":"abc","items":null,' + pickle.dumps(Bomb(tmp_path / "gone-off")).replace(b"\n", b"") + b"\n"
    (tmp_path / "search.jsonl").write_bytes(line)
    assert list(ResponseStore(tmp_path, "search")) == ["abc"]
    assert ResponseStore(tmp_path, "search").read("abc") is None
    assert not (tmp_path / "gone-off").exists()


@pytest.mark.parametrize("kind", ["bank", "recipe", "yaml tag", "known front", "samples"])
def test_a_pickle_in_what_the_user_is_given_is_refused_in_words(
    kind: str, finished: Path, said: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    trace, folder = tmp_path / "gone-off", finished.parent
    bomb, file = pickle.dumps(Bomb(trace)), tmp_path / "planted"
    if kind == "bank":
        (tmp_path / "planted.yaml").write_bytes(bomb)
        (tmp_path / "planted.safetensors").write_bytes(bomb)
        code, text = said("validate", str(folder / "experiment.yaml"), "--set", f"fitness.estimate.bank={file}")
    elif kind == "recipe":
        file.with_suffix(".yaml").write_bytes(bomb)
        code, text = said("merge", f"{file}.yaml", str(tmp_path / "out"))
    elif kind == "yaml tag":
        file.with_suffix(".yaml").write_text(f"!!python/object/apply:os.mknod ['{trace}']\n")
        code, text = said("merge", f"{file}.yaml", str(tmp_path / "out"))
    elif kind == "known front":
        file.with_suffix(".csv").write_bytes(bomb)
        code, text = said("validate", str(folder / "experiment.yaml"), "--set", f"known_front={file}.csv")
    else:
        file.with_suffix(".npz").write_bytes(bomb)
        code, text = said("calibrate", "--responses", f"{file}.npz", "--out", str(tmp_path / "bank"))
    assert code in (1, 2), text
    assert "Traceback" not in text
    assert not trace.exists()


def test_a_parents_pickled_weights_are_refused_unless_allowed_and_then_only_tensors_are_made(
    finished: Path, said: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    parent, trace = tmp_path / "parent", tmp_path / "gone-off"
    shutil.copytree(finished.parent / "models" / "a", parent, ignore=shutil.ignore_patterns("*.safetensors*"))
    (parent / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb(trace)}, protocol=2))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {parent}}}]\n")
    for options in ([], ["--allow-pickle", str(parent)]):
        code, text = said("merge", str(recipe), str(tmp_path / "out"), *options)
        assert code in (1, 2)
        assert "pickle" in text
        assert "Traceback" not in text
    assert not trace.exists()


def test_a_prepared_state_that_is_a_pickle_is_made_anew(tmp_path: Path) -> None:
    import torch

    folder, trace = tmp_path / "prepared", tmp_path / "gone-off"
    state = torch.arange(50_000.0)
    Preparations(folder).get(("key",), list, lambda: state)
    (file,) = folder.glob(f"*{SUFFIX}")
    file.write_bytes(pickle.dumps(Bomb(trace)))
    assert torch.equal(Preparations(folder).get(("key",), list, lambda: state), state)
    assert not trace.exists()
