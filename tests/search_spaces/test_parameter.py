"""The parameter space: its genes, the recipes they make, and the laws that bind the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, EvomergeError
from evomerge.recipes import Recipe, count_layers, parse_recipe, plan, resolve_parameter, write_recipe, yaml
from evomerge.search_spaces import FloatGene, ParentsInfo, SearchSpace, build_search_space, read_search_space
from evomerge.search_spaces.filters import choose_filters

LLAMA = (
    "self_attn.q_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)
BERT = (
    "attention.self.query",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def llama(layers: int) -> tuple[str, ...]:
    inside = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in LLAMA]
    return tuple(sorted([*inside, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]))


def gpt2(layers: int) -> tuple[str, ...]:
    """Names without any prefix: nothing of the name stands before the layer's number."""
    inside = [f"h.{i}.{part}" for i in range(layers) for part in ("ln_1.weight", "attn.c_attn.bias", "mlp.c_fc.bias")]
    return tuple(sorted([*inside, "wte.weight", "wpe.weight", "ln_f.weight"]))


def bert(layers: int) -> tuple[str, ...]:
    inside = [f"encoder.layer.{i}.{part}.weight" for i in range(layers) for part in BERT]
    return tuple(sorted([*inside, "embeddings.LayerNorm.weight", "embeddings.word_embeddings.weight"]))


def moe(layers: int) -> tuple[str, ...]:
    """Every second layer has experts instead of one mlp, and names that contain each other."""
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(layers)]
    for i in range(layers):
        parts = ["mlp.experts.1.w1", "mlp.experts.11.w1", "mlp.gate"] if i % 2 else ["mlp.w1"]
        names += [f"model.layers.{i}.{part}.weight" for part in parts]
    return tuple(sorted([*names, "head.weight", "model.head.weight", "model.norm.weight"]))


def info(names: Sequence[str], *nicknames: str, base: str | None = "zoo/base") -> ParentsInfo:
    parents = {nickname: f"zoo/{nickname}" for nickname in nicknames or ("math", "ja")}
    return ParentsInfo(base, parents, tuple(names), count_layers(names), "float32")


def space(text: str, names: Sequence[str] = llama(4), *nicknames: str, base: str | None = "zoo/base") -> SearchSpace:
    document = yaml.loads(text, "s.yaml")
    config = read_search_space(document.data, document)
    # What a run folder stores must read back as the same configuration.
    again = config.model_dump(mode="json", exclude_none=True)
    assert read_search_space(again, yaml.loads(yaml.dumps(again))) == config
    return build_search_space(config, info(names, *nicknames, base=base))


def names_of(found: SearchSpace) -> list[str]:
    return [gene.name for gene in found.genes]


def resolved(recipe: Recipe, names: Sequence[str], parameters: Sequence[str]) -> dict[tuple[str, str | None, str], Any]:
    """Return (parameter, model or None, tensor) → value, for each model and for the merge as a whole."""
    values = {}
    for tensor in plan(recipe, dict.fromkeys(recipe.parents(), names)):
        models = [each.model for each in tensor.inputs if each.model != tensor.base]
        for name in parameters:
            for model in (*models, None):
                values[name, model, tensor.name] = resolve_parameter(
                    recipe, name, tensor=tensor.name, depth=tensor.depth, model=model, default="unset"
                )
    return values


granularities = st.one_of(st.sampled_from(["global", "layer"]), st.integers(1, 14).map(lambda k: f"block: {k}"))
group_lists = st.lists(
    st.sampled_from(["attention", "mlp", "norm", "embedding", "query", "ones", "weights"]),
    unique=True,
    max_size=4,
)
OWN = {"query": "q(uery|_proj)|c_attn", "ones": r"\.1\.|11", "weights": r"w1|head|wte|dense"}


@st.composite
def spaces(draw: st.DrawFn) -> tuple[SearchSpace, tuple[str, ...]]:
    """Draw a space over names of some architecture; groups that hold no tensor are left out."""
    family = draw(st.sampled_from([llama, gpt2, bert, moe]))
    names = family(draw(st.integers(1, 13)))
    groups: list[Any] = [{g: OWN[g]} if g in OWN else g for g in draw(group_lists)]
    granularity = draw(granularities)
    fields: dict[str, Any] = {"method": draw(st.sampled_from(["ties", "linear", "task_arithmetic"]))}
    layers = count_layers(names)
    if draw(st.booleans()) and layers > 1:
        fields |= {"granularity": "layer", "smooth": draw(st.integers(2, layers))}
    else:
        fields["granularity"] = granularity
    while True:
        try:
            text = yaml.dumps({**fields, "groups": groups})
            return space(text, names), names
        except ConfigError as error:
            empty = str(error)
            groups = [g for g in groups if repr(g if isinstance(g, str) else next(iter(g))) not in empty]


@st.composite
def genomes(draw: st.DrawFn, found: SearchSpace) -> dict[str, float]:
    return {gene.name: draw(st.floats(gene.low, gene.high)) for gene in found.genes if isinstance(gene, FloatGene)}


@settings(max_examples=60, deadline=None)
@given(st.data(), spaces())
def test_an_expressed_recipe_reads_back_and_defines_every_parameter(
    data: st.DataObject, drawn: tuple[SearchSpace, tuple[str, ...]]
) -> None:
    found, names = drawn
    recipe = found.express(data.draw(genomes(found)))
    assert parse_recipe(write_recipe(recipe)) == recipe
    for (name, model, tensor), value in resolved(recipe, names, ["weight"]).items():
        assert model is None or isinstance(value, float), (name, model, tensor)


def governing(found: SearchSpace, names: Sequence[str], base: dict[str, float]) -> dict[Any, set[str]]:
    """Return (parameter, model, tensor) → the genes that change it, by changing one gene after the other."""
    before = resolved(found.express(base), names, ["weight", "density"])
    changed: dict[Any, set[str]] = {key: set() for key in before}
    for gene in found.genes:
        assert isinstance(gene, FloatGene)
        after = resolved(found.express({**base, gene.name: gene.high}), names, ["weight", "density"])
        for key, value in after.items():
            if value != before[key]:
                changed[key].add(gene.name)
    return changed


@settings(max_examples=20, deadline=None)
@given(spaces())
def test_every_gene_changes_a_tensor_and_every_tensor_hangs_on_one_gene(
    drawn: tuple[SearchSpace, tuple[str, ...]],
) -> None:
    found, names = drawn
    lowest = {gene.name: gene.low for gene in found.genes if isinstance(gene, FloatGene)}
    changed = governing(found, names, lowest)
    assert set().union(*changed.values()) == set(lowest)
    smooth = any(".point" in name for name in lowest)
    for (name, model, tensor), genes in changed.items():
        if model is None:
            assert not genes
        elif name == "weight" or genes:
            # On a curve a layer lies between two control points.
            assert 1 <= len(genes) <= (2 if smooth else 1), (name, model, tensor, genes)
            nickname = model.removeprefix("zoo/")
            assert all(gene.startswith(f"{nickname}.{name}") for gene in genes)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([llama, gpt2, bert, moe]), st.integers(1, 50), st.integers(1, 9))
def test_each_layer_gets_exactly_the_value_of_its_gene(
    data: st.DataObject, family: Any, layers: int, block: int
) -> None:
    """The gene is told from the tensor's name here, with code of the test's own."""
    names = family(layers)
    blocked = data.draw(st.booleans())
    granularity = f"block: {block}" if blocked else "layer"
    found = space(f"method: task_arithmetic\ngranularity: '{granularity}'", names)
    genome = {gene.name: 0.001 + k / (len(found.genes) + 1) / 1.01 for k, gene in enumerate(found.genes)}
    for (_, model, tensor), value in resolved(found.express(genome), names, ["weight"]).items():
        if model is None:
            continue
        numbers = [int(word) for word in tensor.split(".") if word.isdigit()]
        place = "outside"
        if numbers:
            place = f"block{numbers[0] // block}" if blocked else f"layer{numbers[0]}"
        assert value == genome[f"{model.removeprefix('zoo/')}.weight.{place}"]


def test_gene_names_are_readable_and_in_a_fixed_order() -> None:
    found = space("method: task_arithmetic\ngroups: [attention, norm, embedding]", llama(2), "math")
    assert names_of(found) == [
        "math.weight.layer0.attention",
        "math.weight.layer0.norm",
        "math.weight.layer0.other",
        "math.weight.layer1.attention",
        "math.weight.layer1.norm",
        "math.weight.layer1.other",
        "math.weight.outside.norm",
        "math.weight.embedding",
    ]
    assert names_of(space("method: linear\ngranularity: global")) == ["math.weight", "ja.weight"]
    assert names_of(space("method: linear\ngranularity: {block: 3}"))[:3] == [
        "math.weight.block0",
        "math.weight.block1",
        "math.weight.outside",
    ]
    smooth = space("method: slerp\nsmooth: 3\ngroups: [mlp]", llama(4))
    assert names_of(smooth) == [
        *(f"t.point{i}.{group}" for i in range(3) for group in ("mlp", "other")),
        "t.outside.other",
    ]


def test_the_recipe_is_short_where_names_allow() -> None:
    found = space("method: task_arithmetic\ngroups: [attention, mlp]", llama(3), "math")
    start = found.starting_points()[0]
    weight = found.express({**start, "math.weight.layer1.mlp": 0.25}).models[0].parameters["weight"]  # type: ignore[index]
    assert [(item.filter, item.value) for item in weight] == [  # type: ignore[union-attr]
        ("lm_head.weight", 1.0),
        ("model.embed_tokens.weight", 1.0),
        ("model.norm.weight", 1.0),
        ("self_attn", (1.0, 1.0, 1.0)),
        ("mlp", (1.0, 0.25, 1.0)),
        (None, (1.0, 1.0, 1.0)),
    ]
    assert found.express(start).dtype == "float32"


def test_a_smooth_curve_is_written_as_its_points_and_read_between_them() -> None:
    found = space("method: slerp\nsmooth: 2", llama(5))
    recipe = found.express({"t.point0": 0.0, "t.point1": 1.0, "t.outside": 0.3})
    values = resolved(recipe, llama(5), ["t"])
    assert [values["t", None, f"model.layers.{i}.mlp.up_proj.weight"] for i in range(5)] == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]
    assert values["t", None, "lm_head.weight"] == 0.3


def test_slerp_goes_from_the_first_parent_to_the_second() -> None:
    found = space("method: slerp\ngranularity: global", llama(2), "one", "two", base="zoo/base")
    recipe = found.express({"t": 0.5})
    assert recipe.base_model == "zoo/one"
    assert recipe.parents() == ("zoo/one", "zoo/two")
    assert recipe.parameters == {"t": 0.5}


def test_slerp_of_one_parent_starts_from_the_base() -> None:
    recipe = space("method: slerp\ngranularity: global", llama(2), "one").express({"t": 0.5})
    assert (recipe.base_model, recipe.parents()) == ("zoo/base", ("zoo/one", "zoo/base"))


def test_a_method_without_base_leaves_the_base_out() -> None:
    recipe = space("method: linear\ngranularity: global").express({"math.weight": 0.5, "ja.weight": 0.5})
    assert recipe.base_model is None


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_the_starting_point_is_the_uniform_merge(method: str) -> None:
    found = space(f"method: {method}", llama(2), "a", "b", "c")
    (start,) = found.starting_points()
    assert list(start) == names_of(found)
    weights = [value for name, value in start.items() if ".weight" in name]
    assert all(math.isclose(weight, 1 / 3) for weight in weights)
    assert all(gene.low <= start[gene.name] <= gene.high for gene in found.genes)  # type: ignore[union-attr,operator]


def test_bounds_apply_to_a_parameter_a_prefix_or_a_pattern_and_the_last_match_counts() -> None:
    found = space(
        "method: ties\ngroups: [mlp]\nbounds:\n"
        "  weight: [0, 1.2]\n  density: [0.2, 0.9]\n"
        "  math.weight: [0.6, 0.8]\n  '*.weight.layer0.*': [-1, 2]\n",
        llama(2),
    )
    bounds = {gene.name: (gene.low, gene.high, gene.initial) for gene in found.genes if isinstance(gene, FloatGene)}
    assert bounds["ja.weight.layer1.mlp"] == (0, 1.2, 0.5)
    assert bounds["ja.density.layer0.mlp"][:2] == (0.2, 0.9)
    assert bounds["math.weight.layer1.mlp"] == (0.6, 0.8, 0.6)
    assert bounds["math.weight.layer0.mlp"] == (-1, 2, 0.5)


def test_a_parameter_that_no_search_varies_by_itself_is_searched_if_it_has_bounds() -> None:
    assert not any(name.startswith("lambda") for name in names_of(space("method: task_arithmetic")))
    found = space("method: task_arithmetic\ngranularity: global\nbounds: {lambda: [0.5, 1.5]}")
    assert names_of(found) == ["math.weight", "ja.weight", "lambda"]
    assert found.express(found.starting_points()[0]).parameters == {"lambda": 1.0}


def test_fixed_values_leave_the_search_and_stand_in_the_recipe() -> None:
    found = space(
        "method: ties\ngranularity: layer\n"
        "fixed: {density: 0.4, normalize: false, 'math.weight.outside': 0.1, '*.weight.layer0': 0}",
        llama(2),
    )
    assert names_of(found) == ["math.weight.layer1", "ja.weight.layer1", "ja.weight.outside"]
    recipe = found.express({"math.weight.layer1": 0.7, "ja.weight.layer1": 0.8, "ja.weight.outside": 0.9})
    assert recipe.parameters == {"density": 0.4, "normalize": False}
    values = resolved(recipe, llama(2), ["weight"])
    assert values["weight", "zoo/math", "lm_head.weight"] == 0.1
    assert values["weight", "zoo/math", "model.layers.0.mlp.up_proj.weight"] == 0
    assert values["weight", "zoo/math", "model.layers.1.mlp.up_proj.weight"] == 0.7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: tise", "search_space.method: unknown merge method 'tise'; did you mean 'ties'"),
        (
            "kind: parametr\nmethod: ties",
            "s.yaml:1: kind: unknown kind of search space 'parametr'; did you mean",
        ),
        ("metod: ties", "did you mean 'method'?"),
        ("metod: ties", "missing field 'method'"),
        ("method: ties\ngranularity: layers", "the granularity is global, layer or 'block: K'"),
        ("method: ties\ngranularity: {block: 0}", "the granularity is global, layer or 'block: K'"),
        ("method: ties\ngranularity: 3", "s.yaml:2: granularity: the granularity is"),
        ("method: ties\ngroups: [atention]", "unknown group 'atention'; did you mean 'attention'?"),
        ("method: ties\ngroups: [mlp, mlp]", "the group 'mlp' is listed twice"),
        ("method: ties\ngroups: [{q: '('}]", "'(' is no regular expression"),
        ("method: ties\ngroups: [{layer3: q}]", "'layer3' cannot name a group of your own"),
        ("method: ties\ngroups: [{mlp: q}]", "'mlp' cannot name a group of your own"),
        ("method: ties\ngroups: [{q: nothing}]", "'nothing' matches none"),
        ("method: ties\nsmooth: 1", "smooth: input should be greater than or equal to 2"),
        ("method: ties\nsmooth: 9", "use at most 4 points"),
        ("method: ties\nsmooth: 2\ngranularity: global", "use granularity: layer, not 'global'"),
        ("method: ties\nbounds: {weight: [1, 0]}", "the bounds of 'weight' must rise"),
        ("method: ties\nbounds: {weight: [1]}", "s.yaml:2: bounds.weight"),
        ("method: ties\nbounds: {wieght: [0, 1]}", "did you mean 'weight'"),
        ("method: ties\nbounds: {zzzzz: [0, 1]}", "genes are named like 'math.weight.layer0'"),
        ("method: ties\nbounds: {math.weight.layer9: [0, 1]}", "did you mean 'math.weight.layer"),
        ("method: ties\nbounds: {density: [0, 1.5]}", "density has no meaning outside [0, 1]"),
        ("method: ties\nfixed: {normalize: 1}", "normalize is true or false, found 1"),
        ("method: ties\nfixed: {density: true}", "density is a number, found True"),
        ("method: ties\nfixed: {dens: 0.5}", "did you mean 'density'"),
        ("method: ties\nfixed: {weight: 1, density: 1}", "no gene left to search"),
        ("method: passthrough\nfixed: {scale: 1}", "passthrough takes one model, these are 2"),
    ],
)
def test_a_bad_search_space_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space(text)
    assert message in str(raised.value)


def test_models_that_do_not_fit_the_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="slerp takes exactly 2 models, these are 4: a, b, c, base"):
        space("method: slerp", llama(2), "a", "b", "c")
    with pytest.raises(ConfigError, match="ties needs a base model"):
        space("method: ties", llama(2), base=None)
    with pytest.raises(ConfigError, match="'zoo/a' is a parent and the base as well"):
        space("method: ties", llama(2), "a", "b", base="zoo/a")
    twice = ParentsInfo(None, {"a": "zoo/a", "b": "zoo/a"}, llama(2), 2)
    config = read_search_space({"method": "linear"}, yaml.loads("method: linear"))
    with pytest.raises(ConfigError, match=r"parents\.b: 'zoo/a' is a parent twice"):
        build_search_space(config, twice)


def test_a_genome_must_have_exactly_the_genes() -> None:
    found = space("method: linear\ngranularity: global")
    with pytest.raises(EvomergeError, match=r"no value for 1 genes, the first 'ja\.weight'"):
        found.express({"math.weight": 1.0})
    with pytest.raises(EvomergeError, match=r"no gene 'jq\.weight'; did you mean 'ja\.weight'"):
        found.express({"math.weight": 1.0, "jq.weight": 1.0})


def test_a_search_space_is_found_by_name_in_the_project(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "mine.yaml").write_text("kind: parameter\nmethod: ties\ngranularity: globl\n")
    monkeypatch.chdir(tmp_path)
    document = yaml.loads("name: x\nsearch_space: mne\n", "experiment.yaml")
    with pytest.raises(ConfigError, match=r"experiment\.yaml:2: search_space: unknown search space 'mne'.*'mine'"):
        read_search_space("mne", document, ("search_space",))
    with pytest.raises(ConfigError, match=r"mine\.yaml:3: granularity"):
        read_search_space("mine", document, ("search_space",))
    with pytest.raises(ConfigError, match="a search space is a name or a mapping of fields"):
        read_search_space([], document, ("search_space",))  # type: ignore[arg-type]


def test_problems_of_an_inline_search_space_have_the_experiments_lines() -> None:
    document = yaml.loads("name: x\nsearch_space:\n  method: ties\n  granularty: layer\n", "experiment.yaml")
    with pytest.raises(ConfigError, match=r"experiment\.yaml:4: search_space\.granularty: unknown field"):
        read_search_space(document.data["search_space"], document, ("search_space",))


def test_filters_fall_back_on_whole_names_where_no_substring_tells_parts_apart() -> None:
    parts = [["layers.1.a.w", "layers.11.b.w", "x.layers.1.b.w"], ["layers.11.a.w", "layers.1.b.w"]]
    filters = choose_filters(parts)
    for index, names in enumerate(parts):
        for name in names:
            assert next(part for text, part in filters if text is None or text in name) == index


def test_a_parameter_of_the_model_as_a_whole_has_one_gene_whatever_the_granularity() -> None:
    assert names_of(space("method: layer_swap", llama(4), "a", "b")) == ["bottom", "top", "transition"]


def test_weights_that_have_a_default_start_there() -> None:
    (start,) = space("method: tsv_merge\ngranularity: global", llama(2), "a", "b").starting_points()
    assert start == {"a.weight": 1.0, "b.weight": 1.0}


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
@pytest.mark.parametrize("base", [None, "zoo/base"])
def test_a_base_that_is_named_is_the_base_of_methods_that_can_do_without(method: str, base: str | None) -> None:
    found = space(f"{{method: {method}, granularity: global}}", llama(4), "math", "japanese", base=base)
    recipe = found.express(found.starting_points()[0])
    assert recipe.base_model == base
    assert len(recipe.models or ()) == 2
