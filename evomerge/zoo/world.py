"""The zoo's world: people, things and numbers, and four kinds of question about them in two languages.

A question's *meaning* is what it asks: the sentence, the thing, the numbers; not the language, the people, nor whether
numbers are written as words. Splits are made by meaning, so a held-out problem was trained on neither in English nor
in Japanese.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 9  # of the numbers in a question; sums reach twice that
Meaning = tuple[Any, ...]


@dataclass(frozen=True)
class Language:
    """One language's words and sentences; both languages share the digits, and the order of the sentences."""

    people: tuple[str, ...]
    things: tuple[str, ...]
    numbers: tuple[str, ...]
    addition: tuple[str, ...]
    subtraction: tuple[str, ...]
    reading: tuple[str, ...]
    comparison: tuple[str, ...]
    degrees: tuple[str, str]
    counting: str
    answer: str


ENGLISH = Language(
    people=("Tom", "Anna", "Ben", "Lucy", "Sam", "Emma", "Jack", "Mary"),
    things=("apples", "balls", "pens", "eggs", "cups", "books", "cakes", "hats"),
    numbers=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    addition=(
        "{person} has {a} {thing} and gets {b}. How many now?",
        "{person} sees {a} {thing} and then {b}. How many in all?",
        "{a} {thing} are here. {person} brings {b}. How many?",
    ),
    subtraction=(
        "{person} has {a} {thing} and gives away {b}. How many now?",
        "{person} had {a} {thing} and lost {b}. How many are left?",
        "{a} {thing} are here. {person} takes {b}. How many?",
    ),
    reading=(
        "{person} is {b} years old and has {a} {thing}. How many {thing}?",
        "{person} has {a} {thing} on day {b}. How many {thing}?",
    ),
    comparison=(
        "{person} has {a} {thing}, {other} has {b}. Which number is {degree}?",
        "{a} {thing} are here, {b} there. {person} wants the {degree} number.",
    ),
    degrees=("larger", "smaller"),
    counting="{person} puts {things}. How many?",
    answer="Answer:",
)

JAPANESE = Language(
    people=("ケン", "ユミ", "タロウ", "ハナ", "ジロウ", "サキ", "リク", "ミオ"),
    things=("リンゴ", "ボール", "ペン", "タマゴ", "コップ", "ノート", "ケーキ", "ボタン"),
    numbers=("ゼロ", "ひとつ", "ふたつ", "みっつ", "よっつ", "いつつ", "むっつ", "ななつ", "やっつ", "ここのつ"),
    addition=(
        "{person}は {thing}を {a} もち、 {b} もらいました。 いま いくつ ですか。",
        "{person}は {thing}を {a} みて、 また {b} みました。 ぜんぶで いくつ ですか。",
        "{thing}が {a} あります。 {person}が {b} おきました。 いくつ ですか。",
    ),
    subtraction=(
        "{person}は {thing}を {a} もち、 {b} あげました。 いま いくつ ですか。",
        "{person}は {thing}を {a} もち、 {b} なくしました。 のこりは いくつ ですか。",
        "{thing}が {a} あります。 {person}が {b} とりました。 いくつ ですか。",
    ),
    reading=(
        "{person}は {b} さい です。 {thing}を {a} もっています。 {thing}は いくつ ですか。",
        "{b} にちに {person}は {thing}を {a} みました。 {thing}は いくつ ですか。",
    ),
    comparison=(
        "{person}は {thing}を {a} もち、 {other}は {b} です。 {degree} かずは いくつ ですか。",
        "ここに {thing}が {a} あり、 そこに {b} です。 {person}は {degree} かずが すきです。",
    ),
    degrees=("おおきい", "ちいさい"),
    counting="{person}は {things}を おきました。 いくつ ですか。",
    answer="こたえ:",
)

LANGUAGES = {"en": ENGLISH, "ja": JAPANESE}


@dataclass(frozen=True)
class Question:
    """A prompt that ends where the answer goes, the answer in digits, what the question means, and whether it
    spells a number as a word.
    """

    prompt: str
    answer: str
    meaning: Meaning
    words: bool


def ask(task: str, rng: random.Random) -> Question:
    """Return a random question of ``task`` (``arithmetic_ja``)."""
    skill, _, language = task.partition("_")
    return SKILLS[skill](LANGUAGES[language], rng)


def split_of(meaning: Meaning) -> str:
    """Return the split that a meaning belongs to, by hash: 60% train, 20% search, 20% test."""
    share = int.from_bytes(hashlib.sha256(repr(meaning).encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.6 else "search" if share < 0.8 else "test"


def arithmetic(language: Language, rng: random.Random) -> Question:
    """Add or subtract two numbers; differences are never negative."""
    a, b = _number(rng), _number(rng)
    if rng.random() < 0.5:
        return _question(language, rng, "addition", a, b, a + b)
    a, b = max(a, b), min(a, b)
    return _question(language, rng, "subtraction", a, b, a - b)


def reading(language: Language, rng: random.Random) -> Question:
    """Find the one number that the question asks for, most often written as a word; the other is a digit."""
    a, b = _number(rng), _number(rng)
    return _question(language, rng, "reading", a, b, a, words=(0.8, 0.0))


def comparison(language: Language, rng: random.Random) -> Question:
    """Name the larger or the smaller of two numbers."""
    a, b, smaller = _number(rng), _number(rng), rng.randrange(2)
    answer = min(a, b) if smaller else max(a, b)
    return _question(language, rng, "comparison", a, b, answer, degree=language.degrees[smaller])


def counting(language: Language, rng: random.Random) -> Question:
    """Count the things in a list."""
    chosen = [rng.randrange(len(language.things)) for _ in range(rng.randint(1, LARGEST))]
    things = ", ".join(language.things[index] for index in chosen)
    text = language.counting.format(person=rng.choice(language.people), things=things)
    return Question(f"{text}\n{language.answer}", str(len(chosen)), ("counting", *chosen), words=False)


SKILLS: dict[str, Callable[[Language, random.Random], Question]] = {
    "arithmetic": arithmetic,
    "reading": reading,
    "comparison": comparison,
    "counting": counting,
}


def _number(rng: random.Random) -> int:
    return rng.randint(0, LARGEST)


def _question(
    language: Language,
    rng: random.Random,
    kind: str,
    a: int,
    b: int,
    answer: int,
    *,
    words: tuple[float, float] = (0.5, 0.5),
    degree: str = "",
) -> Question:
    """Fill one of the language's sentences of ``kind``; ``words`` are the shares of each number spelled as a word."""
    sentences: tuple[str, ...] = getattr(language, kind)
    which, thing = rng.randrange(len(sentences)), rng.randrange(len(language.things))
    person, other = rng.sample(language.people, 2)
    spelled = [rng.random() < share for share in words]
    first, second = (language.numbers[n] if word else str(n) for n, word in zip((a, b), spelled, strict=True))
    text = sentences[which].format(
        person=person, other=other, thing=language.things[thing], a=first, b=second, degree=degree
    )
    meaning = (kind, which, thing, a, b, answer)
    return Question(f"{text}\n{language.answer}", str(answer), meaning, words=any(spelled))
