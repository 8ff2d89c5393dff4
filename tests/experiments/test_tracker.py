"""The tracker: a run's front, best values and quality, trial by trial."""

import numpy as np
import pytest

from evomerge.experiments import fronts
from evomerge.experiments.journal import Trial
from evomerge.experiments.tracker import Tracker
from evomerge.fronts import igd_plus, spread
from evomerge.searchers import ObjectiveSpec

OBJECTIVES = (
    ObjectiveSpec("accuracy", "maximize"),
    ObjectiveSpec("loss", "minimize"),
    ObjectiveSpec("speed", "maximize"),
)
CORNER = {"accuracy": 0.1, "loss": 0.9, "speed": 0.1}


def drawn(count: int) -> list[Trial]:
    """Return trials with few different scores, so that some are equal; every seventh failed."""
    scores = np.random.default_rng(0).integers(0, 7, size=(count, 3)) / 6
    return [
        Trial(
            number, {}, None if number % 7 == 3 else {"accuracy": row[0], "loss": row[1], "speed": row[2]}, f"{number}"
        )
        for number, row in enumerate(scores.tolist())
    ]


def test_the_state_after_every_trial_is_that_of_all_trials_so_far() -> None:
    known = fronts.as_gains(
        [{"accuracy": 1, "loss": 0.5, "speed": 0.5}, {"accuracy": 0.5, "loss": 0, "speed": 1}], OBJECTIVES
    )
    tracker, trials = Tracker(OBJECTIVES, CORNER, known), drawn(60)
    for count, trial in enumerate(trials, start=1):
        before = list(tracker.front)
        tracker.add(trial)
        complete = [t for t in trials[:count] if t.objectives is not None]
        scores = [t.objectives for t in complete]
        assert tracker.front == [complete[row] for row in fronts.front(scores, OBJECTIVES)]
        assert tracker.changed == (tracker.front != before)
        volume = fronts.hypervolume(scores, OBJECTIVES, CORNER)
        assert tracker.hypervolume[-1] == (complete[-1].number, pytest.approx(volume))
        assert len(tracker.hypervolume) == len(complete)
        gains = fronts.as_gains(scores, OBJECTIVES)
        assert tracker.quality.to_json() == pytest.approx(
            {
                "hypervolume": volume,
                "size": len(tracker.front),
                "spread": spread(gains, known) or 0.0,
                "igd_plus": igd_plus(gains, known),
            }
            if len(np.unique(gains[fronts.front(scores, OBJECTIVES)], axis=0)) > 1
            else {"hypervolume": volume, "size": len(tracker.front), "igd_plus": igd_plus(gains, known)}
        )
    assert tracker.failed == sum(trial.failed for trial in trials)
    progress = tracker.progress(60, 0, 1)
    assert [row.number for row in progress.front] == [trial.number for trial in tracker.front]
    assert all(row.on_front for row in progress.front)
    assert progress.hypervolume == tracker.hypervolume[-1][1]


def test_a_failed_trial_leaves_the_quality_as_it_was() -> None:
    tracker = Tracker(OBJECTIVES, CORNER)
    tracker.add(Trial(0, {}, None, "0"))
    assert tracker.quality.to_json() == {"hypervolume": 0.0, "size": 0}
    assert tracker.hypervolume == []
    assert not tracker.changed
