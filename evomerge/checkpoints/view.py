"""A checkpoint seen differently: another's folder and config, tensors changed as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint, all_finite
from evomerge.checkpoints.factors import StoredFactors
from evomerge.checkpoints.headers import TensorInfo
from evomerge.errors import CheckpointError


class CheckpointView(Checkpoint):
    """A checkpoint whose tensors come from another one; subclasses change some of them on the way.

    Nothing is stored: a changed tensor is made each time it is asked for.

    Args:
        source: the checkpoint, or view, that is seen.
        name: what messages call it; the source's name by default.
    """

    def __init__(self, source: Checkpoint, name: str | None = None) -> None:
        self.source = source
        self.name = name or source.name
        self.folder: Path = source.folder
        self.config: dict[str, Any] = source.config
        self.tensors: Mapping[str, TensorInfo] = source.tensors
        self.untied = source.untied
        self.transient = source.transient

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name``, shaped and typed as ``tensors`` says.

        Raises:
            CheckpointError: there is no such tensor, or its file is gone.
        """
        return self.source.tensor(name)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The source's folders."""
        return self.source.folders

    def release(self) -> None:
        """Forget what is mapped into memory; tensors handed out stay valid."""
        self.source.release()

    @property
    def fingerprint(self) -> str:
        """The source's fingerprint; a subclass adds what it changes."""
        return self.source.fingerprint


class BesideFiles(CheckpointView):
    """A checkpoint seen with the files that lie beside another's weights: tokenizer, chat template, generation config.

    Args:
        source: has the weights and the config.
        donor: has the files.
    """

    def __init__(self, source: Checkpoint, donor: Checkpoint) -> None:
        super().__init__(source)
        self.folder = donor.folder


class FiniteView(CheckpointView):
    """A checkpoint that refuses to hand out a tensor with NaN or Inf."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name``.

        Raises:
            CheckpointError: it holds NaN or Inf; names the tensor and the model.
        """
        tensor = self.source.tensor(name)
        if not all_finite(tensor):
            raise CheckpointError(f"{self.name}: tensor {name} holds NaN or Inf; use another copy of this model")
        return tensor

    def factors(self, name: str) -> StoredFactors | None:
        """Return the source's factors, which are finite."""
        return self.source.factors(name)
