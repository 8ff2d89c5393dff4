"""Models taken for another architecture than their config says (mergekit's ``override_architecture``)."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.checkpoints import Checkpoint, CheckpointView, StoredFactors
from evomerge.recipes import Recipe


def override_architecture(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Checkpoint]:
    """Return the checkpoints, those that the recipe gives an architecture with that in their config."""
    if not recipe.override_architecture:
        return checkpoints
    return {
        reference: _Renamed(checkpoint, recipe.override_architecture[reference])
        if reference in recipe.override_architecture
        else checkpoint
        for reference, checkpoint in checkpoints.items()
    }


class _Renamed(CheckpointView):
    def __init__(self, source: Checkpoint, architecture: str) -> None:
        super().__init__(source)
        self.config = {**source.config, "architectures": [architecture]}

    def factors(self, name: str) -> StoredFactors | None:
        return self.source.factors(name)

    @property
    def fingerprint(self) -> str:
        """The source's fingerprint with the architecture, on which tied tensors depend."""
        return f"{self.source.fingerprint}-{self.config['architectures'][0]}"
