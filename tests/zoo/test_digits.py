"""The zoo's networks for digits: the authors' network and split, built the same each time, scored as defined."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import CheckpointError
from evomerge.experiments.preflight import prepare
from evomerge.experiments.schema import read_experiment
from evomerge.fitness import Fitness, FitnessConfig
from evomerge.library import entries
from evomerge.zoo import digits


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(cache))


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(cache))
        return digits.build_digits()


def in_numpy(network: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the logits, by the authors' definition of the network written out in float64."""
    places = np.cumsum([64 * 256, 256, 256 * 10])
    w, b, v, c = np.split(network.astype(np.float64), places)
    return np.maximum(pixels @ w.reshape(64, 256) + b, 0) @ v.reshape(256, 10) + c


def accuracy(name: str, fitness: Fitness, split: str) -> float:
    tensors = {digits.TENSOR: open_checkpoint(f"zoo/digits/{name}").tensor(digits.TENSOR)}
    responses = fitness.evaluate(tensors, None, fitness.items(split))  # type: ignore[arg-type]
    return fitness.score(responses)["f"]


def fitness_of(function: str) -> Fitness:
    return Fitness(FitnessConfig(objectives=[{"function": f"evomerge.zoo.digits:{function}", "name": "f"}]))


def test_the_network_is_the_authors(folder: Path) -> None:
    pixels, _ = load_digits(return_X_y=True)
    for name in ("low", "random-07"):
        network = load_file(folder / name / "model.safetensors")[digits.TENSOR]
        assert network.shape == (19210,)
        ours = digits.logits(network, digits.images().pixels)
        np.testing.assert_allclose(ours, in_numpy(network.numpy(), pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", ["search", "confirmation"])
@pytest.mark.parametrize("function", ["correct", "low", "high", "odd", "even"])
def test_scores_are_accuracies_on_the_authors_split(folder: Path, function: str, split: str) -> None:
    pixels, labels = load_digits(return_X_y=True)
    wanted = {
        "correct": labels >= 0,
        "low": labels < 5,
        "high": labels >= 5,
        "odd": labels % 2 == 1,
        "even": labels % 2 == 0,
    }[function]
    wanted = wanted & ((np.arange(1797) < 1437) == (split == "search"))
    network = load_file(folder / "high" / "model.safetensors")[digits.TENSOR].numpy()
    right = in_numpy(network, pixels).argmax(1) == labels
    assert accuracy("high", fitness_of(function), split) == pytest.approx(right[wanted].mean(), abs=1e-12)


def test_halves_know_their_half_and_random_networks_nothing(folder: Path) -> None:
    low, high = fitness_of("low"), fitness_of("high")
    assert accuracy("low", low, "confirmation") > 0.8
    assert accuracy("high", high, "confirmation") > 0.8
    assert accuracy("low", high, "confirmation") == accuracy("high", low, "confirmation") == 0.0
    assert max(accuracy(name, fitness_of("correct"), "confirmation") for name in digits.RANDOM) < 0.2


def test_networks_are_built_the_same_each_time(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert len(before) == 22
    stamps = {file: file.stat().st_mtime_ns for file in before}
    assert digits.build_digits() == folder
    assert {file: file.stat().st_mtime_ns for file in before} == stamps, "nothing is built twice"
    digits.build_digits(force=True)
    assert {file: file.read_bytes() for file in folder.rglob("*.safetensors")} == before
    assert {file: file.stat().st_mtime_ns for file in before} != stamps
    numbers = torch.cat([load_file(folder / name / "model.safetensors")[digits.TENSOR] for name in digits.RANDOM])
    assert float(numbers.mean()) == pytest.approx(0, abs=1e-4)
    assert float(numbers.std()) == pytest.approx(0.01, rel=0.01)


def test_networks_that_are_not_there_say_how_to_get_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"no such model in the zoo.*zoo/digits/low"):
        open_checkpoint("zoo/digits/lou")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"run `evomerge zoo build digits`"):
        open_checkpoint("zoo/digits/low")


@pytest.mark.parametrize("name", [each.name for each in entries("experiments") if each.name.startswith("digits-")])
def test_every_experiment_on_digits_is_valid(folder: Path, name: str) -> None:
    prepared = prepare(read_experiment(name))
    assert prepared.fitness.takes_batches
    assert sum(map(len, prepared.fitness.items("confirmation").values())) == 360
