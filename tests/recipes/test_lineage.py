"""Lineages: the order in which what a trial is made of is made."""

import random

from evomerge.recipes import Recipe, sources_of, trial_reference, with_ancestors

HASHES = [f"{number:016x}" for number in range(4)]


def test_sources_are_the_trials_that_a_recipe_names() -> None:
    models = [{"model": trial_reference(HASHES[1])}, {"model": "zoo/base"}, {"model": trial_reference(HASHES[0])}]
    recipe = Recipe.model_validate(
        {"merge_method": "linear", "models": models, "base_model": trial_reference(HASHES[2])}
    )
    assert sources_of(recipe) == [HASHES[1], HASHES[0], HASHES[2]]


def test_ancestors_come_once_and_after_their_own_sources() -> None:
    draw = random.Random(0)
    for size in range(1, 40):
        sources = {str(n): [str(draw.randrange(n)) for _ in range(draw.randrange(4)) if n] for n in range(size)}
        wanted = [str(draw.randrange(size)) for _ in range(3)]
        asked: list[str] = []

        def of(trial: str, sources: dict[str, list[str]] = sources, asked: list[str] = asked) -> list[str]:
            asked.append(trial)
            return sources[trial]

        order = with_ancestors(wanted, of)
        place = {trial: number for number, trial in enumerate(order)}
        assert len(place) == len(order)
        assert sorted(asked) == sorted(order)
        assert set(wanted) <= set(order)
        assert all(place[source] < place[trial] for trial in order for source in sources[trial])
        needed = set(wanted).union(*(sources[trial] for trial in order))
        assert needed == set(order)


def test_no_recursion_limits_the_generations() -> None:
    order = with_ancestors(["20000"], lambda trial: [str(int(trial) - 1)] if int(trial) else [])
    assert order == [str(number) for number in range(20001)]
