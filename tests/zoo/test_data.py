"""The zoo's questions, splits and tokenizer."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.zoo.data import make_dataset, read_split, write_dataset
from evomerge.zoo.family import DATA_TASKS, EXPERTS, FAMILY, TASKS
from evomerge.zoo.tokenizer import train_tokenizer
from evomerge.zoo.world import LANGUAGES, ask, split_of

SIZES = {"train": 300, "search": 60, "test": 60}


@pytest.fixture(scope="module")
def datasets():
    return {task: make_dataset(task, SIZES, seed=0) for task in DATA_TASKS}


@pytest.fixture(scope="module")
def tokenizer(datasets):
    return train_tokenizer((p for d in datasets.values() for p in d["train"]["prompt"]), 640)


def test_no_meaning_is_in_two_splits_in_any_language(datasets):
    meanings = {split: {meaning for data in datasets.values() for meaning in data[split]["meaning"]} for split in SIZES}
    assert not meanings["train"] & meanings["search"]
    assert not meanings["train"] & meanings["test"]
    assert not meanings["search"] & meanings["test"]


def test_prompts_of_a_split_are_different_and_as_many_as_asked(datasets):
    for data in datasets.values():
        for split, size in SIZES.items():
            assert len(set(data[split]["prompt"])) == len(data[split]) == size


def test_data_depends_on_the_seed_alone(datasets):
    random.seed(17)
    again = make_dataset("arithmetic_ja", SIZES, seed=0)
    other = make_dataset("arithmetic_ja", SIZES, seed=1)
    assert all(again[split].to_list() == datasets["arithmetic_ja"][split].to_list() for split in SIZES)
    assert other["test"].to_list() != again["test"].to_list()


@pytest.mark.parametrize("task", DATA_TASKS)
def test_answers_follow_from_meanings(task):
    rng = random.Random(3)
    for _ in range(200):
        question = ask(task, rng)
        kind, *rest = question.meaning
        if kind == "counting":
            expected = {len(rest)}
        else:
            a, b = rest[2:4]
            expected = {"addition": {a + b}, "subtraction": {a - b}, "reading": {a}, "comparison": {a, b}}[kind]
            assert min(expected) >= 0
        assert int(question.answer) in expected
        assert question.prompt.endswith(LANGUAGES[task[-2:]].answer)


def test_every_split_gets_its_share_of_meanings():
    rng = random.Random(5)
    shares = [split_of(ask("counting_en", rng).meaning) for _ in range(2000)]
    assert 0.5 < shares.count("train") / 2000 < 0.7
    assert shares.count("search") > 300
    assert shares.count("test") > 300


def test_written_splits_read_back(tmp_path, datasets):
    data = datasets["counting_en"]
    write_dataset(data, tmp_path / "counting_en")
    rows = read_split(tmp_path / "counting_en", "test")
    assert rows == data["test"].to_list()
    assert json.loads(rows[0]["meaning"])[0] == "counting"


def test_tokenizer_gives_back_every_prompt_of_all_splits(datasets, tokenizer):
    for data in datasets.values():
        for split in SIZES:
            for prompt in data[split]["prompt"]:
                assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_tokenizer_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numbers_are_one_token_and_the_same_in_both_languages(tokenizer):
    for number in range(10):
        (token,) = tokenizer.encode(f" {number}")
        assert token in tokenizer.encode(f"Tom has {number} apples and")
        assert token in tokenizer.encode(f"ケンは リンゴを {number} もっています。")


def test_special_tokens_are_named(tokenizer):
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "</s>")
    assert tokenizer.pad_token_id == 0


def test_no_expert_is_trained_on_japanese_arithmetic_as_its_skill():
    assert "arithmetic_ja" in TASKS
    assert all("arithmetic_ja" not in FAMILY[name].skills for name in EXPERTS)
