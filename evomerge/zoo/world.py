"""The zoo's world: people, things and numbers, and four kinds of question about them in two languages.

A question's *meaning* is what it asks, without the language and the names: ``("arithmetic", "add", 1, 3, 4)``.
Splits are made by meaning, so a held-out problem was trained on neither in English nor in Japanese.
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
    places: tuple[tuple[str, str], ...]  # what the reading questions ask about, a pair for each sentence
    comparison: tuple[str, ...]
    degrees: tuple[str, str]
    counting: str
    answer: str


ENGLISH = Language(
    people=("Tom", "Anna", "Ben", "Lucy", "Sam", "Emma", "Jack", "Mary"),
    things=("apples", "balls", "pens", "eggs", "cups", "books", "cakes", "hats"),
    numbers=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    addition=(
        "{person} has {a} {thing} and gets {b} more. How many {thing} now?",
        "{person} sees {a} {thing} and then {b} {thing}. How many in all?",
        "There are {a} {thing} on the desk. {person} adds {b}. How many {thing}?",
    ),
    subtraction=(
        "{person} has {a} {thing} and gives away {b}. How many {thing} now?",
        "{person} had {a} {thing} but lost {b}. How many are left?",
        "There are {a} {thing} on the desk. {person} takes {b}. How many {thing}?",
    ),
    reading=(
        "{person} ate {a} {thing} in the morning and {b} at night. How many in the {place}?",
        "In the shop {person} saw {a} {thing}, at home {b}. How many in the {place}?",
    ),
    places=(("morning", "night"), ("shop", "house")),
    comparison=(
        "{person} has {a} {thing} and {other} has {b}. What is the {degree} number?",
        "There are {a} {thing} here and {b} there. {person} wants the {degree} number.",
    ),
    degrees=("larger", "smaller"),
    counting="{person} puts {things} on the desk. How many things?",
    answer="Answer:",
)

JAPANESE = Language(
    people=("ケン", "ユミ", "タロウ", "ハナ", "ジロウ", "サキ", "リク", "ミオ"),
    things=("リンゴ", "ボール", "ペン", "タマゴ", "コップ", "ノート", "ケーキ", "ボタン"),
    numbers=("ゼロ", "ひとつ", "ふたつ", "みっつ", "よっつ", "いつつ", "むっつ", "ななつ", "やっつ", "ここのつ"),
    addition=(
        "{person}は {thing}を {a} もっています。 {b} もらいました。 いま いくつ ですか。",
        "{person}は {thing}を {a} みて、 また {b} みました。 ぜんぶで いくつ ですか。",
        "つくえに {thing}が {a} あります。 {person}が {b} おきました。 いくつ ですか。",
    ),
    subtraction=(
        "{person}は {thing}を {a} もっています。 {b} あげました。 いま いくつ ですか。",
        "{person}は {thing}を {a} もっていて、 {b} なくしました。 のこりは いくつ ですか。",
        "つくえに {thing}が {a} あります。 {person}が {b} とりました。 いくつ ですか。",
    ),
    reading=(
        "{person}は あさ {thing}を {a} たべて、 よる {b} たべました。 {place} いくつ たべましたか。",
        "{person}は みせで {thing}を {a} みて、 いえで {b} みました。 {place} いくつ ありましたか。",
    ),
    places=(("あさ", "よる"), ("みせに", "いえに")),
    comparison=(
        "{person}は {thing}を {a} もち、 {other}は {b} もっています。 {degree} かずは いくつ ですか。",
        "ここに {thing}が {a} あり、 そこに {b} あります。 {person}は {degree} かずが すきです。",
    ),
    degrees=("おおきい", "ちいさい"),
    counting="{person}は つくえに {things}を おきました。 ものは いくつ ですか。",
    answer="こたえ:",
)

LANGUAGES = {"en": ENGLISH, "ja": JAPANESE}


@dataclass(frozen=True)
class Question:
    """A prompt that ends where the answer goes, the answer in digits, and what the question means."""

    prompt: str
    answer: str
    meaning: Meaning


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
    a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    if rng.random() < 0.5:
        which = rng.randrange(len(language.addition))
        return _question(language, rng, language.addition[which], a, b, a + b, ("add", which, a, b))
    a, b = max(a, b), min(a, b)
    which = rng.randrange(len(language.subtraction))
    return _question(language, rng, language.subtraction[which], a, b, a - b, ("subtract", which, a, b))


def reading(language: Language, rng: random.Random) -> Question:
    """Find the one number that the question asks for."""
    a, b, second = rng.randint(0, LARGEST), rng.randint(0, LARGEST), rng.randrange(2)
    which = rng.randrange(len(language.reading))
    meaning = ("read", which, a, b, second)
    place = language.places[which][second]
    return _question(language, rng, language.reading[which], a, b, (a, b)[second], meaning, place=place)


def comparison(language: Language, rng: random.Random) -> Question:
    """Name the larger or the smaller of two numbers."""
    a, b, smaller = rng.randint(0, LARGEST), rng.randint(0, LARGEST), rng.randrange(2)
    which = rng.randrange(len(language.comparison))
    meaning = ("compare", which, a, b, smaller)
    degree, answer = language.degrees[smaller], min(a, b) if smaller else max(a, b)
    return _question(language, rng, language.comparison[which], a, b, answer, meaning, degree=degree)


def counting(language: Language, rng: random.Random) -> Question:
    """Count the things in a list."""
    chosen = [rng.randrange(len(language.things)) for _ in range(rng.randint(1, LARGEST))]
    things = ", ".join(language.things[index] for index in chosen)
    return _question(language, rng, language.counting, 0, 0, len(chosen), ("count", *chosen), things=things)


SKILLS: dict[str, Callable[[Language, random.Random], Question]] = {
    "arithmetic": arithmetic,
    "reading": reading,
    "comparison": comparison,
    "counting": counting,
}


def _question(
    language: Language, rng: random.Random, sentence: str, a: int, b: int, answer: int, meaning: Meaning, **words: str
) -> Question:
    person, other = rng.sample(language.people, 2)
    written_a, written_b = (language.numbers[n] if rng.random() < 0.5 else str(n) for n in (a, b))
    thing = rng.choice(language.things)
    text = sentence.format(person=person, other=other, thing=thing, a=written_a, b=written_b, **words)
    return Question(f"{text}\n{language.answer}", str(answer), meaning)
