"""Runs of the searcher `kinship`: the parents' kinship is noted once, and gives that of the children."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.experiments import run as run_module
from evomerge.experiments.export_run import export
from evomerge.experiments.journal import Journal
from evomerge.experiments.kinship import compared, models_compared, products_of
from evomerge.experiments.preflight import prepare
from evomerge.experiments.run import resume, start
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.experiments.summarise import summarise
from evomerge.kinship import METRICS, Products, kinship_to
from evomerge.reports.html import render_report
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SETTINGS = (
    "search_space={kind: lineage, crossover: linear}",
    "searcher={kind: kinship}",
    "budget.trials=14",
    "workers.count=1",
    "workers.threads=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny")).parent


def experiment(folder: Path, *more: str) -> ExperimentConfig:
    return read_experiment(str(folder / "experiment.yaml"), [*SETTINGS, *more])


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert start(experiment(folder), folder / "whole", SilentDisplay()).finished
        yield folder / "whole"
        ray.shutdown()


def test_the_parents_kinship_is_noted(whole: Path, folder: Path) -> None:
    noted = Products.from_json(Journal.read(whole / "journal.log").facts()["kinship"])
    found = products_of(compared(experiment(folder)))[""]
    assert noted.entries == found.entries
    assert np.allclose(noted.gram, found.gram, rtol=1e-12)


def test_the_report_shows_it(whole: Path) -> None:
    summary = summarise(whole)
    assert summary.kinship is not None
    assert summary.kinship.models == ("a", "b", "c")
    assert 'id="figure-kinship"' in render_report(summary)


def test_the_kinship_of_children_is_that_of_their_weights(whole: Path, folder: Path, tmp_path: Path) -> None:
    noted = Products.from_json(Journal.read(whole / "journal.log").facts()["kinship"])
    trials = Journal.read(whole / "journal.log").trials()
    shares = {-1 - n: row for n, row in enumerate(np.eye(3))}
    for trial in trials:
        first, second = (shares[int(trial.genome[name])] for name in ("first", "second"))
        shares[trial.number] = (
            float(trial.genome["first.weight"]) * first + float(trial.genome["second.weight"]) * second
        )
    chosen = [3, 8, 13]
    for number in chosen:
        export(whole, tmp_path / str(number), number)
    base = str(experiment(folder).base)
    found = products_of(models_compared([str(tmp_path / str(number)) for number in chosen], base))[""]
    rows = np.stack([shares[number] for number in chosen])
    for name, metric in METRICS.items():
        predicted = [kinship_to(noted, name, one, rows) for one in rows]
        assert np.allclose(metric(found), predicted, rtol=1e-4, atol=1e-4)


def test_a_run_goes_on_with_what_was_noted(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (whole / "journal.log").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"op_code":4' in line)
    out = folder / "cut"
    out.mkdir()
    shutil.copy(whole / "experiment.yaml", out)
    (out / "journal.log").write_bytes(b"".join(lines[: first + 9]))
    monkeypatch.setattr(run_module, "products_of", None)  # is not to be called
    assert resume(out, SilentDisplay()).finished
    genomes = [[t.genome for t in Journal.read(run / "journal.log").trials()] for run in (whole, out)]
    assert genomes[0] == genomes[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search_space.crossover=m2n2", "cannot tell the kinship of these children"),
        ("base=null", "compares task vectors, and the experiment has no base"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(experiment(folder, override))
