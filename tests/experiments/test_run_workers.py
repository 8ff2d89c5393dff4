"""The workers of a session of a run."""

import signal
import sys
from types import SimpleNamespace

import pytest
import ray._private.utils

from evomerge.experiments import run_workers
from evomerge.experiments.interrupts import watched
from evomerge.testing.tiny_experiment import SilentDisplay


def test_a_run_that_is_stopped_while_ray_starts_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends the process with a number of its own, in the seconds between its handler's installation and ours."""

    def connect(address: str | None, report: object) -> None:
        ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(number))  # as `ray.init` does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_workers, "connect", connect)
    prepared = SimpleNamespace(experiment=None)
    with watched(lambda text: None) as interrupts:
        workers = run_workers.RunWorkers(prepared, SilentDisplay(), None, interrupts.install)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            workers.pool()
        assert signal.getsignal(signal.SIGTERM) == interrupts._handle
