"""Prompts with their expected answers, as `evomerge statistics` shows them to models."""

import pytest

from evomerge.fitness.objectives import TaskSettings
from evomerge.fitness.sources import load_task
from evomerge.fitness.tasks import LmEvalTask
from evomerge.testing.tasks import write_choices, write_sums, write_texts


def built(path):
    return LmEvalTask("tiny", load_task(str(path)), TaskSettings(), confirmation_share=0.5, seed=0)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda folder: write_sums(folder), ("please add 5+1=", " 6")),
        (lambda folder: write_sums(folder, target_delimiter=""), ("please add 5+1=", "6")),
        (lambda folder: write_choices(folder), ("please add 5+1=", "6")),
        (lambda folder: write_texts(folder), ("", "please add 1+1 = 2")),
    ],
)
def test_the_answer_is_the_one_that_the_task_expects(tmp_path, write, expected):
    task = built(write(tmp_path))
    assert task.worked(task.pools["search"][0]) == expected
    prompt, answer = task.worked(task.pools["search"][5])
    left, right = (prompt or answer.replace(" ", "")).partition("=")[0].split("+")
    assert int((prompt + answer).rpartition("=")[2]) == int(left) + int(right)


def test_training_examples_are_neither_search_nor_confirmation_items(tmp_path):
    task = built(write_sums(tmp_path))
    training = {item.content for item in task.training_items()}
    assert len(training) == 12
    assert not training & {item.content for pool in task.pools.values() for item in pool}
