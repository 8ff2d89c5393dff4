"""A plan's numbers against what they stand for: tensors, files, prepared states, and arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.experiments.checks import check, refusals, settled
from evomerge.experiments.disk import disk_of
from evomerge.experiments.durations import CROWDED, time_of
from evomerge.experiments.fetching import to_fetch
from evomerge.experiments.memory import memory_of, prepared_bytes, weights_of
from evomerge.experiments.probe import Probed
from evomerge.experiments.schema import ExperimentConfig, read_experiment
from evomerge.experiments.stage_plans import front_size, space_line, stage_plans
from evomerge.merging import InPlaceMerger, Parents
from evomerge.merging.preparations import Preparations
from evomerge.merging.state import num_bytes
from evomerge.recipes import Recipe
from evomerge.reports.planned import Span, StagePlan, TaskPlan, WorkersPlan
from evomerge.testing.tiny_experiment import tiny_experiment
from evomerge.testing.tiny_models import tiny_family

FAMILIES = ("llama", "gemma2", "gpt2", "qwen3_moe", "phi3", "gpt_neox", "mamba", "jamba")


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment(tmp_path_factory.mktemp("tiny"))


def read(file: Path, *overrides: str) -> ExperimentConfig:
    return read_experiment(str(file), overrides)


def bytes_of(model: torch.nn.Module) -> int:
    """Return the bytes of all that a model stores, what is shared once."""
    state = model.state_dict(keep_vars=True).values()
    return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in state}.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_resident_model(family: str, dtype: str, tmp_path: Path) -> None:
    paths = tiny_family(tmp_path, family, parents=1)
    base = str(paths["base"])
    parents = Parents.open([base, str(paths["a"])])
    model = InPlaceMerger(parents, base=base, dtype=dtype).model
    assert weights_of(parents, base, getattr(torch, dtype)) == bytes_of(model)


def test_a_head_that_one_parent_stores_is_counted(tmp_path: Path) -> None:
    tied = tiny_family(tmp_path / "tied", parents=0, tied=True)["base"]
    untied = tiny_family(tmp_path / "untied", parents=0, tied=False)["base"]
    parents = Parents.open([str(tied), str(untied)])
    model = InPlaceMerger(parents, base=str(tied)).model
    assert weights_of(parents, str(tied), torch.float32) == bytes_of(model)
    alone = Parents.open([str(tied)])
    assert weights_of(alone, str(tied), torch.float32) == bytes_of(model) - 64 * 32 * 4


class Recording(Preparations):
    """Counts the bytes of all states that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def get(self, *arguments: Any) -> Any:
        state = super().get(*arguments)
        self.bytes += num_bytes(state)
        return state


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"weight": 1.0, "density": 0.5},
    "dare_ties": {"weight": 1.0, "density": 0.5},
    "breadcrumbs": {"weight": 1.0, "density": 0.9, "gamma": 0.01},
    "task_arithmetic": {"weight": 1.0},
    "iso_c": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_prepared_states_are_what_a_merge_prepares(method: str, tmp_path: Path) -> None:
    paths = {name: str(path) for name, path in tiny_family(tmp_path, parents=2).items()}
    models = [{"model": paths[name], "parameters": METHODS[method]} for name in ("a", "b")]
    recipe = Recipe.model_validate({"merge_method": method, "base_model": paths["base"], "models": models})
    parents = Parents.open(list(paths.values()))
    recording = Recording()
    InPlaceMerger(parents, base=paths["base"], prepared=recording).merge(recipe)
    assert prepared_bytes(recipe, parents) == recording.bytes


def test_of_a_large_matrix_a_corner_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {name: str(path) for name, path in tiny_family(tmp_path, parents=2).items()}
    models = [{"model": paths[name], "parameters": {}} for name in ("a", "b")]
    recipe = Recipe.model_validate({"merge_method": "iso_c", "base_model": paths["base"], "models": models})
    parents = Parents.open(list(paths.values()))
    whole = prepared_bytes(recipe, parents)
    monkeypatch.setattr("evomerge.experiments.memory.LARGE", 256)
    monkeypatch.setattr("evomerge.experiments.memory.CORNER", 16)
    corner = prepared_bytes(recipe, parents)
    assert whole is not None
    assert corner is not None
    assert whole / 2 <= corner <= 2 * whole


def test_paths_keep_the_layers_of_other_parents(experiment_file: Path) -> None:
    space = "search_space={kind: layer_routing, repetitions: 1, scales: none}"
    prepared = check(read(experiment_file, space))[0]
    memory = memory_of(prepared, {}, device="cpu", batch=None, machine=2**34, gpu=None)
    others = [path for path in prepared.experiment.parents.values() if path != prepared.donor]
    layers = [
        tensor
        for path in others
        for name, tensor in prepared.parents[path].tensors.items()
        if name.startswith("model.layers.")
    ]
    assert memory.layers == sum(math.prod(tensor.shape) * 4 for tensor in layers) > 0
    assert "what functions take is not known" in memory.assumed


def test_counts_of_a_plain_experiment(experiment_file: Path) -> None:
    experiment = read(experiment_file)
    (stage,) = stage_plans(experiment, check(experiment), {})
    assert (stage.trials, stage.searches, stage.references, stage.calibration) == (18, Span(18, 18), 5, 0)
    space = check(experiment)[0].space
    assert sum(stage.genes.values()) == len(space.genes)
    assert [(task.search + task.confirmation, task.asked == task.search) for task in stage.tasks] == [(24, True)] * 2
    assert stage.space == "parameter, method ties"
    assert 5 < stage.confirmed.low < stage.confirmed.high <= 5 + 18


def test_counts_of_an_estimated_one(experiment_file: Path) -> None:
    objectives = 'fitness.objectives=[{function: "./score.py:right", name: right}]'
    estimate = "fitness.estimate={kind: gmp-irt, items: 4, calibration: {models: 7}}"
    experiment = read(experiment_file, objectives, estimate, "searcher=cma-es")
    (stage,) = stage_plans(experiment, check(experiment), {})
    assert stage.calibration == 7
    assert [task.asked for task in stage.tasks] == [4]
    assert stage.tasks[0].search > 4
    assert stage.confirmed == Span(6, 6)  # of a single objective, the best alone


def test_counts_of_a_hybrid(experiment_file: Path) -> None:
    parameter = "{kind: parameter, method: linear, granularity: global}"
    routing = "{kind: layer_routing, repetitions: 1, scales: none}"
    space = f"search_space={{kind: hybrid, trials: 6, parameter: {parameter}, routing: {routing}}}"
    experiment = read(experiment_file, space)
    first, second = stage_plans(experiment, check(experiment), {})
    assert (first.trials, second.trials) == (6, 12)
    assert second.references == first.references + 1  # the first stage's pick is a parent


def test_counts_of_a_tree(experiment_file: Path) -> None:
    experiment = read(experiment_file, "searcher={kind: map, variant: nested}", "budget.trials=40")
    (stage,) = stage_plans(experiment, check(experiment), {})
    assert (stage.merges, stage.trials) == (2, 40)
    assert stage.searches == Span(2 * 20, 40)  # two levels of twenty trials: here all of them
    assert stage.references == 3 + 2 * 4


def test_every_problem_of_every_stage_comes_at_once(experiment_file: Path) -> None:
    parameter = "{kind: parameter, method: linear, granularity: global}"
    routing = "{kind: layer_routing, repetitions: 1, scales: none, first: nobody}"
    space = f"search_space={{kind: hybrid, parameter: {parameter}, routing: {routing}}}"
    with pytest.raises(ConfigError) as refused:
        check(read(experiment_file, space, "pick=objective:none"))
    text = str(refused.value)
    assert "'none'" in text
    assert "nobody" in text  # of the second stage alone


def test_what_cannot_be_staged_does_not_hide_what_else_is_wrong(experiment_file: Path) -> None:
    experiment = read(experiment_file, "searcher={kind: map, variant: nested}", "budget.trials=2", "pick=objective:x")
    for function in (check, settled):
        with pytest.raises(ConfigError) as refused:
            function(experiment)
        assert "2 trials are 1 for each of 2 merges" in str(refused.value)
        assert "'x'" in str(refused.value)


def test_a_folder_that_holds_a_run_is_refused(experiment_file: Path, tmp_path: Path) -> None:
    experiment = read(experiment_file)
    assert refusals(experiment, tmp_path / "new") == []
    (tmp_path / "experiment.yaml").write_text("")
    assert [problem.what for problem in refusals(experiment, tmp_path)] == ["the folder already holds a run"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("trials", "objectives"), [(1, 3), (10, 1), (10, 2), (150, 3), (10_000, 5)])
def test_the_front_is_no_larger_than_the_trials(trials: int, objectives: int) -> None:
    front = front_size(trials, objectives)
    assert 1 <= front.low <= front.high <= max(1, trials)


PROBED = Probed(
    seconds=9.0,
    build=4.0,
    first=1.0,
    merge=Span(0.5, 0.5),
    sample={"a": 10, "b": 10},
    large=Span(2.0, 2.0),
    each={"a": 0.15, "b": 0.05},
    fixed=0.0,
    item_bytes=10.0,
    recipe_bytes=100.0,
    trial_bytes=1000,
    memory=None,
    batch_size=8,
)


def stage(**fields: Any) -> StagePlan:
    tasks = (TaskPlan("a", 10, 20, 40), TaskPlan("b", 10, 20, 40))
    plan = {"name": "", "space": "", "genes": {"real numbers": 3}, "searcher": "random", "trials": 100}
    plan |= {"searches": Span(100, 100), "tasks": tasks, "references": 4, "calibration": 0, "confirmed": Span(4, 6)}
    return StagePlan(**(plan | fields))  # type: ignore[arg-type]


def test_the_time_of_an_evaluation() -> None:
    assert PROBED.evaluation({"a": 10, "b": 10}) == Span(2.0, 2.0)
    assert PROBED.evaluation({"a": 20, "b": 20}) == Span(4.0, 4.0)
    assert PROBED.evaluation({"a": 10, "b": 0}).high == pytest.approx(1.5)  # a's items take three times as long


def test_a_fixed_cost_makes_a_range() -> None:
    from dataclasses import replace

    probed = replace(PROBED, fixed=1.0)
    assert probed.evaluation({"a": 10, "b": 10}) == Span(2.0, 2.0)
    assert probed.evaluation({"a": 30, "b": 30}) == Span(1 + 3 * 1.0, 6.0)
    assert probed.evaluation({"a": 1, "b": 1}) == Span(pytest.approx(0.2), pytest.approx(1.1))


def test_the_time_of_a_run_by_hand() -> None:
    one = time_of((stage(),), WorkersPlan(1, "cpu", 2, 1.0, 1), [PROBED])
    assert one.trial == Span(2.5, 2.5)
    assert one.parts["search"].low == pytest.approx(100 * 2.5)
    assert one.parts["reference models"].low == pytest.approx(1 + 4 * 4.5)
    assert one.parts["confirmation"].low == pytest.approx(4 * 8.5)
    assert one.total.low == pytest.approx(4 + 1 + 18 + 250 + 34)
    assert one.device_hours.low == pytest.approx(one.total.low * 2 / 3600)
    three = time_of((stage(),), WorkersPlan(3, "cuda", 2, 0.5, 1), [PROBED])
    assert three.parts["search"].low == pytest.approx(100 * 2.5 / 3)
    assert three.parts["search"].high >= 34 * 2.5 * CROWDED  # rounds of three
    assert three.device_hours.low == pytest.approx(three.total.low * 1.5 / 3600)
    assert "calibration" not in one.parts
    assert time_of((stage(calibration=6),), WorkersPlan(1, "cpu", 1, 1.0, 1), [PROBED]).parts["calibration"].low == 27


def test_the_disk_of_a_run_by_hand(experiment_file: Path, tmp_path: Path) -> None:
    prepared = check(read(experiment_file))[0]
    memory = memory_of(prepared, {}, device="cpu", batch=None, machine=2**34, gpu=None)
    disk = disk_of((stage(),), memory, tmp_path / "a" / "b", [PROBED], 1)
    assert disk.responses == 100 * (100 + 10 * 20) + 4 * (100 + 10 * 40) + 6 * (100 + 10 * 80)
    assert disk.journal == 5_000 + 100 * 1000
    assert disk.models == disk.exported == memory.weights
    assert disk.folder == str(tmp_path)
    assert disk.run == disk.responses + disk.journal + disk.reports + disk.models


def test_a_search_space_in_a_line(experiment_file: Path) -> None:
    space = "search_space={kind: parameter, method: slerp, granularity: 'block: 2', groups: [attention, mlp]}"
    line = space_line(read(experiment_file, space).search_space)
    assert line == "parameter, method slerp, granularity block: 2, groups attention + mlp"


def test_what_is_to_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import ModelInfo

    sizes = {"model.safetensors": 1000, "config.json": 10, "original/model.safetensors": 1000, "photo.png": 5}
    siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]

    def model_info(self: HfApi, name: str, **_: Any) -> ModelInfo:
        if name == "alice/model":
            return ModelInfo(id=name, siblings=siblings)
        raise RepositoryNotFoundError(name, response=None)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tiny_family(tmp_path / "models", parents=0)["base"]
    found = to_fetch(["alice/model", str(folder), "zoo/base", "alice/nothing", "alice/model+alice/adapter"])
    assert found == {"alice/model": 1010}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert to_fetch(["alice/model"]) == {}
