"""Models on the confirmation items, as reports show them."""

from __future__ import annotations

import dataclasses
import math

from evomerge.experiments.confirmation import Confirmed
from evomerge.experiments.statistics import Estimate
from evomerge.reports.summary import ConfirmedRow, Interval


def confirmed_row(confirmed: Confirmed) -> ConfirmedRow:
    """Return a confirmed model as a row."""
    return ConfirmedRow(
        label=confirmed.label,
        trial=confirmed.trial,
        kind=confirmed.kind,  # type: ignore[arg-type]
        objectives={
            name: _interval(dataclasses.replace(e, value=confirmed.scores[name]))
            for name, e in confirmed.intervals.items()
        },
        mean=_interval(confirmed.mean),
        truncated=confirmed.truncated,
        unextracted=confirmed.unextracted,
        predicted=confirmed.predicted,
    )


def _interval(estimate: Estimate) -> Interval:
    if not math.isfinite(estimate.low):  # a single item
        return Interval(estimate.value, estimate.value, estimate.value, estimate.items)
    return Interval(estimate.value, estimate.low, estimate.high, estimate.items)
