"""MLflow. ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` mean what they always do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.loggers.base import LOGGERS, PROJECT, Ending, LoggerEntry, Step, ToolRun

TAG = "evomerge.run"  # holds the run's id
MARK = "failed"  # logged last of a step: a step that has it is complete
METRICS, PARAMS, LENGTH = 900, 90, 6000  # MLflow's limits: 1000 and 100 a call, 6000 characters a parameter
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowLogger:
    """Finds the tool's run by a tag, so nothing is kept on this side."""

    def __init__(self, run: ToolRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'")
        if found:
            self._run: str = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(experiment, tags={TAG: run.id}, run_name=run.id).info.run_id
            self._log_config(run.config)
        history = self._client.get_metric_history(self._run, MARK)
        self.next_step = 1 + max((metric.step for metric in history), default=-1)

    def log(self, step: Step) -> None:
        """Log a step's numbers as metrics, at the time when the trial ended."""
        from mlflow.entities import Metric

        numbers = sorted(step.numbers.items(), key=lambda pair: pair[0] == MARK)
        metrics = [Metric(_allowed(name), value, round(1000 * step.time), step.number) for name, value in numbers]
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + METRICS])

    def close(self, ending: Ending) -> None:
        """Keep the winner as tags, the files as artifacts, and how the session ended."""
        for name, value in ending.summary.items():
            self._client.set_tag(self._run, _allowed(name), value)
        for path in ending.files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, STATUS[ending.outcome])

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(_allowed(name), str(value)[:LENGTH]) for name, value in _flat(config)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(self._run, params=params[start : start + PARAMS])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and the values that are no mappings."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _allowed(name: str) -> str:
    """Replace the characters that MLflow does not allow in names."""
    return re.sub(r"[^\w\-. /:]", "_", name)


LOGGERS.add("mlflow", LoggerEntry("MLflow", "mlflow", MlflowLogger), origin=__name__)
