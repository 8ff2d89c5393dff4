"""Weights & Biases. ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE`` and ``WANDB_DIR`` mean what they always do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from evomerge.loggers.base import LOGGERS, PROJECT, Ending, LoggerEntry, LoggerError, Step, ToolRun
from evomerge.loggers.wandb_files import offline_steps

OPEN_SECONDS = 60


class WandbLogger:
    """Continues the tool's run of the same id; offline, its own files tell how far that got."""

    def __init__(self, run: ToolRun) -> None:
        import wandb

        self._wandb, self._id = wandb, run.id
        # What the program was called with, the machine and its packages are not logged: they may hold what is private.
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=OPEN_SECONDS,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        # wandb would ask for the key on the terminal that shows the run.
        if wandb.setup(settings).settings.mode in ("online", "run") and not _has_key(wandb):
            raise LoggerError("nobody is logged in: call `wandb login`, or set WANDB_MODE=offline")
        folder = Path(os.environ.get("WANDB_DIR", run.folder))
        known = offline_steps(folder, run.id)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder),
            id=run.id,
            name=run.id,
            config=dict(run.config),
            resume="allow",
            settings=settings,
        )
        self.next_step = max(known if self._run.offline else 0, int(self._run.starting_step))

    def log(self, step: Step) -> None:
        """Hand a step to wandb's own process."""
        self._run.log(dict(step.numbers), step=step.number)

    def close(self, ending: Ending) -> None:
        """Keep the winner in the run's summary, its files as an artifact, and upload what waits."""
        self._run.summary.update(dict(ending.summary))
        if ending.files:
            artifact = self._wandb.Artifact(f"{self._id}-report", type="report")
            for path in ending.files:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if ending.outcome == "finished" else 1)


def _has_key(wandb: Any) -> bool:
    return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key)


LOGGERS.add("wandb", LoggerEntry("Weights & Biases", "wandb", WandbLogger), origin=__name__)
