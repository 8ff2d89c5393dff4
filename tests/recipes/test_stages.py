"""Files of several stages: names, order, and what is refused with which line."""

from __future__ import annotations

from itertools import permutations

import pytest

from evomerge.errors import ConfigError
from evomerge.recipes import parse_recipe, parse_recipes, write_recipes

ONE = "name: one\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n"
TWO = "name: two\nmerge_method: slerp\nbase_model: one\nmodels: [{model: c+adapter}]\n"
LAST = "merge_method: ties\nbase_model: a\nmodels: [{model: two}, {model: one+adapter}]\n"


def names(text: str) -> list[str | None]:
    return [stage.name for stage in parse_recipes(text, "f.yaml")]


@pytest.mark.parametrize("order", list(permutations([ONE, TWO, LAST])))
def test_stages_come_after_what_they_use_however_they_are_written(order: tuple[str, ...]) -> None:
    stages = parse_recipes("---\n".join(order))
    assert [(stage.name, stage.uses) for stage in stages] == [("one", ()), ("two", ("one",)), (None, ("two", "one"))]


def test_independent_stages_keep_the_files_order() -> None:
    assert names("---\n".join([LAST, TWO.replace("one", "x"), ONE])) == ["two", "one", None]


def test_a_plain_recipe_is_one_stage_with_or_without_a_name() -> None:
    plain = ONE.replace("name: one\n", "")
    for text in (plain, "---\n" + plain, plain + "---\n", "# words\n---\n" + plain + "---\n# more\n"):
        (stage,) = parse_recipes(text)
        assert stage.name is None
        assert stage.recipe == parse_recipe(text) == parse_recipe(plain)
    assert parse_recipes(ONE)[0].name == "one"
    assert parse_recipe(ONE) == parse_recipe(plain)


def test_what_is_written_reads_back() -> None:
    stages = parse_recipes("---\n".join([LAST, TWO, ONE]))
    again = parse_recipes(write_recipes(stages))
    assert [(s.name, s.recipe, s.uses) for s in again] == [(s.name, s.recipe, s.uses) for s in stages]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([ONE, ONE], "f.yaml:5: two stages are called 'one', here and in f.yaml:1"),
        ([LAST, ONE, TWO, LAST], "f.yaml:14: two stages without a name, here and in f.yaml:1"),
        (
            [ONE.replace("model: a", "model: two"), TWO],
            "f.yaml:3: models[0].model: stages need each other in a circle: one → two → one",
        ),
        (
            [ONE.replace("model: b", "model: one"), TWO],
            "f.yaml:3: models[1].model: stages need each other in a circle: one → one",
        ),
        (
            [ONE, TWO.replace("base_model: one", "base_model: one@main")],
            "f.yaml:7: base_model: 'one' is a stage of this file and has no revisions",
        ),
        ([ONE.replace("name: one", "name: ../one"), TWO], "f.yaml:1: name: '../one' cannot be the name of a stage"),
        ([ONE.replace("name: one", "name: 3"), TWO], "f.yaml:1: name: 3 cannot be the name of a stage"),
        ([ONE, TWO.replace("merge_method", "merge_metod")], "f.yaml:6: merge_metod: unknown field"),
    ],
)
def test_bad_stages_are_refused_with_their_lines(documents: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipes("---\n".join(documents), "f.yaml")
    assert message in str(raised.value)


def test_problems_of_all_stages_come_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipes(
            ONE.replace("models", "modls") + "---\n" + TWO.replace("slerp", "[]") + "---\n" + LAST + "seed: x\n"
        )
    assert len(raised.value.problems) >= 3


def test_where_one_recipe_is_wanted_several_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:5: the file has several documents"):
        parse_recipe(ONE + "---\n" + TWO, "f.yaml")
