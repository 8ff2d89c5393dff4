"""``evomerge kinship``: models, experiments and runs, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evomerge.cli import cli
from evomerge.errors import CheckpointError, ConfigError, EvomergeError, UnknownNameError
from evomerge.testing.tiny_models import tiny_family

EXPERIMENT = """\
# Three parents of a tiny base.
name: tiny
base: ./models/base
parents: {first: ./models/a, second: ./models/b, third: ./models/c}
search_space: {kind: parameter, method: linear, granularity: global}
fitness: {objectives: [{task: arithmetic_ja}]}
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_family(tmp_path / "models", parents=3)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["kinship", *arguments])
    if isinstance(result.exception, EvomergeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_matrix_of_all_pairs_is_printed() -> None:
    lines = run("models/a", "models/b", "models/c", "--base", "models/base").stdout.splitlines()
    assert lines[0] == "Pearson correlation of task vectors (19,616 entries)"
    assert lines[2].split() == ["a", "b", "c", "from", "base"]
    rows = [line.split() for line in lines if line.split()[:1] in (["a"], ["b"], ["c"])][1:]
    assert [row[0] for row in rows] == ["a", "b", "c"]
    for place, row in enumerate(rows, 1):
        assert row[place] == "1.000"
        assert abs(float(row[place % 3 + 1].replace("−", "-"))) < 0.05  # independent noise
        assert float(row[4]) == pytest.approx(0.02 * 19616**0.5, rel=0.1)
    assert any(line.startswith("mean of all pairs: ") for line in lines)


def test_json_holds_all_metrics_and_groups() -> None:
    found = json.loads(run("models/a", "models/b", "--base", "models/base", "--by", "group", "--json").stdout)
    assert found["base"] == "models/base"
    assert found["models"] == {"a": "models/a", "b": "models/b"}
    assert list(found["parts"]) == ["all", "attention", "mlp", "norm", "embedding"]
    whole, *groups = found["parts"].values()
    assert whole["entries"] == sum(part["entries"] for part in groups) == 19616
    distances = [part["ed"]["matrix"][0][1] for part in (whole, *groups)]
    assert distances[0] == pytest.approx(sum(each**2 for each in distances[1:]) ** 0.5)
    assert whole["pcc"]["mean"] == whole["pcc"]["matrix"][0][1]


def test_the_parents_of_an_experiment_and_of_a_run_are_compared(tmp_path: Path) -> None:
    expected = json.loads(run("models/a", "models/b", "models/c", "--base", "models/base", "--json").stdout)["parts"]
    found = json.loads(run("tiny.yaml", "--json").stdout)
    assert list(found["models"]) == ["first", "second", "third"]
    assert found["parts"] == expected
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.yaml").write_text(EXPERIMENT.replace("./models", str(tmp_path / "models")))
    assert json.loads(run("run", "--json").stdout)["parts"] == expected
    other = json.loads(run("run", "--base", "models/a", "--json").stdout)["parts"]["all"]
    assert other["from_base"][0] == 0
    assert other["pcc"]["matrix"][0] == [None, None, None]


def test_many_models_have_numbers_and_undefined_kinship_a_dash(tmp_path: Path) -> None:
    tiny_family(tmp_path / "more", parents=6)
    names = [*(f"more/{name}" for name in "abcdef"), "more/base"]
    lines = run(*names, "--base", "more/base", "--metric", "cs").stdout.splitlines()
    assert lines[2].split() == [*"1234567", "from", "base"]
    assert next(line for line in lines if line.startswith(" 7 base")).split() == ["7", "base", *"–––––––", "0.000"]


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    tiny_family(tmp_path / "more", parents=1)
    found = json.loads(run("models/a", "more/a", "--base", "models/base", "--json").stdout)
    assert list(found["models"]) == ["models/a", "more/a"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--base: task vectors are differences from a base model; name the one"):
        run("models/a", "models/b")
    with pytest.raises(ConfigError, match="'models/a' is named twice"):
        run("models/a", "models/a", "--base", "models/base")
    with pytest.raises(UnknownNameError, match="unknown experiment 'models/a'"):
        run("models/a", "--base", "models/base")
    with pytest.raises(CheckpointError, match="models/z"):
        run("models/a", "models/z", "--base", "models/base")
    (tmp_path / "baseless.yaml").write_text(EXPERIMENT.replace("base: ./models/base\n", ""))
    with pytest.raises(ConfigError, match=r"the experiment names none\n.*or with --base"):
        run("baseless.yaml")
    assert json.loads(run("baseless.yaml", "--base", "models/base", "--json").stdout)["models"]
