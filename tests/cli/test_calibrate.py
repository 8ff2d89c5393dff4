"""``evomerge calibrate``: from a file of responses to an item bank."""

import sys

import numpy as np
import pytest

from evomerge.cli import main
from evomerge.fitness.irt.bank import ItemBank


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command; return its exit code and output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", "calibrate", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def responses(tmp_path):
    draw = np.random.default_rng(0)
    ability = draw.normal(size=(80, 1))
    values = (draw.random((80, 10)) < 1 / (1 + np.exp(-1.5 * ability - draw.normal(size=10)))).astype(float)
    values[0] = 0
    lines = ["model," + ",".join(f"item{n}" for n in range(10))]
    lines += [f"m{n}," + ",".join(str(x) for x in row) for n, row in enumerate(values)]
    (tmp_path / "arithmetic.csv").write_text("\n".join(lines))
    return tmp_path / "arithmetic.csv"


def test_a_bank_is_written(call, responses, tmp_path):
    code, said = call(responses, tmp_path / "bank")
    assert code == 0
    assert "arithmetic: 10 items, 80 models, 2pl, 1 dimension, log-likelihood" in said
    assert "warning: " in said
    assert "the responses of " in said
    assert "1 dimension: held-out log-likelihood" in said
    bank = ItemBank.read(tmp_path / "bank.yaml")
    assert (bank.task, bank.metric, bank.items[3]) == ("arithmetic", "response", "item3")
    assert bank.made["model"] == "2pl"


def test_what_is_said_is_done(call, responses, tmp_path):
    code, _ = call(responses, tmp_path / "b", "--dimensions", 2, "--task", "mine", "--metric", "acc")
    assert code == 0
    bank = ItemBank.read(tmp_path / "b")
    assert (bank.task, bank.metric, bank.parameters.dimensions) == ("mine", "acc", 2)
    assert call(responses, tmp_path / "c", "--model", "3pl")[0] == 0
    assert (ItemBank.read(tmp_path / "c").parameters.lower > 0).all()


def test_a_missing_gpu_is_named(call, responses, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, said = call(responses, tmp_path / "bank", "--device", "cuda")
    assert code == 2
    assert "no CUDA device can be used here" in said


def test_constant_items_are_refused_or_left_out(call, responses, tmp_path):
    lines = responses.read_text().split("\n")
    responses.write_text("\n".join([lines[0] + ",easy", *(line + ",1" for line in lines[1:])]))
    code, said = call(responses, tmp_path / "bank")
    assert code == 2
    assert "all models respond the same to the item 'easy'" in said
    assert "--drop-constant" in said
    assert not (tmp_path / "bank.yaml").exists()
    code, said = call(responses, tmp_path / "bank", "--drop-constant")
    assert code == 0
    assert "left out 1 constant items" in said
    assert len(ItemBank.read(tmp_path / "bank").items) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dimensions", 0], "0 is not in the range"),
        (["--dimensions", "some"], "'some' is not a valid integer"),
        (["--dimensions", 11], "10 items that tell models apart are too few"),
        (["--model", "3pl", "--dimensions", 2], "2 dimensions are not known to the model '3pl'"),
    ],
)
def test_impossible_options_are_refused(call, responses, tmp_path, options, message):
    code, said = call(responses, tmp_path / "bank", *options)
    assert code == 2
    assert message in said
