"""Conditions: trials from other devices or batches are noticed, and nothing else is."""

from dataclasses import replace

from evomerge.experiments.conditions import Condition, Conditions, counted, warning
from evomerge.experiments.journal import Trial

TRIAL = Trial(0, {}, {"a": 1.0}, "h", device="cpu (1 threads)", batch_size=64)
HALVED = replace(TRIAL, number=1, batch_size=32)
FAILED = Trial(2, {}, None, "h", error="no", device="elsewhere")
CACHED = replace(TRIAL, number=3, device="elsewhere", cached=True)


def test_another_condition_is_told_once() -> None:
    notes: list[str] = []
    conditions = Conditions(notes.append)
    for trial in (TRIAL, TRIAL, FAILED, CACHED, HALVED, HALVED, TRIAL):
        conditions.check(trial)
    assert notes == [
        "trial 1 was evaluated on cpu (1 threads), batches of 32, others on cpu (1 threads), batches of 64: "
        "scores may differ in the last digits"
    ]


def test_conditions_are_counted() -> None:
    counts = counted([TRIAL, TRIAL, FAILED, CACHED, HALVED])
    assert counts == {Condition("cpu (1 threads)", 64): 2, Condition("cpu (1 threads)", 32): 1}
    assert warning(counts).startswith("2 trials on cpu (1 threads), batches of 64, 1 trials on cpu")
    assert warning(counted([TRIAL, FAILED])) == ""
    assert str(Condition("cpu (1 threads)", 0)) == "cpu (1 threads)"
