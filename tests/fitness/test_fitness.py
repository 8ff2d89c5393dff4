"""The fitness as a whole: objectives, items, and an evaluation that leaves no trace (T7, T10, T11, T13)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from evomerge.errors import ConfigError, FitnessError, Problem
from evomerge.fitness import Fitness, FitnessConfig, Responses
from evomerge.testing.tasks import write_choices, write_sums, write_task, write_texts
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def build(folder: Path, *objectives: dict[str, Any], **fields: Any) -> Fitness:
    """Return a fitness of objectives whose files lie in ``folder``."""
    return Fitness(FitnessConfig(objectives=objectives, **fields), base_folder=folder)


def model_of(seed: int = 0) -> PreTrainedModel:
    """Return a random model whose answers vary."""
    model = tiny_model(tiny_config("llama"), seed)
    for parameter in model.parameters():
        parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a generative, a multiple-choice and a perplexity task."""
    for write in (write_sums, write_choices, write_texts):
        write(tmp_path)
    return tmp_path


SUMS = {"task": "tiny-sums.yaml", "metric": "exact_match,flexible"}
CHOICES = {"task": "tiny-choices.yaml", "metric": "acc"}
TEXTS = {"task": "tiny-texts.yaml"}


def test_objectives_know_key_direction_and_aggregation_without_a_model(folder: Path) -> None:
    fitness = build(folder, SUMS, {**CHOICES, "name": "choices", "weight": 2.0}, TEXTS)
    sums, choices, texts = fitness.objectives
    assert (sums.name, sums.metric, sums.direction) == ("tiny-sums", "exact_match,flexible", "maximize")
    assert (choices.name, choices.weight, choices.aggregation) == ("choices", 2.0, "mean")
    assert (texts.metric, texts.direction) == ("word_perplexity,none", "minimize")
    assert texts.aggregation == "weighted_perplexity"


def test_objectives_of_one_task_share_it_and_are_named_apart(folder: Path) -> None:
    fitness = build(folder, SUMS, {**SUMS, "metric": "exact_match,strict"})
    assert [o.name for o in fitness.objectives] == [
        "tiny-sums/exact_match,flexible",
        "tiny-sums/exact_match,strict",
    ]
    assert list(fitness.items("search")) == ["tiny-sums"]


def test_the_same_task_with_other_settings_is_another_task(folder: Path) -> None:
    fitness = build(folder, SUMS, {**SUMS, "num_fewshot": 2}, {**SUMS, "gen_kwargs": {"max_gen_toks": 1}})
    keys = ["tiny-sums", "tiny-sums[num_fewshot=2]", "tiny-sums[max_gen_toks=1]"]
    assert list(fitness.items("search")) == keys
    responses = fitness.evaluate(model_of(), TOKENIZER, fitness.items("search"))
    assert responses.tasks[keys[0]].items == responses.tasks[keys[1]].items
    assert sum(responses.tasks[keys[2]].truncated or []) > sum(responses.tasks[keys[0]].truncated or [])


def test_every_problem_is_reported_at_once_with_its_place(folder: Path) -> None:
    broken = [
        {"task": "no-such-task.yaml"},
        {**SUMS, "metric": "exact_match"},
        {**CHOICES, "metric": "accuracy"},
        {**CHOICES, "gen_kwargs": {"until": ["x"]}},
        {"function": "nothing"},
        SUMS,
    ]
    with pytest.raises(ConfigError) as caught:
        build(folder, *broken)
    places = [problem.where for problem in caught.value.problems]
    assert places == [
        "fitness.objectives[0].task",
        "fitness.objectives[1]",
        "fitness.objectives[2]",
        "fitness.objectives[3].task",
        "fitness.objectives[4].function",
    ]
    text = str(caught.value)
    assert "'exact_match,strict'" in text
    assert "has no metric 'accuracy'" in text
    assert "does not generate text, so it takes no `gen_kwargs`" in text


def test_places_are_given_by_the_caller(folder: Path) -> None:
    config = FitnessConfig(objectives=[{**CHOICES, "metric": "f"}])
    with pytest.raises(ConfigError, match=r"^x.yaml:7 \('fitness', 'objectives', 0\): task 'tiny-choices'"):
        Fitness(config, base_folder=folder, locate=lambda key: f"x.yaml:7 {key}")


def test_two_objectives_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"objectives\[1\]: two objectives are called 'a'"):
        build(folder, {**SUMS, "name": "a"}, {**CHOICES, "name": "a"})
    with pytest.raises(ConfigError, match="objectives of task 'tiny-sums' differ in `items`"):
        build(folder, {**SUMS, "items": 3}, {**SUMS, "metric": "exact_match,strict"})


def test_a_direction_the_task_does_not_give_must_be_set(folder: Path) -> None:
    path = folder / "tiny-choices.yaml"
    path.write_text(path.read_text().replace("higher_is_better: true", "higher_is_better: null"))
    with pytest.raises(ConfigError, match="does not say which way of 'acc' is better"):
        build(folder, CHOICES)
    assert build(folder, {**CHOICES, "direction": "minimize"}).objectives[0].direction == "minimize"


def test_search_comes_from_the_validation_split_and_confirmation_from_the_test_split(folder: Path) -> None:
    fitness = build(folder, SUMS, TEXTS, search_items=5, confirmation_items=7)
    search, confirmation = fitness.items("search"), fitness.items("confirmation")
    assert {key: len(ids) for key, ids in search.items()} == {"tiny-sums": 5, "tiny-texts": 5}
    assert {key: len(ids) for key, ids in confirmation.items()} == {"tiny-sums": 7, "tiny-texts": 7}
    assert not set(search["tiny-sums"]) & set(confirmation["tiny-sums"])
    assert "7+1" in fitness.prompts()["tiny-sums"] or "5+1" in fitness.prompts()["tiny-sums"]


def test_items_do_not_depend_on_the_other_tasks_and_an_objective_may_cap_its_own(folder: Path) -> None:
    alone = build(folder, SUMS, search_items=6).items("search")["tiny-sums"]
    assert build(folder, TEXTS, CHOICES, SUMS, search_items=6).items("search")["tiny-sums"] == alone
    assert build(folder, {**SUMS, "items": 4}, search_items=6).items("search")["tiny-sums"] == alone[:4]


def test_a_single_evaluation_split_is_split_by_content(tmp_path: Path) -> None:
    rows = [{"text": f"t{n // 2}", "id": n} for n in range(40)]
    fields = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    write_task(tmp_path, "copies", {"test": rows}, fields)
    fitness = build(tmp_path, {"task": "copies.yaml", "metric": "byte_perplexity"}, confirmation_share=0.4)
    sides = [{i.partition("-")[2] for i in fitness.items(split)["copies"]} for split in ("search", "confirmation")]
    assert all(sides)
    assert not sides[0] & sides[1], "two rows with the same content lie on the same side"


def test_the_train_split_is_searched_where_there_is_no_validation_split(tmp_path: Path) -> None:
    rows = {"train": [{"text": "one"}, {"text": "two"}], "test": [{"text": "two"}, {"text": "three"}]}
    fields = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    write_task(tmp_path, "words", rows, fields)
    fitness = build(tmp_path, {"task": "words.yaml", "metric": "byte_perplexity"})
    assert [i[:2] for i in fitness.items("search")["words"]] == ["0-"], "'two' is held out"
    assert len(fitness.items("confirmation")["words"]) == 2


def test_too_little_data_to_split_is_said(tmp_path: Path) -> None:
    fields = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    write_task(tmp_path, "one", {"test": [{"text": "x"}]}, fields)
    with pytest.raises(ConfigError, match=r"has no \w+ items: its data is too small to be split"):
        build(tmp_path, {"task": "one.yaml", "metric": "byte_perplexity"})


def test_an_evaluation_leaves_the_global_random_states_as_they_were(folder: Path) -> None:
    sampled = {**SUMS, "gen_kwargs": {"do_sample": True, "temperature": 1.0}, "num_fewshot": 1}
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    expected = (random.random(), numpy.random.rand(), torch.rand(()).item())
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    fitness = build(folder, sampled, CHOICES)
    first = fitness.evaluate(model_of(), TOKENIZER, fitness.items("search"))
    assert (random.random(), numpy.random.rand(), torch.rand(()).item()) == expected
    assert fitness.evaluate(model_of(), TOKENIZER, fitness.items("search")) == first, "sampling is seeded"


def test_responses_do_not_depend_on_history_or_on_the_order_of_items(folder: Path) -> None:
    objectives = (SUMS, CHOICES, TEXTS, {**SUMS, "num_fewshot": 2})
    fitness, model = build(folder, *objectives, batch_size=5), model_of()
    items = fitness.items("search")
    first = fitness.evaluate(model, TOKENIZER, items)
    fitness.evaluate(model_of(3), TOKENIZER, fitness.items("confirmation"))
    fitness.evaluate(model, TOKENIZER, {key: ids[:3] for key, ids in items.items()})
    assert fitness.evaluate(model, TOKENIZER, items) == first
    backwards = {key: tuple(reversed(ids)) for key, ids in reversed(items.items())}
    assert fitness.evaluate(model, TOKENIZER, backwards) == first
    assert build(folder, *objectives, batch_size=5).evaluate(model, TOKENIZER, items) == first


def test_weights_that_change_in_place_are_seen(folder: Path) -> None:
    fitness, model, other = build(folder, SUMS, TEXTS), model_of(0), model_of(1)
    items = fitness.items("search")
    before = fitness.evaluate(model, TOKENIZER, items)
    for parameter, source in zip(model.parameters(), other.parameters(), strict=True):
        parameter.copy_(source)
    after = fitness.evaluate(model, TOKENIZER, items)
    assert after != before
    assert after == build(folder, SUMS, TEXTS).evaluate(other, TOKENIZER, items)


def test_only_the_asked_items_are_run_and_the_same_item_has_the_same_prompt(folder: Path) -> None:
    fitness = build(folder, {**CHOICES, "num_fewshot": 3})
    (key, ids), *_ = fitness.items("search").items()
    some = fitness.evaluate(model_of(), TOKENIZER, {key: ids[:4]}).tasks[key]
    everything = fitness.evaluate(model_of(), TOKENIZER, {key: ids}).tasks[key]
    assert set(some.items) == set(ids[:4])
    assert some.items == tuple(sorted(ids[:4], key=lambda i: int(i.partition("-")[0])))
    values = dict(zip(everything.items, everything.values["acc,none"], strict=True))
    assert some.values["acc,none"] == [values[i] for i in some.items]


def test_no_item_is_an_example_in_its_own_prompt(tmp_path: Path) -> None:
    rows = [{"text": f"word{n}", "answer": "x"} for n in range(8)]
    fields = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{answer}}"}
    options = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}, "fewshot_split": "search"}
    metric = {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    write_task(tmp_path, "few", {"search": rows, "test": [{"text": "z", "answer": "y"}]}, fields | options | metric)
    fitness = build(tmp_path, {"task": "few.yaml", "num_fewshot": 5})
    fitness.evaluate(model_of(), TOKENIZER, fitness.items("search"))
    task = next(iter(fitness._tasks.values()))
    prompts = [instances[0].args[0] for instances in task._instances.values()]  # type: ignore[attr-defined]
    assert len(prompts) == 8
    for prompt in prompts:
        shown = prompt.replace(" x", "").split("\n\n")
        assert len(shown) == len(set(shown)) == 6


def test_answers_cut_off_and_answers_not_found_are_counted(folder: Path) -> None:
    fitness = build(folder, {**SUMS, "gen_kwargs": {"until": ["1"], "max_gen_toks": 4}}, CHOICES)
    responses = fitness.evaluate(model_of(2), TOKENIZER, fitness.items("search"))
    sums = next(task for key, task in responses.tasks.items() if key.startswith("tiny-sums"))
    assert sums.truncated is not None
    assert sums.unextracted is not None
    assert 0 < sum(sums.unextracted) <= 12
    assert len(sums.truncated) == len(sums.unextracted) == 12
    assert responses.tasks["tiny-choices"].truncated is None
    assert responses.tasks["tiny-choices"].unextracted_share is None


def test_a_generative_task_without_a_token_limit_is_warned_about(folder: Path) -> None:
    write_sums(folder, "endless", generation_kwargs={"until": [";"]})
    endless = {"task": "endless.yaml", "metric": "exact_match,strict"}
    assert "sets no max_gen_toks" in build(folder, endless, SUMS).warnings[0].what
    write_sums(folder, "plain", generation_kwargs=None)
    assert len(build(folder, {**endless, "task": "plain.yaml"}).warnings) == 1
    assert build(folder, {**endless, "gen_kwargs": {"max_new_tokens": 3}}, SUMS, CHOICES).warnings == ()


def test_a_token_limit_replaces_the_tasks_own_whatever_it_is_called(folder: Path) -> None:
    fitness = build(folder, {**SUMS, "gen_kwargs": {"max_new_tokens": 1}})
    fitness.evaluate(model_of(), TOKENIZER, fitness.items("search"))
    task: Any = next(iter(fitness._tasks.values()))
    assert task._task.config.generation_kwargs == {"until": [";"], "do_sample": False, "max_new_tokens": 1}


def test_scores_are_means_or_the_tasks_own_aggregation(folder: Path) -> None:
    fitness = build(folder, CHOICES, TEXTS)
    responses = fitness.evaluate(model_of(), TOKENIZER, fitness.items("search"))
    scores = fitness.score(responses)
    accuracies = responses.tasks["tiny-choices"].values["acc,none"]
    assert scores["tiny-choices"] == sum(accuracies) / 12  # type: ignore[arg-type]
    pairs: Any = responses.tasks["tiny-texts"].values["word_perplexity,none"]
    expected = numpy.exp(-sum(p[0] for p in pairs) / sum(p[1] for p in pairs))
    assert scores["tiny-texts"] == pytest.approx(expected)
    assert fitness.score(Responses.from_json(responses.to_json())) == scores


def test_missing_responses_are_said(folder: Path) -> None:
    fitness = build(folder, CHOICES, TEXTS)
    with pytest.raises(FitnessError, match="no responses to task 'tiny-choices'"):
        fitness.score(Responses({}))
    with pytest.raises(FitnessError, match="no task 'x' in this fitness; its tasks: tiny-choices, tiny-texts"):
        fitness.evaluate(model_of(), TOKENIZER, {"x": ["0-aaaaaaaa"]})
    with pytest.raises(FitnessError, match="has no item '0-aaaaaaaa'"):
        fitness.evaluate(model_of(), TOKENIZER, {"tiny-texts": ["0-aaaaaaaa"]})


def test_nan_weights_and_a_failing_model_are_errors_that_name_the_task(folder: Path) -> None:
    fitness, model = build(folder, SUMS, CHOICES), model_of()
    model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    for key, ids in fitness.items("search").items():
        with pytest.raises(FitnessError, match=f"task '{key}': the model's scores hold NaN or infinity"):
            fitness.evaluate(model, TOKENIZER, {key: ids})
    model.model.layers[0].mlp.forward = None  # type: ignore[assignment]
    with pytest.raises(FitnessError, match="task 'tiny-sums': the evaluation failed with TypeError"):
        fitness.evaluate(model, TOKENIZER, fitness.items("search"))


def test_prompts_show_few_shots_chat_template_and_system_instruction(folder: Path) -> None:
    fitness = build(
        folder,
        SUMS,
        {**SUMS, "num_fewshot": 1, "apply_chat_template": True, "system_instruction": "be brief."},
    )
    plain, chat = fitness.prompts(TOKENIZER).values()
    assert plain.endswith("=")
    assert chat.startswith("be brief.\n")
    assert chat.endswith(f"{plain}\n")
    assert chat.count("\n") == 4
    assert fitness.problems(TOKENIZER) == []
    bare = tiny_tokenizer()
    bare.chat_template = None
    assert fitness.problems(bare) == [
        Problem(
            f"task {list(fitness.items('search'))[1]!r} asks for a chat template, and the tokenizer has none",
            "",
            "drop `apply_chat_template`, or add a chat template to the base's tokenizer",
        )
    ]


def test_time_inside_the_model_is_measured(folder: Path) -> None:
    fitness = build(folder, SUMS, CHOICES)
    model = model_of()
    responses = fitness.evaluate(model, TOKENIZER, fitness.items("search"))
    assert 0 < responses.forward_seconds < responses.seconds
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
