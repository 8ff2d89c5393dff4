"""Folders of statistics: written, opened, matched to models by their weights, and refused in words."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Checkpoint, CheckpointView
from evomerge.errors import CheckpointError, ExportError
from evomerge.merging import Parents, check_recipe
from evomerge.merging.gathering import Calibration, answered, write_statistics
from evomerge.merging.statistics import Statistics, recipe_problems
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

KINDS = ("fisher", "gram", "scale", "loss")
UP, GATE = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate"))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"), parents=2)


def write(out, models, kinds=KINDS, texts=None):
    texts = texts or {reference: [5, 6, 7, 8, 9, 10] for reference in models}
    calibrations = {
        reference: Calibration(
            Checkpoint(folder), lambda folder=folder: AutoModelForCausalLM.from_pretrained(folder), [answered((), ids)]
        )
        for (reference, folder), ids in zip(models.items(), texts.values(), strict=True)
    }
    return write_statistics(out, calibrations, kinds, seed=0, labels="sampled", sample_rows=4, made={"texts": "none"})


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    out = tmp_path_factory.mktemp("statistics") / "all"
    write(out, {str(path): path for path in family.values()})
    return out


def recipe(family, method="fisher", base=False, **fields):
    models = [{"model": str(family[name])} for name in "ab"]
    fields |= {"base_model": str(family["base"])} if base else {}
    return Recipe.model_validate({"merge_method": method, "models": models, **fields})


def messages(family, **fields):
    parents = Parents.open([str(path) for path in family.values()])
    return "\n".join(map(str, check_recipe(recipe(family, **fields), parents)))


def test_what_was_written_is_read_back_by_kind_and_tensor(family, folder):
    opened = Statistics.open(folder)
    reference = str(family["a"])
    assert opened.tensor(reference, "fisher", UP).shape == Checkpoint(family["a"]).tensors[UP].shape
    assert opened.tensor(reference, "gram", UP).shape == (32, 32)
    assert opened.tensor(reference, "scale", UP).shape == (1, 32)
    assert int(opened.tensor(reference, "axis", UP)) == 1
    assert opened.number(reference, "loss") == float(opened.tensor(reference, "loss", UP))
    assert set(opened.of(reference, UP, ("gram", "axis", "sample", "loss"))) == {"gram", "axis", "loss"}
    assert opened.made == {"texts": "none"}
    for missing in ((reference, "sample", UP), (reference, "gram", "no.such"), ("nobody", "gram", UP)):
        assert opened.tensor(*missing) is None
    assert opened.number("nobody", "loss") is None
    opened.release()
    assert opened.tensor(reference, "gram", UP).isfinite().all()


def test_matrices_that_share_their_inputs_share_one_stored_gram_matrix(family, folder):
    model = Statistics.open(folder).models[str(family["a"])]
    assert model.shared.get(f"gram/{GATE}") == f"gram/{UP}" or model.shared[f"gram/{UP}"] == f"gram/{GATE}"
    opened = Statistics.open(folder)
    assert torch.equal(*(opened.tensor(str(family["a"]), "gram", name) for name in (UP, GATE)))
    assert f"fisher/{GATE}" not in model.shared


def test_models_are_known_by_their_weights_under_any_name(family, folder, tmp_path):
    shutil.copytree(family["a"], tmp_path / "copy")
    matched = Statistics.open(folder).matched({"mine": Checkpoint(tmp_path / "copy")})
    assert torch.equal(matched.tensor("mine", "gram", UP), Statistics.open(folder).tensor(str(family["a"]), "gram", UP))
    view = CheckpointView(Checkpoint(family["a"], str(family["a"])))
    assert str(family["a"]) in Statistics.open(folder).matched({str(family["a"]): view}).models


def test_a_folder_is_opened_anew_when_it_was_made_again(family, tmp_path):
    write(tmp_path / "s", {"x": family["a"]}, ("loss",))
    assert set(Statistics.open(tmp_path / "s").models) == {"x"}
    before = Statistics.open(tmp_path / "s").fingerprint
    shutil.rmtree(tmp_path / "s")
    write(tmp_path / "s", {"y": family["a"]}, ("loss",))
    assert set(Statistics.open(tmp_path / "s").models) == {"y"}
    assert Statistics.open(tmp_path / "s").fingerprint != before


def test_fingerprint_follows_what_is_stored_not_where(family, tmp_path):
    for name, text in (("s", [5, 6, 7]), ("t", [5, 6, 7]), ("u", [5, 6, 8])):
        write(tmp_path / name, {"a": family["a"]}, ("gram",), {"a": text})
    first, second, third = (Statistics.open(tmp_path / name).fingerprint for name in "stu")
    assert first == second != third


def test_recipe_without_statistics_is_told_the_command(family):
    found = messages(family)
    assert "statistics: fisher needs statistics" in found
    assert f"evomerge statistics OUT --model {family['a']} --model {family['b']} --kinds fisher --text FILE" in found
    assert "aim needs statistics" in messages(
        family, method="ties", base=True, aim={"omega": 0.4}, parameters={"weight": 1}
    )


def test_recipes_that_fit_are_accepted(family, folder):
    for method, base in (("fisher", False), ("regmean", False), ("mats", True), ("lm_cocktail", False)):
        assert messages(family, method=method, base=base, statistics=str(folder)) == ""
    fields = {"aim": {"omega": 0.4}, "parameters": {"weight": 1}, "statistics": str(folder)}
    assert messages(family, method="ties", base=True, **fields) == ""


def test_kinds_and_models_that_are_missing_are_named(family, folder, tmp_path):
    assert f"lacks the statistics gradient of '{family['a']}'" in messages(
        family, method="mats_fisher", base=True, statistics=str(folder)
    )
    write(tmp_path / "one", {str(family["a"]): family["a"]}, ("fisher",))
    found = messages(family, statistics=str(tmp_path / "one"))
    assert f"holds no statistics of '{family['b']}', only of '{family['a']}'" in found
    assert "--kinds fisher" in found
    assert "no folder of statistics" in messages(family, statistics=str(tmp_path / "nowhere"))


def test_statistics_of_other_weights_are_refused(family, tmp_path):
    other = tiny_family(tmp_path / "other", parents=2, seed=9)
    models = {str(family[name]): other[name] for name in "ab"}
    write(tmp_path / "s", models, ("fisher",))
    assert f"was made from other weights of '{family['a']}'" in messages(family, statistics=str(tmp_path / "s"))


def test_losses_on_different_texts_are_not_compared(family, tmp_path):
    models = {str(family[name]): family[name] for name in "ab"}
    write(tmp_path / "s", models, ("loss",), {"a": [5, 6, 7], "b": [8, 9, 10]})
    assert "measured on different texts" in messages(family, method="lm_cocktail", statistics=str(tmp_path / "s"))


def test_statistics_of_models_that_the_recipe_changes_first_are_refused(family, folder):
    class Permuted(CheckpointView):
        @property
        def fingerprint(self):
            return self.source.fingerprint + "permuted"

    raw = {str(family[name]): Checkpoint(family[name], str(family[name])) for name in "ab"}
    viewed = {reference: Permuted(checkpoint) for reference, checkpoint in raw.items()}
    for method, refused in (("regmean", True), ("lm_cocktail", False)):
        found = recipe_problems(recipe(family, method, statistics=str(folder)), raw, viewed)
        assert any("before `align` or `tokenizer` changed them" in str(problem) for problem in found) == refused


def test_aim_needs_a_base(family, folder):
    fields = {"aim": {"omega": 0.4}, "parameters": {"weight": 1}, "statistics": str(folder)}
    assert "aim draws the merged weights back towards a base" in messages(family, method="linear", **fields)


def test_damaged_folders_are_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s")
    index = tmp_path / "s" / "statistics.json"
    data = json.loads(index.read_text())
    for change, message in (
        ({"format": 7}, "format 7, readable is 1"),
        ({"models": [{"reference": "x"}]}, "damaged"),
        ({"models": [data["models"][0] | {"folder": "../elsewhere"}]}, "lies outside the folder"),
    ):
        index.write_text(json.dumps(data | change))
        with pytest.raises(CheckpointError, match=message):
            Statistics.open(tmp_path / "s")
    index.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        Statistics.open(tmp_path / "s")


def test_folder_appears_complete_or_not_at_all(family, tmp_path):
    def broken():
        raise RuntimeError("no such model")

    calibrations = {
        "a": Calibration(
            Checkpoint(family["a"]), lambda: AutoModelForCausalLM.from_pretrained(family["a"]), [answered((), [5, 6])]
        ),
        "b": Calibration(Checkpoint(family["b"]), broken, [answered((), [5, 6])]),
    }
    with pytest.raises(RuntimeError, match="no such model"):
        write_statistics(tmp_path / "s", calibrations, ("loss",), seed=0, labels="data", sample_rows=1, made={})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists and is not empty"):
        write(tmp_path / "full", {"a": family["a"]})
