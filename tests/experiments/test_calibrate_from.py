"""Item banks made for an experiment before it runs: the same as a run makes by itself, and evaluated once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, FitnessError
from evomerge.experiments.calibrate_from import _identity, calibrate_from
from evomerge.experiments.journal import Journal
from evomerge.experiments.preflight import prepare
from evomerge.experiments.run import start
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.fitness.estimate_config import CalibrationConfig, SoftConfig
from evomerge.fitness.irt.bank import ItemBank
from evomerge.testing.stored import stored_responses
from evomerge.testing.tasks import write_choices
from evomerge.testing.tiny_experiment import SilentDisplay, tiny_experiment
from evomerge.testing.tiny_models import tiny_family

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
CALIBRATION = CalibrationConfig(models=4, seed=3)
FILES = ("0-near.yaml", "0-near.safetensors", "1-far.yaml", "1-far.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment with scores in [0, 1]."""
    path = tiny_experiment(tmp_path_factory.mktemp("tiny"))
    score = path.parent / "score.py"
    score.write_text(score.read_text().replace("torch.tanh(3 * mean +", "torch.sigmoid(30 * mean +"))
    return path


@pytest.fixture(scope="module")
def banks(file: Path) -> Path:
    out = file.parent / "banks"
    calibrate(file, out)
    return out


def calibrate(file: Path, out: Path, *overrides: str, config: CalibrationConfig = CALIBRATION) -> list[str]:
    display = SilentDisplay()
    calibrate_from(read_experiment(str(file), overrides), out, config, display)
    return display.notes


def run(file: Path, out: Path, *overrides: str) -> None:
    experiment = read_experiment(str(file), ["fitness.estimate.items=4", "budget.trials=3", *overrides])
    assert start(experiment, out, SilentDisplay()).finished


def evaluated(out: Path, split: str = "calibration") -> set[str]:
    return set(stored_responses(out, split))


def test_a_run_makes_the_same_banks_by_itself(file: Path, banks: Path) -> None:
    own = file.parent / "own"
    run(file, own, "fitness.estimate.calibration={models: 4, seed: 3}")
    assert sorted(path.name for path in (own / "banks").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (banks / name).read_bytes() == (own / "banks" / name).read_bytes()
    assert evaluated(banks) == evaluated(own)


def test_a_run_with_the_banks_evaluates_no_random_merge(file: Path, banks: Path) -> None:
    named = file.parent / "named"
    run(file, named, "fitness.estimate.bank=banks")
    assert len(evaluated(banks)) == 9  # base, three parents, uniform, four random merges
    assert len(evaluated(named)) == 5
    asked = [trial.items for trial in Journal.read(named / "journal.log").trials()]
    assert asked == [dict.fromkeys(asked[0], 4)] * 3
    assert len(asked[0]) == 2


def test_the_models_are_named_and_the_merges_told_from_their_parents(banks: Path) -> None:
    bank = ItemBank.read(banks / "0-near")
    assert bank.models == ("base", "a", "b", "c", "uniform", *(f"random merge {n}" for n in range(4)))
    assert bank.parents == ("base", "a", "b", "c")


def test_a_killed_calibration_goes_on_from_its_responses(file: Path, banks: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copytree(banks / "responses", tmp_path / "out" / "responses")
    notes = calibrate(file, tmp_path / "out", "searcher=random", "fitness.estimate.items=7")
    assert not any("starting" in note for note in notes)
    assert "9 models are to be evaluated on all search items; 9 of them already are" in notes
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (banks / name).read_bytes()


@pytest.mark.slow
def test_more_models_are_evaluated_alone(file: Path, banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks, tmp_path / "out")
    notes = calibrate(file, tmp_path / "out", config=CALIBRATION.model_copy(update={"models": 5}))
    assert [note for note in notes if " of 10: " in note] == ["10 of 10: random merge 4"]
    assert len(ItemBank.read(tmp_path / "out" / "1-far").models) == 10


@pytest.mark.slow
def test_responses_under_other_settings_are_not_used(file: Path, banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks, tmp_path / "out")
    notes = calibrate(file, tmp_path / "out", "fitness.batch_size=3")
    assert "9 models are to be evaluated on all search items" in notes


@pytest.mark.slow
def test_nor_are_those_of_other_weights_or_functions(tmp_path: Path) -> None:
    path = tiny_experiment(tmp_path)

    def identity(*overrides: str) -> str:
        return _identity(prepare(read_experiment(str(path), overrides)))

    before = identity()
    assert identity("searcher=random", "search_space.granularity=global") == before
    tiny_family(tmp_path / "other", seed=7)
    shutil.copy(tmp_path / "other" / "b" / "model.safetensors", tmp_path / "models" / "b")
    changed = identity()
    score = tmp_path / "score.py"
    score.write_text(score.read_text() + "\n")
    assert len({before, changed, identity()}) == 3


def test_soft_responses_come_with_the_bank(file: Path, tmp_path: Path) -> None:
    task = write_choices(tmp_path, items=30)
    experiment = read_experiment(str(file), [f"fitness.objectives=[{{task: {task}, metric: acc}}]"])
    banks = calibrate_from(experiment, tmp_path / "out", CALIBRATION, SilentDisplay(), soft=SoftConfig(items=6))
    gold = ItemBank.read(tmp_path / "out" / "0-tiny-choices").gold
    assert gold is not None
    assert ((gold >= 0) & (gold <= 1)).sum(1).tolist() == [30] * len(banks["tiny-choices"].models)


def hybrid(file: Path) -> ExperimentConfig:
    space = "search_space={kind: hybrid, parameter: {method: ties, granularity: layer}, routing: {}}"
    return read_experiment(str(file), [space])


@pytest.mark.slow
def test_a_hybrid_experiment_is_calibrated_on_its_first_stage(file: Path, banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks, tmp_path / "out")
    display = SilentDisplay()
    calibrate_from(hybrid(file), tmp_path / "out", CALIBRATION, display)
    assert not any("starting" in note for note in display.notes)
    assert (tmp_path / "out" / FILES[1]).read_bytes() == (banks / FILES[1]).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "config", "message"),
    [
        ((), {"model": "3pl", "dimensions": 2}, "2 dimensions are not known to the model '3pl'"),
        (("fitness.search_items=2",), {"dimensions": 3}, "'near' has 2 search items; at least 3 are needed"),
        (("workers.count=0",), {}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    file: Path, tmp_path: Path, overrides: tuple[str, ...], config: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(file, tmp_path / "out", *overrides, config=CALIBRATION.model_copy(update=config))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").touch()
    with pytest.raises(ConfigError, match="the folder holds a run"):
        calibrate(file, tmp_path)


def test_functions_have_no_soft_responses(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no right answers"):
        calibrate_from(read_experiment(str(file)), tmp_path, CALIBRATION, SilentDisplay(), soft=SoftConfig())


def test_responses_outside_of_0_and_1_stop_it_at_the_first_model(tmp_path: Path) -> None:
    path = tiny_experiment(tmp_path)
    score = path.parent / "score.py"
    score.write_text(score.read_text().replace("torch.tanh(3 * mean +", "torch.exp(30 * mean +"))
    display = SilentDisplay()
    with pytest.raises(FitnessError, match=r"only responses in \[0, 1\]"):
        calibrate_from(read_experiment(str(path)), tmp_path / "out", CALIBRATION, display)
    assert not any("2 of 9" in note for note in display.notes)
    assert not list((tmp_path / "out").glob("*.yaml"))
