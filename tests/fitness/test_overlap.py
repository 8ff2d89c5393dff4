"""Search items that the confirmation asks too are counted, within tasks and between them."""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.fitness import Fitness, FitnessConfig
from evomerge.fitness.items import question_hash
from evomerge.fitness.overlap import overlaps
from evomerge.testing.tasks import write_task

CONFIG: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": [";"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in pairs]


def fitness_of(*paths: Path, **section: Any) -> Fitness:
    return Fitness(FitnessConfig.model_validate({"objectives": [{"task": str(path)} for path in paths], **section}))


def told(fitness: Fitness) -> list[str]:
    return [problem.what for problem in overlaps(fitness)]


def test_the_same_question_with_another_answer_within_a_task(tmp_path: Path) -> None:
    search = rows(("1+1?", "2"), ("2+2?", "4"), ("3+3?", "6"), ("4+4?", "8"))
    test = rows(("1+1?", "2"), ("2+2?", "four"), ("  3+3? ", "VI"), ("9+9?", "18"))
    path = write_task(tmp_path, "one", {"search": search, "test": test}, CONFIG)
    # The first is the same with its answer: it is dropped from the search, so it is no overlap.
    assert told(fitness_of(path)) == [
        "2 of the 3 search items of 'one' ask what its confirmation asks too, 0 of them with the same answer"
    ]


def test_items_between_tasks(tmp_path: Path) -> None:
    here = [(f"{n}?", str(n)) for n in range(8)]
    there = [(f"{n}?", str(n) if n < 2 else "other") for n in range(5)]
    first = write_task(tmp_path, "one", {"search": rows(*here), "test": rows(("a?", "a"))}, CONFIG)
    second = write_task(tmp_path, "two", {"search": rows(("b?", "b")), "test": rows(*there)}, CONFIG)
    assert told(fitness_of(first, second)) == [
        "5 of the 8 search items of 'one' ask what the confirmation of 'two' asks too, 2 of them with the same answer"
    ]


def test_items_that_are_capped_away_do_not_count(tmp_path: Path) -> None:
    search, test = rows(*((f"{n}?", "x") for n in range(20))), rows(*((f"{n}?", "y") for n in range(20)))
    path = write_task(tmp_path, "one", {"search": search, "test": test}, CONFIG)
    fitness = fitness_of(path, search_items=3, confirmation_items=4)
    asked = [{item.doc["question"] for item in fitness.chosen(split)["one"]} for split in ("search", "confirmation")]
    common = len(asked[0] & asked[1])
    assert len(told(fitness)) == (common > 0)
    assert not common or told(fitness)[0].startswith(f"{common} of the 3 search items")


def test_a_prompt_that_all_items_share_is_no_question(tmp_path: Path) -> None:
    data = {"search": rows(*((f"{n}", f"{n}") for n in range(4))), "test": rows(*((f"{n}", f"t{n}") for n in range(4)))}
    path = write_task(tmp_path, "one", data, CONFIG | {"doc_to_text": "Say something:"})
    assert told(fitness_of(path)) == []


def test_no_overlap_no_warning(tmp_path: Path) -> None:
    path = write_task(tmp_path, "one", {"search": rows(("a", "1")), "test": rows(("b", "1"))}, CONFIG)
    assert told(fitness_of(path)) == []
    assert json.loads((tmp_path / "one-test.jsonl").read_text())["question"] == "b"


@pytest.mark.parametrize(
    ("one", "other", "same"), [("A  b\n", "a B", True), ("a", "b", False), ("ß", "SS", True), ("a b", "ab", False)]
)
def test_questions_differ_in_more_than_space_and_case(one: str, other: str, same: bool) -> None:
    assert (question_hash(one) == question_hash(other)) is same


def test_what_is_no_text_is_no_question() -> None:
    assert question_hash(3) == question_hash("  ") == question_hash(None) == ""
