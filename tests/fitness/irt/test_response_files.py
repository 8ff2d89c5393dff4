"""Reading responses: every form gives the same matrix; what cannot be used is named."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from evomerge.errors import ConfigError
from evomerge.fitness.irt.response_files import read_responses
from evomerge.fitness.irt.responses import ResponseMatrix, checked

VALUES = np.array([[1, 0, 0.5], [0, math.nan, 1], [1, 1, 0]])
MODELS, ITEMS = ("org/a", "b", "c"), ("0-aa", "1-bb", "2-cc")
LONG = [(m, i, VALUES[r, c]) for r, m in enumerate(MODELS) for c, i in enumerate(ITEMS) if not np.isnan(VALUES[r, c])]


def _npz(path):
    np.savez(path, responses=VALUES, models=np.array(MODELS), items=np.array(ITEMS))


def _cell(value):
    return "" if np.isnan(value) else str(value)


def _csv(path):
    lines = [",".join(["", *ITEMS]), *(",".join([m, *map(_cell, row)]) for m, row in zip(MODELS, VALUES, strict=True))]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")


def _r_csv(path):
    _csv(path)
    path.write_text(path.read_text(encoding="utf-8").replace(",,", ",NA,"), encoding="utf-8")


def _long_csv(path):
    path.write_text("\n".join(["item,model,response", *(f"{i},{m},{x}" for m, i, x in LONG)]))


def _parquet(path):
    columns = {item: [None if np.isnan(x) else x for x in VALUES[:, n]] for n, item in enumerate(ITEMS)}
    parquet.write_table(pa.table(columns | {"model": list(MODELS)}), path)  # the names need not come first


def _long_parquet(path):
    models, items, responses = zip(*LONG, strict=True)
    parquet.write_table(pa.table({"model": models, "item": items, "response": responses}), path)


def sample(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _samples(path):
    for model, row in zip(MODELS, VALUES, strict=True):
        common = {"doc": {}, "target": "x", "filter": "none", "metrics": ["acc"]}
        rows = [
            common | {"doc_id": n, "doc_hash": ITEMS[n][2:], "acc": x} for n, x in enumerate(row) if not np.isnan(x)
        ]
        folder = path / model.replace("/", "__")
        sample(folder / "samples_my_task_2024-05-02T10-00-00.123456.jsonl", rows)
        sample(folder / "samples_my_task_2024-05-01T10-00-00.123456.jsonl", rows[:1])  # an earlier one


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("r.npz", _npz),
        ("r.csv", _csv),
        ("na.csv", _r_csv),
        ("r.parquet", _parquet),
        ("long.csv", _long_csv),
        ("long.parquet", _long_parquet),
        ("samples", _samples),
    ],
)
def test_every_form_gives_the_same_matrix(tmp_path, name, write):
    write(tmp_path / name)
    matrix = read_responses(tmp_path / name)
    assert sorted(matrix.models) == sorted(MODELS)
    assert sorted(matrix.items) == sorted(ITEMS)
    rows, columns = [matrix.models.index(m) for m in MODELS], [matrix.items.index(i) for i in ITEMS]
    np.testing.assert_array_equal(matrix.values[rows][:, columns], VALUES)
    assert matrix.seen == 8
    assert matrix.task == ("my_task" if name == "samples" else "")


def test_packed_responses_are_unpacked(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (5, 11))
    arrays = {"responses_packed": np.packbits(values, axis=1), "shape": np.array(values.shape)}
    np.savez(tmp_path / "r.npz", **arrays, models=np.arange(5), items=np.arange(11))
    matrix = read_responses(tmp_path / "r.npz")
    np.testing.assert_array_equal(matrix.values, values)
    assert matrix.items[10] == "10"


def test_metabench_is_read(metabench):
    matrix = metabench("gsm8k").matrix
    assert matrix.values.shape == (5041, 249)
    assert matrix.values.mean() == pytest.approx(0.38210210411174556, abs=1e-12)
    assert matrix.problems() == []


def test_a_metric_and_a_task_are_chosen(tmp_path):
    rows = [
        {"doc_id": 0, "filter": name, "metrics": ["em", "f1"], "em": em, "f1": 0.5, "doc_hash": "abcdefghij"}
        for name, em in (("strict", 0.0), ("flexible", 1.0))
    ]
    sample(tmp_path / "m" / "samples_t.jsonl", rows)
    with pytest.raises(ConfigError, match=r"samples of 4 metrics: 'em,flexible', .*\n.*--metric"):
        read_responses(tmp_path)
    with pytest.raises(ConfigError, match=r"samples of 2 metrics: 'em,flexible', 'em,strict'"):
        read_responses(tmp_path, metric="em")
    with pytest.raises(ConfigError, match=r"no samples of the metric 'en,strict'\n.*did you mean 'em,strict'"):
        read_responses(tmp_path, metric="en,strict")
    matrix = read_responses(tmp_path, metric="em,flexible")
    assert (matrix.values.item(), matrix.items, matrix.models) == (1.0, ("0-abcdefgh",), ("m",))
    assert (matrix.task, matrix.metric) == ("t", "em,flexible")
    sample(tmp_path / "m" / "samples_u_2024-05-02T10-00-00.1.jsonl", [{"doc_id": 3, "acc": True}])
    with pytest.raises(ConfigError, match=r"samples of 2 tasks: 't', 'u'\n.*--task"):
        read_responses(tmp_path)
    assert read_responses(tmp_path, "u").items == ("3",)


def _text(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("r.npz", lambda path: None, "no such file or folder"),
        ("r.txt", _text("x"), "cannot be read from .txt files"),
        ("r.npz", _text("x"), "no npz file of plain arrays"),
        ("r.npz", lambda path: np.savez(path, responses=VALUES), "holds no models, items"),
        ("r.csv", _text("model,a\n"), "holds no responses"),
        ("r.csv", _text("model\nx\n"), "holds no items"),
        ("r.csv", _text("model,a,b\nx,1\n"), "row 2 has 2 cells, but the first row has 3"),
        ("r.csv", _text("model,a\nx,one\n"), "responses must be numbers: .*'one' .*column 'a'"),
        ("r.csv", _text("model,item,response\nx,a,1\nx,a,0\n"), "'x' responds to the item 'a' more than once"),
        ("r.parquet", _text("x"), "no parquet file"),
        ("folder", lambda path: path.mkdir(), "no samples_"),
        ("f", lambda path: sample(path / "samples_t.jsonl", [{"x": 1}]), "line 1 is no sample of lm-eval"),
        ("f", lambda path: sample(path / "samples_t.jsonl", [{"doc_id": 1, "acc": "A"}]), "no metric that is a number"),
        (
            "f",
            lambda path: sample(path / "samples_t.jsonl", [{"doc_id": 1, "acc": 1}, {"doc_id": 1, "acc": 0}]),
            "the model 'f' responds to the item '1' more than once",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        read_responses(tmp_path / name)


def matrix(values, models=None, items=None):
    values = np.array(values, dtype=float)
    rows, columns = values.shape
    return ResponseMatrix(
        values, tuple(models or (f"m{n}" for n in range(rows))), tuple(items or (f"i{n}" for n in range(columns)))
    )


GOOD = [[1, 0, 1], [0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("bad", "dimensions", "message"),
    [
        (matrix([[1, 0, 1], [1, 1, 0]]), 1, "all models respond the same to the item 'i0'"),
        (matrix([[1, 0], [math.nan, 1]]), 1, "all models respond the same to the item 'i0'"),
        (matrix([[1, math.nan], [0, math.nan]]), 1, "all models respond the same to the item 'i1'"),
        (matrix(GOOD), 4, "3 items that tell models apart are too few\n.*4 are needed for 4 dimensions"),
        (matrix([[1, 1], [0, 0], [1, 0]]), 1, "1 models with responses that differ"),
        (matrix(GOOD, models=("a", "b", "a")), 1, "the model 'a' more than once"),
        (matrix(GOOD, items=("a", "b", "a")), 1, "the item 'a' more than once"),
        (matrix([[1, 0], [-1, 2]]), 1, r"2 responses lie outside \[0, 1\], such as -1 \(model 'm1', item 'i0'\)"),
        (matrix([[1, 0], [math.inf, 1]]), 1, r"1 responses lie outside \[0, 1\], such as inf"),
        (ResponseMatrix(np.ones((2, 2)), ("a",), ("b",)), 1, r"shape \(2, 2\), but 1 models and 1 items"),
    ],
)
def test_what_cannot_be_calibrated_is_named(bad, dimensions, message):
    with pytest.raises(ConfigError, match=message):
        checked(bad, dimensions, "r.csv")


def test_constant_models_are_told_of_and_constant_items_can_be_left_out():
    found = matrix([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert checked(found.without_items(found.constant_items())).items == ("i0", "i1", "i2")
    (warning,) = found.warnings()
    assert "the responses of the model 'm4' are all the same" in str(warning)
