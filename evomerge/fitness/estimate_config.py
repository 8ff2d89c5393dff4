"""What the ``estimate:`` part of a `fitness:` section may say: scores from a few items instead of all (docs/irt.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.fitness.irt.names import Choice, Kind


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationConfig(_Strict):
    """How the run makes its own item banks: from all responses of the parents and of random merges."""

    models: int = Field(default=12, ge=4, description="random merges to evaluate on all search items")
    model: Literal["rasch", "2pl", "3pl"] = Field(default="2pl", description="the response model")
    dimensions: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default=1, description="abilities a model has")
    seed: int = Field(default=0, ge=0, description="of the random merges")


class AdaptiveConfig(_Strict):
    """Items in batches until the candidate is clearly dominated, chosen by its responses unless they rotate."""

    batch: int = Field(default=5, ge=1, description="items of each task asked at a time")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="how probably a trial of the front must dominate the candidate"
    )


class SoftConfig(_Strict):
    """The probability of the right answer, on the items asked and on others, as a control variate."""

    items: int | None = Field(default=None, ge=0, description="others of each task; all search items if left out")


class EstimateConfig(_Strict):
    """Scores estimated from a few items of each task.

    Attributes:
        kind: the estimator.
        items: asked of each task in a trial; with ``adaptive``, at most.
        choice: how these are chosen; ``rotating`` gives each recipe others, one of each layer of items of like
            difficulty, so that errors of like recipes are not alike.
        smooth: weigh a trial's estimate against those of trials with like genomes.
        bank: an item bank or a folder of them, from `evomerge calibrate`; left out, the run makes its own.
        calibration: how it does.
        adaptive: ask in batches, and stop early.
        soft: use the probability of right answers too.
    """

    kind: Kind = "gmp-irt"
    items: int = Field(default=20, ge=2)
    choice: Choice | Literal["rotating"] = "rotating"
    smooth: bool = True
    bank: str | None = None
    calibration: CalibrationConfig = CalibrationConfig()
    adaptive: AdaptiveConfig | None = None
    soft: SoftConfig | None = None

    @property
    def method(self) -> str:
        """What reports call it."""
        return f"{self.kind}, smoothed over genomes," if self.smooth else self.kind
