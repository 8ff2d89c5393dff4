"""Chaos: a small experiment under faults at random instants, and whether it ends as if nothing had happened.

The experiment is that of `tiny_experiment` with a fitness that takes its time, notes each evaluation, and misbehaves
when a file tells it to. Drivers are real processes of the command line, killed with real signals.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from evomerge.testing.tiny_experiment import EXPERIMENT, tiny_experiment

FITNESS = '''\
"""Takes its time, notes what it does, and raises when it is told to."""

import os
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
TEXTS = [f"item {number}" for number in range(24)]


def near_items():
    return TEXTS


def near(model, tokenizer, items):
    with (HERE / "log").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(SECONDS)
    try:
        (HERE / "raise").unlink()
    except FileNotFoundError:
        pass
    else:
        raise ValueError(f"an error of {time.time_ns()} that passes")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, min(60, model.config.vocab_size), (len(items), 12), generator=generator)
    means = model(input_ids=tokens).logits.mean(dim=(1, 2))
    return [float(torch.tanh(3 * mean + index / 40)) for index, mean in enumerate(means)]


def far_items():
    return TEXTS


def far(model, tokenizer, items):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, min(60, model.config.vocab_size), (len(items), 12), generator=generator)
    return (1 - model(input_ids=tokens).logits.mean(dim=(1, 2)) ** 2).tolist()
'''
WORKERS = 2
TIME_LIMIT = 20  # seconds until a stopped worker counts as hanging
MOST_SESSIONS = 12
STARTING_SECONDS = 12
POLL_SECONDS = 0.05
ENDS = (0, 1, 2, 130, -signal.SIGKILL, -signal.SIGTERM)  # a full disk may be seen before work starts (2)
SETTINGS = f"workers: {{count: {WORKERS}, threads: 1, time_limit: {TIME_LIMIT}, retries: 4}}\n"


@dataclass
class Scene:
    """One experiment in its own folder, and the processes that work on it.

    Args:
        folder: of the experiment and its run.
        seconds: that an evaluation takes at least.
        disk: of the run folder, where it has one that can be filled.
    """

    folder: Path
    seconds: float = 0.2
    disk: Path | None = None
    notes: list[str] = field(default_factory=list)
    allowed: int = 0

    def __post_init__(self) -> None:
        self.experiment = tiny_experiment(self.folder)
        (self.folder / "score.py").write_text(FITNESS.replace("SECONDS", str(self.seconds)), encoding="utf-8")
        self.experiment.write_text(EXPERIMENT + SETTINGS, encoding="utf-8")
        self.run = (self.disk or self.folder) / "run"

    def launch(self) -> subprocess.Popen[str]:
        """Start the run, or resume it."""
        begun = (self.run / "experiment.yaml").exists()
        command = ["resume", str(self.run)] if begun else ["run", str(self.experiment), "--out", str(self.run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.Popen(
            [sys.executable, "-m", "evomerge", *command],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def evaluations(self) -> list[int]:
        """Return the process ids of all evaluations that began, in their order."""
        with suppress(FileNotFoundError):
            return [int(line) for line in (self.folder / "log").read_text(encoding="utf-8").split()]
        return []

    def result(self) -> dict[str, Any]:
        """Return what must not depend on faults: trials, front and confirmation, without times, processes and paths.

        Hashes of recipes are left out, as recipes name the parents by their paths.
        """
        from evomerge.experiments.front_file import read_front
        from evomerge.experiments.journal import Journal
        from evomerge.experiments.run_folder import RunFolder

        run = RunFolder(self.run)
        confirmation = json.loads(run.confirmation.read_text(encoding="utf-8"))
        for row in confirmation["rows"]:
            del row["recipe_hash"]
        text = json.dumps(
            {
                "trials": [
                    [trial.number, trial.genome, trial.objectives, trial.failed]
                    for trial in Journal.read(run.journal).trials()
                ],
                "front": read_front(run.front),
                "confirmation": confirmation,
            }
        )
        result: dict[str, Any] = json.loads(text.replace(str(self.folder), "").replace(str(self.run), ""))
        return result


# --- faults: each does its harm to a running session, and returns how many evaluations it may have cost


def kill_driver(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """SIGKILL."""
    driver.kill()
    return WORKERS


def stop_driver(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """SIGTERM: the trials that workers have begun are finished, the parents' evaluations are not."""
    driver.terminate()
    return WORKERS


def tear_journal(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """SIGKILL, and a last line of the journal of which only a part reached the disk."""
    driver.kill()
    driver.wait()
    journal = scene.run / "journal.log"
    if journal.exists():
        content = journal.read_bytes()
        begin = content.rstrip(b"\n").rfind(b"\n") + 1
        with journal.open("rb+") as file:
            file.truncate(draw.randint(begin, len(content)))
            if draw.random() < 0.3:
                file.seek(0, os.SEEK_END)
                file.write(b"\0" * draw.randint(1, 600))
    return WORKERS


def kill_worker(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """SIGKILL of a worker's process."""
    return _signal_worker(scene, signal.SIGKILL, draw)


def hang_worker(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """A worker that does nothing any more."""
    return _signal_worker(scene, signal.SIGSTOP, draw)


def _signal_worker(scene: Scene, number: int, draw: random.Random) -> int:
    processes = sorted(set(scene.evaluations()[-WORKERS:]))
    if processes:
        _signal(draw.choice(processes), number)
    return 1


def _signal(number: int, signal_number: int) -> None:
    """Send a signal to a process if it is a worker; a process number may be another's by now."""
    with suppress(psutil.Error):
        process = psutil.Process(number)
        if "ray::" in " ".join(process.cmdline()):
            process.send_signal(signal_number)


def raise_error(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """An exception in the user's fitness."""
    (scene.folder / "raise").touch()
    return 1


def fill_disk(scene: Scene, driver: subprocess.Popen[str], draw: random.Random) -> int:
    """No byte left on the run folder's disk until the driver gives up."""
    assert scene.disk is not None
    filler = scene.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    try:
        driver.wait(timeout=180)
    finally:
        filler.unlink()
    return WORKERS


Fault = Callable[[Scene, "subprocess.Popen[str]", random.Random], int]
FAULTS: Mapping[str, Fault] = {
    "driver killed": kill_driver,
    "driver stopped": stop_driver,
    "journal torn": tear_journal,
    "worker killed": kill_worker,
    "worker hangs": hang_worker,
    "exception": raise_error,
    "disk full": fill_disk,
}


def undisturbed(scene: Scene) -> tuple[dict[str, Any], int, float]:
    """Return the result of a run that nothing disturbs, its evaluations, and its seconds."""
    began = time.monotonic()
    driver = scene.launch()
    output, _ = driver.communicate(timeout=900)
    if driver.returncode:
        raise AssertionError(f"the undisturbed run failed:\n{output}")
    return scene.result(), len(scene.evaluations()), time.monotonic() - began


def disturbed(scene: Scene, faults: list[str], draw: random.Random, evaluations: int) -> None:
    """Run to the end under faults.

    Args:
        scene: of the run; its ``notes`` tell what happened when, ``allowed`` how many evaluations that may have cost.
        faults: names from `FAULTS`, one after the other, in as many sessions as it takes; those that the run's end
            comes before do not strike.
        draw: of the instants: one in five while a session starts, the others between evaluations.
        evaluations: of an undisturbed run.

    Raises:
        AssertionError: it does not come to an end.
    """
    pending = list(faults)
    for _ in range(MOST_SESSIONS):
        driver = scene.launch()
        try:
            while pending and _is_reached(scene, driver, draw, evaluations):
                name = pending.pop(0)
                scene.notes.append(f"{name} after {len(scene.evaluations())} evaluations")
                scene.allowed += FAULTS[name](scene, driver, draw)
            output, _ = driver.communicate(timeout=900)
        finally:
            driver.kill()
            for number in set(scene.evaluations()):  # one that was made to hang does not notice that its driver is gone
                _signal(number, signal.SIGKILL)
        if driver.returncode == 0 and (scene.run / "confirmation.json").exists():
            return
        if driver.returncode not in ENDS:
            raise AssertionError(f"the driver ended with {driver.returncode} after {scene.notes}:\n{output}")
        if "Traceback" in output and "that passes" not in output:
            raise AssertionError(f"a traceback after {scene.notes}:\n{output}")
    raise AssertionError(f"not finished after {MOST_SESSIONS} sessions and {scene.notes}; the last one said:\n{output}")


def _is_reached(scene: Scene, driver: subprocess.Popen[str], draw: random.Random, evaluations: int) -> bool:
    """Wait for the instant of the next fault; return whether the driver is still there then."""
    if draw.random() < 0.2:
        return _is_running(driver, draw.uniform(0, STARTING_SECONDS))
    wanted = len(scene.evaluations()) + draw.randint(0, evaluations // 2)
    while len(scene.evaluations()) < wanted:
        if not _is_running(driver, POLL_SECONDS):
            return False
    return _is_running(driver, draw.uniform(0, 2 * scene.seconds))


def _is_running(driver: subprocess.Popen[str], seconds: float) -> bool:
    """Return whether the driver is still there after so many seconds."""
    try:
        driver.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False
