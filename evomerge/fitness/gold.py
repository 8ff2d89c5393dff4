"""Soft responses: how probable a model finds the right answer to an item, in forward passes alone.

Where a response is right or wrong, this is a number in [0, 1] that goes with it and costs no generation: a control
variate for accuracy on few items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from evomerge.errors import FitnessError
from evomerge.fitness.language_model import ResidentLM


@dataclass(frozen=True)
class Expected:
    """An item's answers, and which of them are right.

    Attributes:
        pairs: (prompt, answer), as texts.
        right: positions of the right answers, at least one; the task's first choice of them first.
        among_choices: whether the pairs are all that there is to choose from; if not, each stands for itself.
    """

    pairs: tuple[tuple[str, str], ...]
    right: tuple[int, ...]
    among_choices: bool = False


def expected_answers(task: Task, doc: Any, requests: Sequence[Instance], *, chat: bool) -> Expected | None:
    """Return what the task expects of a document; None if it does not say which answer is right.

    Args:
        task: of any output type but ``loglikelihood_rolling``.
        doc: one of the task's documents.
        requests: those that the task makes of it.
        chat: whether they were rendered with a chat template.
    """
    if task.OUTPUT_TYPE == "multiple_choice":
        return _right_choices(task, doc, requests)
    if [request.request_type for request in requests] != [task.OUTPUT_TYPE]:
        return None  # a task that puts several questions about a document, in its own way
    prompt, answer = map(str, requests[0].args[:2])
    answers = [answer]
    if task.OUTPUT_TYPE == "generate_until":
        answers = [_delimiter(task, chat) + text for text in _right_texts(task, doc)]
    answers = [text for text in answers if text.strip()]
    return Expected(tuple((prompt, text) for text in answers), tuple(range(len(answers)))) if answers else None


def scores_in_its_own_way(task: Task) -> bool:
    """Return whether `doc_to_target` is the same for all documents, and the task's own code decides what is right.

    IFEval and the several right answers of TruthfulQA's mc2 are like this.
    """
    target, own = task.config.doc_to_target, getattr(task.config, "process_results", None)
    fixed = isinstance(target, int) or (
        isinstance(target, str) and "{" not in target and target not in getattr(task, "features", ())
    )
    return fixed and callable(own)


def probabilities(model: ResidentLM, items: Sequence[Expected]) -> list[float]:
    """Return the probability of each item's right answer, in [0, 1].

    Among choices it is the softmax over their log-likelihoods, summed over the right ones. An answer that stands for
    itself has the geometric mean of its tokens' probabilities; of several, the likeliest counts.

    Args:
        model: the resident model.
        items: all among choices, or none.

    Raises:
        FitnessError: NaN in the model's scores, choices that are all impossible, or an answer that is too long for
            the model.
    """
    pairs = [pair for item in items for pair in item.pairs]
    if items and items[0].among_choices:
        scores = [score for score, _ in model.loglikelihood([_request(pair) for pair in pairs])]
    else:
        scores = model.loglikelihood_per_token(pairs)
    found, start = [], 0
    for item in items:
        own = scores[start : start + len(item.pairs)]
        found.append(_share(own, item.right) if item.among_choices else math.exp(min(max(own), 0.0)))
        start += len(own)
    return found


def _right_choices(task: Task, doc: Any, requests: Sequence[Instance]) -> Expected | None:
    """Return the choices; requests beyond them are without the question, for mutual information."""
    if task.config.doc_to_choice is None:
        return None
    choices = list(task.doc_to_choice(doc))
    # Where each choice makes a prompt of its own (WinoGrande), lm-eval reads the right one from doc_to_text.
    named = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    right = [_position(name, choices) for name in _listed(named)]
    right = [position for position in dict.fromkeys(right) if 0 <= position < len(choices)]
    if not right or len(requests) < len(choices):
        return None
    pairs = [request.args[:2] for request in requests[: len(choices)]]
    return Expected(tuple((str(prompt), str(answer)) for prompt, answer in pairs), tuple(right), among_choices=True)


def _right_texts(task: Task, doc: Any) -> list[str]:
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        choices = list(task.doc_to_choice(doc))
        target = choices[target] if 0 <= target < len(choices) else None
    return [str(text) for text in _listed(target) if isinstance(text, (str, int, float))]


def _delimiter(task: Task, chat: bool) -> str:
    """Return what stands between prompt and answer: lm-eval's rule for choices."""
    prefix = task.config.gen_prefix
    if chat and (not prefix or prefix[-1].isspace()):
        return ""
    return str(task.config.target_delimiter)


def _listed(target: Any) -> list[Any]:
    return list(target) if isinstance(target, (list, tuple)) else [target]


def _position(name: Any, choices: Sequence[str]) -> int:
    if isinstance(name, int):
        return name
    return choices.index(name) if name in choices else -1


def _request(pair: tuple[str, str]) -> Instance:
    return Instance("loglikelihood", {}, pair, 0)


def _share(scores: Sequence[float], right: Sequence[int]) -> float:
    top = max(scores)
    if top == -math.inf:
        raise FitnessError("the model gives no probability to any choice; look for infinities in the parents")
    weights = [math.exp(score - top) for score in scores]
    return math.fsum(weights[position] for position in right) / math.fsum(weights)
