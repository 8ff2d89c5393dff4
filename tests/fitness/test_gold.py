"""The probability of the right answer, against plain forward passes and softmaxes of transformers alone."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evomerge.checkpoints import zoo_folder
from evomerge.errors import FitnessError
from evomerge.fitness import Fitness, FitnessConfig, Responses
from evomerge.fitness.gold import Expected, expected_answers, probabilities
from evomerge.testing.tasks import write_choices, write_sums, write_task, write_texts
from evomerge.testing.tiny_models import tiny_config, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SUMS = {"task": "tiny-sums.yaml", "metric": "exact_match,flexible"}
CHOICES = {"task": "tiny-choices.yaml", "metric": "acc"}
MEAN = {"aggregation": "mean", "higher_is_better": True}
NAMED = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["a", "b", "1"],
    "metric_list": [{"metric": "acc", **MEAN}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "generation_kwargs": {"until": [";"], "max_gen_toks": 2},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}


def build(folder: Path, *objectives: dict[str, Any], **fields: Any) -> Fitness:
    """Return a fitness of objectives whose files lie in ``folder``."""
    return Fitness(FitnessConfig(objectives=objectives, **fields), base_folder=folder)


def lively(seed: int = 0) -> PreTrainedModel:
    """Return a random model whose answers vary."""
    model = tiny_model(tiny_config("llama"), seed)
    for parameter in model.parameters():
        parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def log_probabilities(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return the log-probability of each of the answer's tokens after the prompt's, from one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    return torch.log_softmax(logits, -1)[torch.arange(len(prompt) - 1, len(prompt + answer) - 1), torch.tensor(answer)]


def spoken(model: PreTrainedModel, prompt: str, answer: str) -> float:
    """Return the geometric mean of the probabilities of the answer's characters, each of which is a token."""
    return log_probabilities(model, TOKENIZER.encode(prompt) or [1], TOKENIZER.encode(answer)).mean().exp().item()


def documents(fitness: Fitness) -> dict[str, dict[str, Any]]:
    """Return the search items' documents by id, of the first task."""
    return {item.id: item.doc for item in next(iter(fitness._tasks.values())).pools["search"]}


def golds(fitness: Fitness, model: PreTrainedModel) -> dict[str, float]:
    """Return the probabilities of all search items of the first task."""
    key, ids = next(iter(fitness.items("search").items()))
    found = fitness.evaluate(model, TOKENIZER, {}, {key: ids}).tasks[key]
    assert (found.items, found.values, found.truncated) == ((), {}, None)
    assert set(found.gold or {}) == set(ids)
    return found.gold or {}


@pytest.mark.parametrize("delimiter", ["", " "])
def test_a_generated_answer_has_the_geometric_mean_of_its_tokens_probabilities(tmp_path: Path, delimiter: str) -> None:
    write_sums(tmp_path, items=24, target_delimiter=delimiter)
    fitness, model = build(tmp_path, SUMS, batch_size=5), lively()
    lengths = set()
    for identifier, probability in golds(fitness, model).items():
        doc = documents(fitness)[identifier]
        answer = delimiter + doc["answer"]
        assert probability == pytest.approx(spoken(model, doc["question"] + "=", answer), rel=1e-4)
        if len(answer) == 1:  # one token: the probability itself
            tokens = torch.tensor([TOKENIZER.encode(doc["question"] + "=")])
            with torch.no_grad():
                plain = torch.softmax(model(tokens).logits[0, -1], -1)[TOKENIZER.convert_tokens_to_ids(answer)]
            assert probability == pytest.approx(plain.item(), rel=1e-4)
        lengths.add(len(answer))
    assert lengths == ({1, 2} if not delimiter else {2, 3})


def test_a_choice_has_its_share_of_the_softmax_over_all_choices(tmp_path: Path) -> None:
    write_choices(tmp_path, items=24)
    fitness, model = build(tmp_path, CHOICES, batch_size=5), lively()
    for identifier, probability in golds(fitness, model).items():
        doc = documents(fitness)[identifier]
        prompt = TOKENIZER.encode(doc["question"] + "=")
        sums = [log_probabilities(model, prompt, TOKENIZER.encode(choice)).sum() for choice in doc["choices"]]
        assert probability == pytest.approx(torch.softmax(torch.stack(sums), 0)[doc["gold"]].item(), rel=1e-4)


def test_accuracy_and_probability_speak_of_the_same_choice(tmp_path: Path) -> None:
    """A choice with more than half of the probability is the one that lm-eval calls chosen."""
    write_choices(tmp_path, items=24)
    fitness, model = build(tmp_path, CHOICES), lively()
    items = fitness.items("search")
    found = fitness.evaluate(model, TOKENIZER, items, items).tasks["tiny-choices"]
    clear = [
        (found.gold[item] > 0.5, value)
        for item, value in zip(found.items, found.values["acc,none"], strict=True)
        if found.gold and not 1 / 3 <= found.gold[item] <= 0.5
    ]
    assert len(clear) > 10
    assert {right for right, _ in clear} == {True, False}
    assert all(float(right) == value for right, value in clear)


def test_a_loglikelihood_task_has_the_mean_over_its_answer(tmp_path: Path) -> None:
    rows = [{"text": f"say {word}", "next": word} for word in ("h", "ho", "yes", "no1", "a b")]
    fields = {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": " {{next}}"}
    metric = {"metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]}
    write_task(tmp_path, "say", {"search": rows, "test": [{"text": "x", "next": "y"}]}, fields | metric)
    fitness, model = build(tmp_path, {"task": "say.yaml"}), lively()
    items = fitness.items("search")
    found = fitness.evaluate(model, TOKENIZER, items, items).tasks["say"]
    for item, total in zip(found.items, found.values["perplexity,none"], strict=True):
        answer = " " + documents(fitness)[item]["next"]
        assert found.gold is not None
        assert found.gold[item] == pytest.approx(spoken(model, documents(fitness)[item]["text"], answer), rel=1e-4)
        assert found.gold[item] == pytest.approx(math.exp(total / len(answer)), rel=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("shots", [0, 2])
def test_the_answer_follows_the_very_prompt_that_the_model_answers(tmp_path: Path, shots: int) -> None:
    """After a chat template neither the delimiter nor the template's last line break is part of the answer."""
    write_sums(tmp_path)
    chat = {"num_fewshot": shots, "apply_chat_template": True, "system_instruction": "be brief."}
    fitness, model = build(tmp_path, {**SUMS, **chat}), lively()
    found = golds(fitness, model)
    task: Any = next(iter(fitness._tasks.values()))
    for identifier, probability in found.items():
        (request,) = task._instances[identifier]
        prompt = request.args[0]
        assert prompt.endswith("=\n")
        assert prompt.count("=\n") == 1 + shots
        assert probability == pytest.approx(spoken(model, prompt, documents(fitness)[identifier]["answer"]), rel=1e-4)


def test_few_shots_are_those_of_the_tasks_own_requests(tmp_path: Path) -> None:
    write_sums(tmp_path, target_delimiter=" ")
    fitness, model = build(tmp_path, {**SUMS, "num_fewshot": 2}), lively()
    (key, ids), *_ = fitness.items("search").items()
    found = golds(fitness, model)
    again = build(tmp_path, {**SUMS, "num_fewshot": 2})
    again.evaluate(model, TOKENIZER, {key: ids})
    task: Any = next(iter(again._tasks.values()))
    for identifier, probability in found.items():
        prompt = task._instances[identifier][0].args[0]
        assert prompt.count("\n\n") == 2
        assert probability == pytest.approx(
            spoken(model, prompt, " " + documents(again)[identifier]["answer"]), rel=1e-4
        )


def test_several_right_choices_add_up_and_of_several_right_texts_the_likeliest_counts(tmp_path: Path) -> None:
    rows = [{"question": q, "right": [0, 2] if n % 2 else [1], "texts": ["a", "b1"]} for n, q in enumerate("abcdefghk")]
    split = {"search": rows[1:], "test": rows[:1]}
    write_task(tmp_path, "many", split, {**NAMED, "doc_to_target": "right"})
    fitness, model = build(tmp_path, {"task": "many.yaml"}), lively()
    for identifier, probability in golds(fitness, model).items():
        doc = documents(fitness)[identifier]
        prompt = TOKENIZER.encode(doc["question"])
        answers = [TOKENIZER.encode(" " + choice) for choice in ("a", "b", "1")]
        sums = torch.stack([log_probabilities(model, prompt, answer).sum() for answer in answers])
        assert probability == pytest.approx(torch.softmax(sums, 0)[doc["right"]].sum().item(), rel=1e-4)
    write_task(tmp_path, "texts", split, {**WRITTEN, "doc_to_target": "texts", "target_delimiter": ""})
    fitness = build(tmp_path, {"task": "texts.yaml"})
    likeliest = set()
    for identifier, probability in golds(fitness, model).items():
        each = [spoken(model, documents(fitness)[identifier]["question"], text) for text in ("a", "b1")]
        assert probability == pytest.approx(max(each), rel=1e-4)
        likeliest.add(each.index(max(each)))
    assert likeliest == {0, 1}, "both must be the likeliest somewhere for the comparison to mean something"


def test_the_choice_may_stand_in_the_prompt_as_in_winogrande(tmp_path: Path) -> None:
    rows = [{"question": f"{n}", "gold": n % 3, "prompts": ["a", f"b{n}", "1"]} for n in range(6)]
    fields = {"doc_to_text": "{{gold}}", "doc_to_choice": "{{prompts}}", "doc_to_target": "end {{question}}"}
    write_task(tmp_path, "blank", {"search": rows[:5], "test": rows[5:]}, NAMED | fields)
    fitness, model = build(tmp_path, {"task": "blank.yaml"}), lively()
    for identifier, probability in golds(fitness, model).items():
        doc = documents(fitness)[identifier]
        answer = TOKENIZER.encode(f" end {doc['question']}")
        sums = [log_probabilities(model, TOKENIZER.encode(prompt), answer).sum() for prompt in doc["prompts"]]
        assert probability == pytest.approx(torch.softmax(torch.stack(sums), 0)[doc["gold"]].item(), rel=1e-4)


def test_choices_may_be_named_by_their_text_and_mutual_information_changes_nothing(tmp_path: Path) -> None:
    rows = [{"question": f"a{n}", "gold": n % 3, "name": ["a", "b", "1"][n % 3]} for n in range(6)]
    split = {"search": rows[:5], "test": rows[5:]}
    metrics = {"metric_list": [{"metric": name, **MEAN} for name in ("acc", "acc_mutual_info")]}
    write_task(tmp_path, "number", split, {**NAMED, "doc_to_target": "{{gold}}"})
    write_task(tmp_path, "name", split, {**NAMED, **metrics, "doc_to_target": "name"})
    by_number = golds(build(tmp_path, {"task": "number.yaml"}), lively())
    by_name = golds(build(tmp_path, {"task": "name.yaml", "metric": "acc"}), lively())
    assert list(by_name.values()) == list(by_number.values())


def test_a_generative_task_may_name_its_answer_among_choices(tmp_path: Path) -> None:
    rows = [{"question": f"a{n}", "gold": n % 3} for n in range(6)]
    fields = {"doc_to_choice": ["a", "b", "1"], "doc_to_target": "{{gold}}"}
    write_task(tmp_path, "pick", {"search": rows[:5], "test": rows[5:]}, WRITTEN | fields)
    fitness, model = build(tmp_path, {"task": "pick.yaml"}), lively()
    for identifier, probability in golds(fitness, model).items():
        doc = documents(fitness)[identifier]
        assert probability == pytest.approx(spoken(model, doc["question"], " " + "ab1"[doc["gold"]]), rel=1e-4)


def test_tokens_that_the_answer_changes_count_with_it() -> None:
    """Prompt and answer that share a token: it is scored whole, after what stands before it."""
    lm: Any = build_lm()
    pieces = {"x ": [5, 6], "x 9": [5, 7], "": [], "9": [8], "x": [5], "x9": [5, 8]}
    lm.tok_encode = lambda text, *_: pieces[text]
    assert lm._encode_answer("x ", "9") == ([5], [7])
    assert lm._encode_answer("x", "9") == ([5], [8])
    assert lm._encode_answer("", "9") == ([lm.prefix_token_id], [8])


def build_lm() -> Any:
    """Return a resident language model."""
    from evomerge.fitness.language_model import ResidentLM

    return ResidentLM(lively(), TOKENIZER, batch_size=4, max_length=64)


def test_items_and_gold_do_not_change_each_others_numbers_nor_does_history(tmp_path: Path) -> None:
    for write in (write_sums, write_choices, write_texts):
        write(tmp_path)
    sampled = {**SUMS, "gen_kwargs": {"do_sample": True, "temperature": 1.0}}
    objectives = (CHOICES, sampled, {"task": "tiny-texts.yaml"})
    fitness, model = build(tmp_path, *objectives, batch_size=5), lively()
    items = fitness.items("search")
    keys = [key for key in items if key != "tiny-texts"]
    gold = {key: items[key][3:] + fitness.items("confirmation")[key] for key in keys}
    plain = fitness.evaluate(model, TOKENIZER, items)
    both = fitness.evaluate(model, TOKENIZER, items, gold)
    alone = fitness.evaluate(model, TOKENIZER, {}, gold)
    assert set(alone.tasks) == set(keys)
    for key, task in both.tasks.items():
        assert (task.items, task.values, task.truncated) == (
            plain.tasks[key].items,
            plain.tasks[key].values,
            plain.tasks[key].truncated,
        )
        assert task.gold == (alone.tasks[key].gold if key in keys else None)
    for key in keys:
        assert set(both.tasks[key].gold or {}) == set(gold[key])
        assert all(0.0 <= probability <= 1.0 for probability in (both.tasks[key].gold or {}).values())
    fitness.evaluate(lively(3), TOKENIZER, {}, {keys[0]: items[keys[0]]})
    fitness.evaluate(model, TOKENIZER, {}, {key: ids[:2] for key, ids in gold.items()})
    backwards = {key: tuple(reversed(ids)) * 2 for key, ids in reversed(gold.items())}
    again = fitness.evaluate(model, TOKENIZER, items, backwards)
    assert again == both
    assert again.to_json().partition("forward_seconds")[0] == both.to_json().partition("forward_seconds")[0]
    assert build(tmp_path, *objectives, batch_size=5).evaluate(model, TOKENIZER, items, gold) == both
    assert Responses.from_json(both.to_json()) == both
    assert fitness.evaluate(model, TOKENIZER, {}, {keys[0]: ()}).tasks == {}


def test_gold_leaves_random_states_and_renders_and_tokenises_each_item_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sums(tmp_path)
    fitness, model = build(tmp_path, {**SUMS, "num_fewshot": 1}), lively()
    (key, ids), *_ = fitness.items("search").items()
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(5)
    expected = (random.random(), numpy.random.rand(), torch.rand(()).item())
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(5)
    first = fitness.evaluate(model, TOKENIZER, {}, {key: ids})
    assert (random.random(), numpy.random.rand(), torch.rand(()).item()) == expected
    assert 0 < first.forward_seconds < first.seconds
    task: Any = next(iter(fitness._tasks.values()))
    monkeypatch.setattr(task, "_requests", None)
    resident: Any = fitness._residents[-1]
    monkeypatch.setattr(type(resident.lm.tokenizer), "encode", None)
    assert fitness.evaluate(model, TOKENIZER, {}, {key: ids}) == first
    monkeypatch.undo()
    evaluated = fitness.evaluate(model, TOKENIZER, {key: ids}, {key: ids[:2]})
    assert len(evaluated.tasks[key].items) == len(ids)


def test_one_forward_pass_a_batch_and_no_generation(tmp_path: Path) -> None:
    write_sums(tmp_path, target_delimiter="")
    fitness, model = build(tmp_path, SUMS, batch_size=5), lively()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    golds(fitness, model)
    assert len(passes) == 3  # 12 items


def test_what_has_no_right_answer_is_said_before_and_during_an_evaluation(tmp_path: Path) -> None:
    for write in (write_sums, write_choices, write_texts):
        write(tmp_path)
    (tmp_path / "judge.py").write_text("def judge(model, tokenizer):\n    return 1.0\n")
    (tmp_path / "own.py").write_text("def decide(doc, results):\n    return {'acc': 1.0}\n")
    rows = [{"question": f"a{n}", "gold": n % 3, "label": -1 if n else 1, "text": " "} for n in range(9)]
    split = {"search": rows[:5], "test": rows[5:]}
    write_task(tmp_path, "hidden", split, {**NAMED, "doc_to_target": "label"})
    write_task(tmp_path, "empty", split, {**WRITTEN, "doc_to_target": "text"})
    write_task(tmp_path, "own", split, {**NAMED, "doc_to_target": 0})
    path = tmp_path / "own.yaml"
    path.write_text(path.read_text() + "process_results: !function own.decide\n")
    names = ("tiny-texts.yaml", "hidden.yaml", "empty.yaml", "own.yaml")
    judged = {"function": "./judge.py:judge"}
    fitness = build(tmp_path, SUMS, CHOICES, judged, *({"task": name} for name in names))
    assert fitness.gold_problems(["tiny-sums", "tiny-choices"]) == []
    keys = ["tiny-texts", "own", "hidden", "empty", "./judge.py:judge"]
    problems = fitness.gold_problems(keys)
    hidden, empty = (fitness._tasks[key].pools["search"] for key in ("hidden", "empty"))
    assert [problem.what for problem in problems] == [
        "task 'tiny-texts' measures whole texts: no answer to them is the right one",
        "task 'own' does not say which answers are right: its process_results decides",
        f"task 'hidden' does not say which answer to item {hidden[1].id} is right",
        f"task 'empty' does not say which answer to item {empty[0].id} is right",
        "function './judge.py:judge' names no right answers, so they have no probability",
    ]
    assert all(problem.suggestion for problem in problems)
    for key, problem in zip(keys, problems, strict=True):
        ids = fitness.items("search")[key]
        with pytest.raises(FitnessError) as caught:
            fitness.evaluate(lively(), TOKENIZER, {}, {key: ids})
        assert str(caught.value).rpartition("item")[0] == problem.what.rpartition("item")[0]
    assert fitness.evaluate(lively(), TOKENIZER, {}, {"hidden": [hidden[0].id]}).tasks["hidden"].gold
    with pytest.raises(FitnessError, match="no task 'x' in this fitness"):
        fitness.gold_problems(["x"])
    with pytest.raises(FitnessError, match="no task 'x' in this fitness"):
        fitness.evaluate(lively(), TOKENIZER, {}, {"x": ["0-aaaaaaaa"]})
    with pytest.raises(FitnessError, match="task 'tiny-sums' has no item '0-aaaaaaaa'"):
        fitness.evaluate(lively(), TOKENIZER, {}, {"tiny-sums": ["0-aaaaaaaa"]})


def test_a_task_with_requests_of_its_own_does_not_say_which_answer_is_right() -> None:
    requests: Any = [SimpleNamespace(request_type="loglikelihood", args=("a", "b"))] * 2
    task: Any = SimpleNamespace(OUTPUT_TYPE="loglikelihood")
    assert expected_answers(task, {}, requests, chat=False) is None
    assert expected_answers(task, {}, requests[:1], chat=False) == Expected((("a", "b"),), (0,))


def test_nan_and_impossible_choices_are_errors_and_not_numbers(tmp_path: Path) -> None:
    write_sums(tmp_path)
    write_choices(tmp_path)
    fitness, model = build(tmp_path, SUMS, CHOICES), lively()
    model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    for key, ids in fitness.items("search").items():
        with pytest.raises(FitnessError, match=f"task '{key}': the model's scores hold NaN or infinity"):
            fitness.evaluate(model, TOKENIZER, {}, {key: ids})
    impossible: Any = SimpleNamespace(loglikelihood=lambda requests: [(-math.inf, False) for _ in requests])
    with pytest.raises(FitnessError, match="no probability to any choice"):
        probabilities(impossible, [Expected((("a", "b"), ("a", "c")), (0,), among_choices=True)])


@pytest.mark.skipif(not zoo_folder().exists(), reason="the zoo is not built: run `evomerge zoo build`")
@pytest.mark.parametrize("name", ["base", "lang-ja"])
def test_on_real_sums_the_probability_tells_right_answers_from_wrong_ones(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(zoo_folder() / name)
    tokenizer = AutoTokenizer.from_pretrained(zoo_folder() / name)
    fitness = Fitness(FitnessConfig(objectives=[{"task": str(zoo_folder() / "tasks" / "arithmetic_ja.yaml")}]))
    key = "arithmetic_ja"
    ids = fitness.items("search")[key][:200]
    found = fitness.evaluate(model, tokenizer, {key: ids}, {key: ids}).tasks[key]
    gold = found.gold or {}
    right = [gold[item] for item, value in zip(found.items, found.values["exact_match,none"], strict=True) if value]
    wrong = [gold[item] for item, value in zip(found.items, found.values["exact_match,none"], strict=True) if not value]
    assert min(len(right), len(wrong)) > 50
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert sum(pairs) / len(pairs) > 0.9  # the area under the curve; 0.5 would be none at all
    correct = [1.0] * len(right) + [0.0] * len(wrong)
    assert numpy.corrcoef(correct, right + wrong)[0, 1] > 0.7
    assert max(wrong) <= 0.5, "a one-token answer that is likelier than all others is the one generated"
