"""Item banks: written and read back, and refused where they do not fit."""

import numpy as np
import pytest
import yaml

from evomerge.errors import ConfigError
from evomerge.fitness.irt.bank import ItemBank, ItemParameters


@pytest.fixture
def bank():
    draw = np.random.default_rng(0)
    parameters = ItemParameters(draw.normal(size=(4, 2)), draw.normal(size=4), np.full(4, 0.1), np.ones(4))
    responses = np.array([[0.0, 1.0, 0.5, np.nan], [1.0, 1.0, 0.0, 0.0]])
    items = ("0-aa", "1-bb", "2-cc", "若-3")
    models = ("a/b", "c"), responses, ("c",), responses / 2
    return ItemBank("gsm8k", "exact_match,none", items, parameters, *models, {"model": "2pl"})


@pytest.mark.parametrize("name", ["bank", "bank.yaml", "bank.safetensors", "gsm8k.v2"])
def test_a_bank_is_read_as_it_was_written(bank, tmp_path, name):
    header, numbers = bank.write(tmp_path / "new" / name)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted([header.name, numbers.name])
    for path in (tmp_path / "new" / name, header, numbers):
        again = ItemBank.read(path)
        assert (again.task, again.metric, again.items, again.made) == (bank.task, bank.metric, bank.items, bank.made)
        for part in ("slopes", "intercepts", "lower", "upper"):
            assert np.array_equal(getattr(again.parameters, part), getattr(bank.parameters, part))
        assert (again.models, again.parents) == (bank.models, bank.parents)
        assert np.array_equal(again.responses, bank.responses, equal_nan=True)
        assert np.array_equal(again.gold, bank.gold, equal_nan=True)


def test_a_bank_written_twice_has_the_same_bytes(bank, tmp_path):
    first = [path.read_bytes() for path in bank.write(tmp_path / "bank")]
    assert first == [path.read_bytes() for path in bank.write(tmp_path / "bank")]


def test_a_bank_is_for_its_task_and_items_only(bank):
    bank.require("gsm8k", "exact_match,none", [*bank.items, "another"])
    with pytest.raises(ConfigError, match=r"made for the task 'gsm8k' \(exact_match,none\), not for 'arc' \(acc\)"):
        bank.require("arc", "acc", bank.items)
    with pytest.raises(
        ConfigError, match="2 of the item bank's 4 items no longer exist in 'gsm8k', such as '1-bb', '若-3'"
    ):
        bank.require("gsm8k", "exact_match,none", ["0-aa", "2-cc"], "estimate.bank")


def _without(key):
    def change(header, numbers):
        content = yaml.safe_load(header.read_text())
        del content[key]
        header.write_text(yaml.safe_dump(content))

    return change


def _fewer_items(header, numbers):
    content = yaml.safe_load(header.read_text())
    header.write_text(yaml.safe_dump(content | {"items": content["items"][:-1]}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda header, numbers: numbers.unlink(), r"bank.safetensors: cannot be read: No such file"),
        (lambda header, numbers: header.unlink(), r"bank.yaml: cannot be read: No such file"),
        (lambda header, numbers: numbers.write_bytes(b"other"), r"was not written with bank.yaml"),
        (lambda header, numbers: header.write_text("{"), r"no part of an item bank"),
        (lambda header, numbers: header.write_text("just words"), r"no item bank: task, metric"),
        (_without("items"), r"no item bank: items missing"),
        (_fewer_items, r"4 items, but bank.yaml names 3"),
    ],
)
def test_broken_banks_are_refused(bank, tmp_path, harm, message):
    files = bank.write(tmp_path / "bank")
    harm(*files)
    with pytest.raises(ConfigError, match=message):
        ItemBank.read(tmp_path / "bank")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": np.ones((3, 2))}, "slopes of 3 items, but intercepts of 4"),
        ({"slopes": np.ones(4)}, "shapes do not fit"),
        ({"intercepts": np.array([0, np.nan, 0, 0])}, "not finite"),
        ({"lower": np.ones(4)}, "lower < upper"),
    ],
)
def test_impossible_parameters_are_named(bank, change, message):
    parts = {name: getattr(bank.parameters, name) for name in ("slopes", "intercepts", "lower", "upper")}
    (problem,) = ItemParameters(**(parts | change)).problems()
    assert message in str(problem)


def test_some_items_can_be_chosen(bank):
    chosen = bank.parameters.chosen([2, 0])
    assert len(chosen) == 2
    assert np.array_equal(chosen.slopes, bank.parameters.slopes[[2, 0]])
    assert np.array_equal(chosen.lower, bank.parameters.lower[[2, 0]])
