"""Lineage spaces: what genomes that name earlier trials stand for."""

import random

import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.recipes import sources_of, trial_of, trial_reference, yaml
from evomerge.search_spaces import IntGene, ParentsInfo, build_search_space, read_search_space
from evomerge.search_spaces.crossovers import CROSSOVERS, MUTATIONS, Mutation
from evomerge.search_spaces.lineage import LineageSpace

PARENTS = {"math": "zoo/math", "japanese": "zoo/japanese", "code": "zoo/code"}


def built(base: str | None = "zoo/base", common: dict[str, object] | None = None, **fields: str) -> LineageSpace:
    config = read_search_space({"kind": "lineage", "crossover": "slerp", **fields}, yaml.Document({}, "test"))
    info = ParentsInfo(base, PARENTS, (), 2, "float32", common or {})
    space = build_search_space(config, info)
    assert isinstance(space, LineageSpace)
    return space


def child(space: LineageSpace, first: int, second: int, **genes: float) -> dict[str, float]:
    return {**{gene.name: gene.initial for gene in space.genes}, "first": first, "second": second, **genes}


def grown(space: LineageSpace, trials: int, seed: int = 0) -> list[dict[str, float]]:
    """Tell the space random children of children."""
    draw = random.Random(seed)
    genomes = []
    for number in range(trials):
        genomes.append(child(space, *(draw.randrange(-3, number) for _ in range(2)), weight=draw.random()))
        space.told(genomes[-1], space.express(genomes[-1]).hash)
    return genomes


def test_the_sources_come_first_and_parents_are_negative() -> None:
    first, second, weight = built().genes
    assert first == IntGene("first", -3, 10_000_000, -1)
    assert second == IntGene("second", -3, 10_000_000, -2)
    assert weight.name == "weight"


def test_it_starts_from_the_parents_as_they_are() -> None:
    space = built()
    recipes = [space.express(point) for point in space.starting_points()]
    assert [recipe.parents() for recipe in recipes] == [(reference,) for reference in PARENTS.values()]
    assert {recipe.merge_method for recipe in recipes} == {"passthrough"}


def test_children_of_the_parents_alone_have_genes_of_their_own() -> None:
    space = built()
    sources = [gene for gene in space.genes_of_founders if gene.name in ("first", "second")]
    assert [(gene.low, gene.high) for gene in sources] == [(-3, -1)] * 2
    assert [gene.name for gene in space.genes_of_founders] == [gene.name for gene in space.genes]


def test_a_source_is_a_parent_or_the_hash_of_an_earlier_recipe() -> None:
    space = built()
    seed = space.express(child(space, -2, -2))
    space.told(child(space, -2, -2), seed.hash)
    recipe = space.express(child(space, 0, -1, weight=0.25))
    assert recipe.parents() == (trial_reference(seed.hash), "zoo/math")
    assert recipe.base_model == trial_reference(seed.hash)
    assert recipe.parameters == {"t": 0.25}
    assert recipe.dtype == "float32"
    assert sources_of(recipe) == [seed.hash]


def test_the_hash_covers_the_whole_lineage() -> None:
    hashes = []
    for weight in (0.25, 0.75):
        space = built()
        for genome in (child(space, -1, -2, weight=weight), child(space, 0, -1), child(space, 1, -3)):
            recipe = space.express(genome)
            space.told(genome, recipe.hash)
        hashes.append(recipe.hash)
    assert hashes[0] != hashes[1]


def test_sources_that_failed_or_were_not_told_are_refused() -> None:
    space = built()
    space.told(child(space, -1, -2), "0" * 16, failed=True)
    with pytest.raises(RunError, match="names trial 0 as a source, which failed"):
        space.express(child(space, 0, -1))
    with pytest.raises(RunError, match="names trial 1 as a source, which was not told yet"):
        space.express(child(space, -1, 1))


def test_a_lineage_holds_every_ancestor_once_after_its_own_sources() -> None:
    space = built()
    genomes = grown(space, 200)
    recipe = space.express(genomes[-1])
    lineage = space.lineage([recipe])
    assert len(lineage) > 10
    known: set[str] = set()
    for recipe_hash, ancestor in lineage.items():
        assert ancestor.hash == recipe_hash
        assert set(sources_of(ancestor)) <= known
        known.add(recipe_hash)
    needed, waiting = set(), sources_of(recipe)
    while waiting:
        needed.add(last := waiting.pop())
        waiting += [each for each in sources_of(space.recipe_of(last)) if each not in needed]
    assert known == needed


def test_a_lineage_may_be_thousands_of_generations_deep() -> None:
    space = built()
    genome = child(space, -1, -2)
    for number in range(3000):
        recipe = space.express(genome)
        space.told(genome, recipe.hash)
        genome = child(space, number, -1 - number % 3)
    assert len(space.lineage([space.express(genome)])) == 3000


def test_a_trial_that_the_run_does_not_have_is_refused() -> None:
    space = built()
    stranger = space.express(child(space, -1, -2)).model_copy(update={"base_model": trial_reference("ab" * 8)})
    with pytest.raises(RunError, match="names trial:abababababababab as a source, but the run has no such trial"):
        space.lineage([stranger])


def test_equal_sources_and_neutral_genes_give_the_source(subtests: pytest.Subtests) -> None:
    for name in CROSSOVERS:
        with subtests.test(name):
            space = built(crossover=name)
            recipe = space.express(child(space, -2, -2))
            assert recipe.parents()[0] == "zoo/japanese"


def test_a_mutation_changes_the_crossover_s_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = Mutation(
        "seeds", (IntGene("mutation.seed", 0, 9, 0),), lambda f, g, b: {**f, "seed": g["mutation.seed"]}
    )
    monkeypatch.setitem(MUTATIONS._entries, "seeded", mutation)
    space = built(mutation="seeded")
    assert [gene.name for gene in space.genes] == ["first", "second", "weight", "mutation.seed"]
    assert space.express({**child(space, -1, -2), "mutation.seed": 7}).seed == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crossover": "marriage"}, "(?s)unknown crossover 'marriage'.*there are: .*linear, .*slerp"),
        ({"mutation": "radiation"}, "unknown mutation 'radiation'"),
        ({"crossover": "task_arithmetic", "base": None}, "'task_arithmetic' needs a base"),
        ({"common": {"tokenizer_source": "union"}}, "merge.tokenizer_source cannot be had"),
    ],
    ids=["crossover", "mutation", "base", "merge settings"],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)


def test_only_sixteen_digits_name_a_trial() -> None:
    assert trial_of("trial:0123456789abcdef") == "0123456789abcdef"
    assert [trial_of(text) for text in ("trial:12", "trials/0123456789abcdef", "trial:0123456789ABCDEF")] == [None] * 3
