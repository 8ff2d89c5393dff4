"""What a recipe file may say, what is refused and how, and the laws of writing and hashing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError, UnknownNameError
from evomerge.recipes import Recipe, pack_recipe, parse_recipe, read_recipe, unpack_recipe, write_recipe

MINIMAL = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"

numbers = st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False))
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12).filter(
    lambda word: word.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")
)
gradients = st.lists(numbers, min_size=1, max_size=5)
values = st.one_of(numbers, gradients)
filtered = st.lists(st.fixed_dictionaries({"value": values}, optional={"filter": words}), min_size=1, max_size=3)
settings = st.one_of(numbers, words, gradients, filtered)
parameters = st.dictionaries(words, settings, max_size=3)
names = st.sampled_from(["zoo/base", "./a b", "org/model@main", "org/model+org/adapter", "1e5", "no", "日本語"])


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the fields of a valid recipe."""
    models = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    if draw(st.booleans()):
        inputs: dict[str, Any] = {"models": [{"model": model, "parameters": draw(parameters)} for model in models]}
    else:
        start = draw(st.integers(0, 5))
        inputs = {
            "slices": [
                {
                    "sources": [
                        {"model": model, "layer_range": [start, start + 2], "parameters": draw(parameters)}
                        for model in models
                    ],
                    "parameters": draw(parameters),
                }
            ]
        }
    rest = st.fixed_dictionaries(
        {"merge_method": st.sampled_from(["ties", "linear", "not_yet_known"])},
        optional={
            "base_model": names,
            "parameters": parameters,
            "dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
            "chat_template": words,
            "tokenizer_source": names,
            "override_architecture": st.dictionaries(st.sampled_from(models), st.just("LlamaForCausalLM"), max_size=1),
            "seed": st.integers(0, 2**70),
        },
    )
    return {**draw(rest), **inputs}


@given(contents())
def test_what_is_written_reads_back_as_the_same_recipe(fields: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(fields)
    again = parse_recipe(write_recipe(recipe))
    assert again == recipe
    assert again.hash == recipe.hash
    # Equality treats 1, 1.0 and True alike; what is written tells them apart.
    assert write_recipe(again) == write_recipe(recipe)
    packed = unpack_recipe(pack_recipe(recipe))
    assert (packed, packed.hash, write_recipe(packed)) == (recipe, recipe.hash, write_recipe(recipe))
    assert unpack_recipe(write_recipe(recipe)) == recipe


@given(contents(), st.randoms())
def test_the_hash_does_not_depend_on_key_order(fields: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert Recipe.model_validate(shuffled(fields)).hash == Recipe.model_validate(fields).hash


def test_the_hash_ignores_defaults_written_out_and_how_a_number_is_written() -> None:
    spelled_out = parse_recipe(
        MINIMAL + "base_model: null\nparameters: {}\nseed: null\nslices: null\ntokenizer: null\n"
    )
    assert spelled_out.hash == parse_recipe(MINIMAL).hash
    one = parse_recipe(MINIMAL + "parameters: {weight: 1, x: [{filter: '*', value: 0.0}]}")
    other = parse_recipe(MINIMAL + "parameters: {x: [{value: -0.0}], weight: 1.0}")
    assert one.hash == other.hash
    assert one == other


@pytest.mark.parametrize(
    "change",
    [
        "merge_method: ties\nmodels: [{model: a}, {model: b}]",
        "merge_method: linear\nmodels: [{model: b}, {model: a}]",
        MINIMAL + "dtype: float16",
        MINIMAL + "seed: 0",
        MINIMAL + "parameters: {weight: 0.1}",
        MINIMAL + "parameters: {weight: [0.1]}",
        MINIMAL + "parameters: {weight: 0.1000000000000001}",
    ],
)
def test_the_hash_tells_recipes_apart(change: str) -> None:
    others = {
        parse_recipe(MINIMAL).hash,
        parse_recipe(MINIMAL + "parameters: {weight: 0.10000000000000002}").hash,
    }
    assert parse_recipe(change).hash not in others


def test_the_hash_is_the_same_in_every_process() -> None:
    """Also guards the value: journals and caches of older versions are keyed by it."""
    code = f"from evomerge.recipes import parse_recipe; print(parse_recipe({MINIMAL!r}).hash)"
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {parse_recipe(MINIMAL).hash} == {"9c4587f245a44310"}


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, evomerge.recipes, evomerge.search_spaces; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_metod: linear\nmodels: [{model: a}]", "r.yaml:1: merge_metod: unknown field 'merge_metod'\n"),
        ("merge_metod: linear\nmodels: [{model: a}]", "did you mean 'merge_method'?"),
        ("merge_method: linear", "either models or slices"),
        (MINIMAL + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "either models or slices"),
        ("merge_method: linear\nmodels: []", "either models or slices"),
        (
            "merge_method: linear\nmodels:\n- model: a\n  paramters: {}",
            "r.yaml:4: models[0].paramters: unknown",
        ),
        ("merge_method: linear\nmodels:\n- model: a\n  paramters: {}", "did you mean 'parameters'?"),
        (MINIMAL + "parameters:\n  weight:\n  - {filtr: x, value: 1}", "did you mean 'filter'?"),
        (
            MINIMAL + "parameters:\n  weight:\n  - {filtr: x, value: 1}",
            "r.yaml:5: parameters.weight[0].filtr",
        ),
        (MINIMAL + "parameters:\n  weight: [{filter: x}]", "parameters.weight[0]: missing field 'value'"),
        (MINIMAL + "parameters: {weight: []}", "a parameter is a number, a list of numbers"),
        (MINIMAL + "parameters: {weight: [0.5, {value: 1}]}", "a parameter is a number, a list of numbers"),
        (MINIMAL + "parameters: {weight: null}", "a parameter is a number, a list of numbers"),
        (
            MINIMAL + "parameters: {weight: [{value: [{value: 1}]}]}",
            "a value is a number or a list of numbers",
        ),
        (MINIMAL + "parameters: {weight: .nan}", "must be a finite number"),
        (MINIMAL + "parameters: {weight: [.inf]}", "must be a finite number"),
        (MINIMAL + "dtype: float6", "'float6' is not a valid value"),
        (MINIMAL + "dtype: float6", "did you mean 'float64'"),
        (MINIMAL + "dtype: int64", "'int64' is not a valid value"),
        (MINIMAL + "seed: -1", "seed: input should be greater than or equal to 0"),
        (
            MINIMAL + "tokenizer_source: base\ntokenizer: {source: union}",
            "either tokenizer or tokenizer_source",
        ),
        ("merge_method: x\nmodules: {text: {}}", "r.yaml:2: modules.text: a module has either models or slices"),
        (MINIMAL + "modules: {text: {models: [{model: a}]}}", "either models or slices (or modules)"),
        (
            "merge_method: x\nmodules:\n  text:\n    models: [{model: a}]\n    layers: 2",
            "r.yaml:5: modules.text.layers: unknown field 'layers'",
        ),
        ("merge_method: x\nmodules: {t: {models: [{model: a}, {model: a}]}}", "listed twice in one module"),
        (
            "merge_method: linear\nmodels:\n- model: {path: a}",
            "r.yaml:3: models[0].model: a model has no field 'path'",
        ),
        ("merge_method: linear\nmodels: [{model: {lora: a}}]", "needs the field 'model'"),
        ("merge_method: linear\nmodels: [{model: {model: {path: a+b}}}]", "'a+b' cannot be told from a name with"),
        ("merge_method: linear\nmodels: [{model: {model: [a]}}]", "a model's path is a name, or {path, revision}"),
        (
            "merge_method: linear\nbase_model: a\nmodels: [{model: {model: a, override_architecture: X}}]",
            "'a' has not the same override_architecture everywhere",
        ),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "'a' is listed twice in one recipe"),
        ("merge_method: linear\nmodels: [{model: a+b+c}]", "a model is written 'name', 'name@revision'"),
        ("merge_method: linear\nmodels: [{model: ''}]", "models[0].model: string should have at least 1"),
        ("merge_method: s\nslices: [{sources: [{model: a, layer_range: [2, 2]}]}]", "holds no layer"),
        (
            "merge_method: s\nslices: [{sources: [{model: a, layer_range: [0, -1]}]}]",
            "greater than or equal to 0",
        ),
        (
            "merge_method: s\nslices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]",
            "r.yaml:3: slices[0]: sources of one slice must have equally many layers, not [2, 3]",
        ),
        (
            "merge_method: s\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: a, layer_range: [1, 3]}]}]",
            "'a' is listed twice in one slice",
        ),
        (
            MINIMAL + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}",
            "give either token_id or token",
        ),
        (MINIMAL + "dtype: float16\ndtype: float32", "r.yaml:4: the key 'dtype' is written twice"),
        ("just words", "expected a mapping of fields, found a str"),
        ("", "expected a mapping of fields, found nothing"),
    ],
)
def test_a_bad_recipe_is_refused_with_place_and_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe(text, "r.yaml")
    assert message in str(raised.value)


def test_all_problems_of_a_file_come_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe("merge_method: linear\nmodels: [{modl: a}]\ndtype: int3\nseed: x\n")
    assert len(raised.value.problems) == 4


def test_parents_come_in_order_of_first_appearance_and_the_base_last() -> None:
    one = parse_recipe("merge_method: ties\nbase_model: z\nmodels: [{model: b}, {model: a}]")
    assert one.parents() == ("b", "a", "z")
    two = parse_recipe("merge_method: ties\nbase_model: b\nmodels: [{model: a}, {model: b}]")
    assert two.parents() == ("a", "b")
    three = parse_recipe(
        "merge_method: slerp\nbase_model: z\nslices:\n"
        "- {sources: [{model: b, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}], base_model: y}\n"
        "- {sources: [{model: c, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}\n"
    )
    assert three.parents() == ("b", "a", "c", "y", "z")


def test_numbers_in_quotes_and_torch_dtypes_are_understood_as_mergekit_does() -> None:
    text = "parameters: {a: '0.5', b: ['1', 2], c: word, d: no, e: [On, 'YES']}\ndtype: torch.bfloat16"
    recipe = parse_recipe(MINIMAL + text)
    assert recipe.parameters == {"a": 0.5, "b": (1.0, 2), "c": "word", "d": False, "e": (True, True)}
    assert recipe.dtype == "bfloat16"


def test_a_recipe_is_found_by_path_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert read_recipe("mine") == read_recipe(tmp_path / "recipes" / "mine.yaml") == parse_recipe(MINIMAL)
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'mne'.*did you mean 'mine'"):
        read_recipe("mne")


def test_a_written_recipe_is_plain_yaml_for_others() -> None:
    """The floats too: YAML 1.1 readers, as mergekit's, take ``1e-05`` for a string."""
    import yaml

    recipe = parse_recipe(MINIMAL + "parameters: {weight: [1e-5, 3e+20, 0.1], words: [nought, '1e3']}")
    plain = yaml.safe_load(write_recipe(recipe))
    assert plain["parameters"] == {"weight": [1e-5, 3e20, 0.1], "words": ["nought", 1000.0]}
    assert json.dumps(plain)


def test_models_that_are_spelled_out_are_the_same_as_their_text() -> None:
    spelled = parse_recipe(
        "merge_method: ties\n"
        "base_model: {model: {path: org/base, revision: main}}\n"
        "models:\n"
        "- model: {model: a}\n"
        "- model: {model: {path: b}, lora: {path: org/adapter, revision: v2}, override_architecture: null}\n"
        "tokenizer:\n"
        "  source: {model: {path: b}}\n"
        "  tokens:\n"
        "    x: {source: {model: {path: a}}}\n"
        "    y: {source: {kind: model_token, model: {model: {path: a, revision: null}}, token: z}}\n"
    )
    assert spelled == parse_recipe(
        "merge_method: ties\nbase_model: org/base@main\nmodels: [{model: a}, {model: b+org/adapter@v2}]\n"
        "tokenizer: {source: b, tokens: {x: {source: a}, y: {source: {kind: model_token, model: a, token: z}}}}\n"
    )


def test_an_architecture_is_kept_with_its_model() -> None:
    text = "{model: {path: b@v}, override_architecture: MistralForCausalLM}".replace("b@v", "b, revision: v")
    recipe = parse_recipe(f"merge_method: linear\nmodels: [{{model: a}}, {{model: {text}}}]\ntokenizer_source: b@v\n")
    assert recipe.parents() == ("a", "b@v")
    assert recipe.override_architecture == {"b@v": "MistralForCausalLM"}
    written = write_recipe(recipe)
    assert "override_architecture: MistralForCausalLM" in written
    assert "\noverride_architecture" not in written
    assert parse_recipe(written) == recipe
    plain = parse_recipe("merge_method: linear\nmodels: [{model: a}, {model: b@v}]\ntokenizer_source: b@v")
    assert plain.hash != recipe.hash


MODULE = """
merge_method: ties
base_model: z
modules:
  default:
    models: [{model: a, parameters: {weight: 1}}, {model: b}]
    parameters: {weight: [{filter: mlp, value: 0.5}], density: 0.2}
parameters: {weight: [{filter: attn, value: 0.6}], density: 0.9, lambda: 0.7}
"""


def test_one_module_that_is_the_whole_model_is_the_plain_recipe() -> None:
    plain = parse_recipe(
        "merge_method: ties\nbase_model: z\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\n"
        "parameters: {weight: [{filter: mlp, value: 0.5}, {filter: attn, value: 0.6}], density: 0.2, lambda: 0.7}"
    )
    recipe = parse_recipe(MODULE)
    assert recipe == plain
    assert recipe.hash == plain.hash
    assert recipe.modules is None


def test_several_modules_are_kept_and_their_models_are_parents() -> None:
    recipe = parse_recipe(
        MODULE.replace("default", "encoder").replace(
            "parameters: {weight: [{filter: attn",
            """
  decoder:
    slices: [{sources: [{model: c, layer_range: [0, 2]}], base_model: d}]
parameters: {weight: [{filter: attn"""[1:],
        )
    )
    assert recipe.parents() == ("a", "b", "c", "d", "z")
    assert parse_recipe(write_recipe(recipe)) == recipe
    assert [at for at, _ in recipe.parts()] == ["modules.encoder.", "modules.decoder."]


def test_a_recipe_that_was_hashed_copies_and_writes_like_one_that_was_not():
    def made():
        return Recipe.model_validate({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]})

    hashed, plain = made(), made()
    first = hashed.hash
    assert hashed == plain
    assert hashed.model_dump() == plain.model_dump()
    changed = hashed.model_copy(update={"dtype": "float16"})
    assert changed.hash == plain.model_copy(update={"dtype": "float16"}).hash != first
