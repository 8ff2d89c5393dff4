"""Responses survive JSON exactly."""

from __future__ import annotations

import json

from evomerge.fitness import Responses, TaskResponses


def test_responses_read_back_exactly() -> None:
    values = {"acc,none": [1.0, 0.1 + 0.2, None], "f1,none": [[0, 1], [1, [0.5]], [2, "é"]]}
    task = TaskResponses(("0-a", "1-b", "2-c"), values, [True, False, False], None)  # type: ignore[arg-type]
    responses = Responses({"t": task, "u": TaskResponses((), {})}, 0.25, 1.5)
    again = Responses.from_json(responses.to_json())
    assert again == responses
    assert (again.forward_seconds, again.seconds) == (0.25, 1.5)
    assert "\n" not in responses.to_json()


def test_probabilities_of_right_answers_read_back_exactly_and_old_responses_have_none() -> None:
    task = TaskResponses((), {}, gold={"3-é": 0.1 + 0.2, "1-b": 1e-300})
    responses = Responses({"t": task, "u": TaskResponses(("0-a",), {"acc,none": [1.0]})})
    again = Responses.from_json(responses.to_json())
    assert again == responses
    assert (again.tasks["t"].gold, again.tasks["u"].gold) == (task.gold, None)
    assert again != Responses({**responses.tasks, "t": TaskResponses((), {})})
    old = json.loads(responses.to_json())
    for fields in old["tasks"].values():
        del fields["gold"]
    assert Responses.from_json(json.dumps(old)) == Responses({**responses.tasks, "t": TaskResponses((), {})})


def test_equality_is_about_the_responses_and_not_the_time_they_took() -> None:
    assert Responses({}, 1.0, 2.0) == Responses({}, 3.0, 4.0)


def test_shares_are_those_of_the_flags() -> None:
    task = TaskResponses(("a", "b", "c", "d"), {}, [True, False, False, False], [True, True, False, True])
    assert (task.truncated_share, task.unextracted_share) == (0.25, 0.75)
    assert TaskResponses((), {}).truncated_share is None
