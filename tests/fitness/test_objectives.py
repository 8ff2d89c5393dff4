"""What a `fitness:` section may say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from evomerge.errors import ConfigError
from evomerge.fitness import FitnessConfig, ObjectiveConfig
from evomerge.fitness.objectives import TaskSettings
from evomerge.recipes.yaml import loads, validate


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either `task` or `function`"),
        ({"task": "a", "function": "b:c"}, "either `task` or `function`"),
        (
            {"function": "b:c", "num_fewshot": 1, "filter": "x"},
            "filter, num_fewshot: only for objectives with a `task`",
        ),
        ({"task": "a", "weight": -1.0}, "to minimise a metric set `direction: minimize`"),
        ({"task": "a", "weight": float("nan")}, "a weight is a positive number"),
        ({"task": "a", "items": 0}, "greater than or equal to 1"),
        ({"task": "a", "direction": "up"}, "'maximize' or 'minimize'"),
    ],
)
def test_an_objective_that_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(fields)


def test_a_mistyped_field_is_refused_with_line_and_nearest_name() -> None:
    document = loads("objectives:\n  - task: gsm8k\n    metrik: acc\nbatchsize: 3\n", "fitness.yaml")
    with pytest.raises(ConfigError) as caught:
        validate(FitnessConfig, document)
    text = str(caught.value)
    assert "fitness.yaml:3: objectives[0].metrik: unknown field 'metrik'" in text
    assert "did you mean 'metric'" in text
    assert "did you mean 'batch_size'" in text


def test_settings_that_are_the_tasks_own_leave_its_name_alone() -> None:
    assert TaskSettings.of(ObjectiveConfig(task="gsm8k")).key("gsm8k") == "gsm8k"


def test_settings_are_part_of_the_key() -> None:
    config = ObjectiveConfig(
        task="gsm8k",
        num_fewshot=2,
        apply_chat_template=True,
        system_instruction="hi",
        gen_kwargs={"max_gen_toks": 9},
    )
    assert TaskSettings.of(config).key("gsm8k") == "gsm8k[num_fewshot=2,chat,system=8f4343,max_gen_toks=9]"
