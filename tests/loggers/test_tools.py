"""Every tool really installed: what is logged is read back with the tool's own reader, across sessions and kills.

TensorBoard comes with the development tools. For the others: pip install 'evomerge[wandb,mlflow,trackio]'.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.loggers import LOGGERS, Ending, Step, ToolRun
from evomerge.loggers.wandb_files import records

TOOLS = ("mlflow", "tensorboard", "trackio", "wandb")
CONFIG = {"budget": {"trials": 9}, "parents": {"a": "org/a"}, "loggers": ["x"]}
ENDING = {"winner/trial": 3, "winner/rule": "best-mean", "winner/acc": 0.75}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

Read = dict[str, list[tuple[int, float]]]


def number(step: int) -> Step:
    """Two hundred genes and what else a trial has."""
    genes = {f"genome/weight[{gene}]": step + gene / 1000 for gene in range(200)}
    return Step(step, {"objective/acc": step / 4, "failed": float(step == 2), **genes}, 1.7e9 + step)


def session(tool: str, folder: Path, begin: int, end: int, *, how: str = "interrupted") -> None:
    """One session in a process of its own: offers all steps up to ``end``, is killed or closed."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tools import CONFIG, ENDING, number
from evomerge.loggers import LOGGERS, Ending, ToolRun
folder = Path({str(folder)!r})
logger = LOGGERS[{tool!r}].open(ToolRun("tiny-1a2b", "tiny", folder, CONFIG))
assert logger.next_step <= {begin}, logger.next_step
for step in range(logger.next_step, {end}):
    logger.log(number(step))
if {how!r} == "killed":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
done = {how!r} == "finished"
logger.close(Ending("finished", ENDING, (folder / "report.html",)) if done else Ending("interrupted"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-9 if how == "killed" else 0), done.stderr


def read_tensorboard(folder: Path) -> Read:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def read_mlflow(folder: Path) -> Read:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("evomerge").experiment_id])
    return {
        name.replace("_", "[", 1).replace("_", "]") if "weight" in name else name: [
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def read_trackio(folder: Path) -> Read:
    code = "import json, trackio; print(json.dumps(trackio.SQLiteStorage.get_logs('evomerge', 'tiny-1a2b')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: Read = {}
    for row in json.loads(done.stdout.splitlines()[-1]):
        for name in row.keys() - {"step", "timestamp"}:
            if not name.startswith("winner/"):
                found.setdefault(name, []).append((row["step"], row[name]))
    return found


def read_wandb(folder: Path) -> Read:
    found: Read = {}
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.setdefault(name, []).append((step, json.loads(item.value_json)))
    return found


def wandb_records(folder: Path) -> list[Any]:
    """Return what wandb's offline files hold, the sessions in order: what `wandb sync` sends."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


READERS: dict[str, Callable[[Path], Read]] = {
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    package = LOGGERS[name].package
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'evomerge[{name}]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "report.html").write_text("<p>the report</p>")
    return name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_every_step_is_there_once_after_two_sessions(tool: str, how: str, tmp_path: Path) -> None:
    session(tool, tmp_path, 0, 5, how=how)
    session(tool, tmp_path, 5, 9, how="finished")
    found = READERS[tool](tmp_path)
    expected = [number(step) for step in range(9)]
    for name in ("objective/acc", "failed", "genome/weight[0]", "genome/weight[199]"):
        assert [step for step, _ in found[name]] == list(range(9)), (tool, name)
        assert [value for _, value in found[name]] == pytest.approx([s.numbers[name] for s in expected], rel=1e-6)


@pytest.mark.slow
def test_the_config_the_winner_and_the_report_arrive(tool: str, tmp_path: Path) -> None:
    session(tool, tmp_path, 0, 4, how="finished")
    texts = everything(tool, tmp_path)
    assert "org/a" in texts
    assert "best-mean" in texts or tool == "trackio"
    assert "0.75" in texts
    assert "report" in texts


def everything(tool: str, folder: Path) -> str:
    """Return all that is not a trial's numbers, as one text."""
    if tool == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        return str([found.Tensors(tag) for tag in found.Tags()["tensors"]])
    if tool == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("evomerge").experiment_id])
        assert run.info.status == "FINISHED"
        return str([run.data.params, run.data.tags, client.list_artifacts(run.info.run_id)])
    if tool == "wandb":
        kinds = ("run", "summary", "artifact")
        return str([record for record in wandb_records(folder) if record.WhichOneof("record_type") in kinds])
    code = (
        "import trackio; s = trackio.SQLiteStorage; "
        "print(s.get_run_config('evomerge', 'tiny-1a2b'), s.get_logs('evomerge', 'tiny-1a2b')[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept = [path.read_bytes() for path in (folder / "trackio" / "artifacts").rglob("*") if path.is_file()]
    return done.stdout + ("report" if b"<p>the report</p>" in kept else "")


def test_nobody_is_asked_for_a_key_in_the_middle_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install 'evomerge[wandb]'")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    code = (
        "from pathlib import Path; from evomerge.loggers import *; LOGGERS['wandb'].open(ToolRun('a', 'a', Path(), {}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert "nobody is logged in: call `wandb login`, or set WANDB_MODE=offline" in done.stderr


def test_tensorboard_writes_a_trial_as_one_event(tmp_path: Path) -> None:
    """The tool of the development tools, in this process: quick."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logger = LOGGERS["tensorboard"].open(ToolRun("tiny-1", "tiny", tmp_path, CONFIG))
    for step in range(3):
        logger.log(number(step))
    logger.close(Ending("interrupted"))
    (path,) = tmp_path.glob("tensorboard/events*")
    events = [event for event in EventFileLoader(str(path)).Load() if len(event.summary.value) > 1]
    assert [(event.step, event.wall_time, len(event.summary.value)) for event in events] == [
        (step, 1.7e9 + step, 202) for step in range(3)
    ]
    assert LOGGERS["tensorboard"].open(ToolRun("tiny-1", "tiny", tmp_path, CONFIG)).next_step == 3
