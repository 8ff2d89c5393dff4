"""Members: the weights of trials that are crossed again, whoever rebuilds them, whatever is kept of them."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge.checkpoints import TensorSpec
from evomerge.checkpoints.weight_store import SUFFIX, WeightStore, evict
from evomerge.merging import InPlaceMerger, Parents
from evomerge.merging.members import Members, MissingRecipesError, member_problems
from evomerge.merging.stages import merge_stages
from evomerge.recipes import (
    NamedRecipe,
    Recipe,
    pack_recipe,
    parse_recipes,
    sources_of,
    trial_reference,
    with_ancestors,
    write_recipes,
)
from evomerge.testing.tiny_models import tiny_family

PLENTY = 10**9


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    paths = tiny_family(tmp_path_factory.mktemp("family"), dtype=request.param, layers=2, hidden=16)
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def lineage(family: Mapping[str, str]) -> dict[str, Recipe]:
    """Children of children by several methods, some of which draw random numbers; hash → recipe, in order."""
    draw, found = random.Random(3), dict[str, Recipe]()
    for number in range(24):
        known = [*family.values(), *map(trial_reference, list(found)[-8:])]
        first, second = draw.sample(known, 2)
        method = ("slerp", "dare_linear", "linear", "ties", "passthrough")[number % 5]
        one, two = {"model": first}, {"model": second}
        weighted = [{"model": model, "parameters": {"weight": draw.random()}} for model in (first, second)]
        fields: dict[str, Any] = {
            "slerp": {"base_model": first, "models": [one, two], "parameters": {"t": draw.random()}},
            "dare_linear": {"base_model": family["base"], "models": weighted, "parameters": {"density": 0.6}},
            "ties": {"base_model": family["base"], "models": weighted, "parameters": {"density": 0.6}},
            "linear": {"models": weighted},
            "passthrough": {"models": [two]},
        }[method]
        if method in ("dare_linear", "ties"):
            fields["models"] = [each for each in weighted if each["model"] != family["base"]]
        recipe = Recipe.model_validate({"merge_method": method, "seed": number, "dtype": dtype_of(family), **fields})
        found[recipe.hash] = recipe
    return found


def dtype_of(family: Mapping[str, str]) -> str:
    tensors = load_file(Path(family["base"]) / "model.safetensors")
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def replayed(
    family: Mapping[str, str], lineage: Mapping[str, Recipe], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, torch.Tensor]]:
    """What `evomerge merge` makes of every recipe, as the stages of one file; hash → tensors."""
    stages = [
        NamedRecipe(recipe, trial_reference(trial), tuple(map(trial_reference, sources_of(recipe))))
        for trial, recipe in lineage.items()
    ]
    read = parse_recipes(write_recipes(stages))
    assert [stage.recipe for stage in read] == [stage.recipe for stage in stages]
    out = merge_stages(read, tmp_path_factory.mktemp("replayed") / "out")
    return {trial: load_file(out / trial_reference(trial) / "model.safetensors") for trial in lineage}


def members(
    family: Mapping[str, str], lineage: Mapping[str, Recipe], root: Path, limit: int = PLENTY, small: int = 0
) -> Members:
    found = Members(Parents.open(list(family.values())), family["base"], limit, root, small)
    found.learn({trial: pack_recipe(recipe) for trial, recipe in lineage.items()})
    return found


def child_of(*trials: str) -> Recipe:
    models = [{"model": trial_reference(trial), "parameters": {"weight": 0.5}} for trial in trials]
    return Recipe.model_validate({"merge_method": "linear", "models": models})


def assert_equal(opened: Any, expected: Mapping[str, torch.Tensor]) -> None:
    assert opened.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert opened.tensor(name).dtype == tensor.dtype
        assert torch.equal(opened.tensor(name), tensor), name


def kept(root: Path) -> list[Path]:
    return sorted(root.glob(f"*/*{SUFFIX}"))


@pytest.mark.parametrize("budget", ["plenty", "none", "two models", "half a model"])
def test_members_are_what_a_replay_makes_whatever_is_kept(
    budget: str,
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    size = sum(tensor.nbytes for tensor in next(iter(replayed.values())).values())
    limit = {"plenty": PLENTY, "none": 0, "two models": int(2.5 * size), "half a model": size // 2}[budget]
    opener = members(family, lineage, tmp_path, limit)
    draw = random.Random(0)
    for _ in range(10):
        wanted = draw.sample(list(lineage), 2)
        found = opener.of(child_of(*wanted))
        assert list(found) == [trial_reference(trial) for trial in wanted]
        for trial in wanted:
            assert_equal(found[trial_reference(trial)], replayed[trial])
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit
    assert bool(kept(tmp_path)) == (budget in ("plenty", "two models"))


@pytest.mark.parametrize("models", [0, 2, 100])
def test_small_members_are_kept_in_memory_alone(
    models: int,
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    size = sum(tensor.nbytes for tensor in next(iter(replayed.values())).values())
    opener = members(family, lineage, tmp_path, models * size, small=size)
    for trial in list(lineage)[-6:]:
        (opened,) = opener.of(child_of(trial)).values()
        assert_equal(opened, replayed[trial])
    (again,) = opener.of(child_of(trial)).values()
    assert (again is opened) == (models > 0)
    assert kept(tmp_path) == []


def test_the_resident_model_equals_the_replay(
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    merger = InPlaceMerger(Parents.open(list(family.values())), base=family["base"])
    opener = members(family, lineage, tmp_path)
    for trial, recipe in lineage.items():
        merger.merge(recipe, opener.of(recipe))
        state = merger.model.state_dict()
        assert [name for name, tensor in replayed[trial].items() if not torch.equal(state[name], tensor)] == []


def test_only_what_is_not_kept_is_rebuilt(
    family: Mapping[str, str], lineage: Mapping[str, Recipe], tmp_path: Path
) -> None:
    last = list(lineage)[-1]
    needed = with_ancestors([last], lambda trial: sources_of(lineage[trial]))
    members(family, lineage, tmp_path).of(child_of(last))
    assert {path.stem for path in kept(tmp_path)} == set(needed)
    ignorant = members(family, {}, tmp_path)
    assert list(ignorant.of(child_of(last))) == [trial_reference(last)]


def test_what_must_be_known_to_rebuild_a_member_is_said_all_at_once(
    family: Mapping[str, str], lineage: Mapping[str, Recipe], tmp_path: Path
) -> None:
    child = list(lineage.values())[-1]
    sources = sources_of(child)
    opener = members(family, {}, tmp_path)
    with pytest.raises(MissingRecipesError) as caught:
        opener.of(child)
    assert set(caught.value.trials) == set(sources)
    needed = with_ancestors(sources, lambda trial: sources_of(lineage[trial]))
    opener.learn({trial: pack_recipe(lineage[trial]) for trial in needed})
    assert len(opener.of(child)) == len(sources)


def test_a_member_that_is_evicted_while_it_is_open_stays_valid(
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    last = list(lineage)[-1]
    (opened,) = members(family, lineage, tmp_path).of(child_of(last)).values()
    evict(tmp_path, 0)
    assert kept(tmp_path) == []
    opened.release()
    assert_equal(opened, replayed[last])


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_made_again(
    damage: str,
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    last = list(lineage)[-1]
    members(family, lineage, tmp_path).of(child_of(last))
    for path in kept(tmp_path):
        data = path.read_bytes()
        path.write_bytes({"cut": data[: len(data) // 2], "garbage": b"\xff" * len(data), "empty": b""}[damage])
    (opened,) = members(family, lineage, tmp_path).of(child_of(last)).values()
    assert_equal(opened, replayed[last])


def test_a_folder_that_cannot_be_written_is_done_without(
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("no folder")
    last = list(lineage)[-1]
    (opened,) = members(family, lineage, tmp_path / "file").of(child_of(last)).values()
    assert_equal(opened, replayed[last])


def test_other_parents_under_the_same_names_have_members_of_their_own(
    family: Mapping[str, str], lineage: Mapping[str, Recipe], tmp_path: Path
) -> None:
    ours = members(family, lineage, tmp_path)
    theirs = Members(Parents.open([family["a"], family["b"]]), family["a"], PLENTY, tmp_path, 0)
    last = list(lineage)[-1]
    ours.of(child_of(last))
    with pytest.raises(MissingRecipesError):
        theirs.of(child_of(last))


def _race(family: Mapping[str, str], packed: Mapping[str, str], root: Path, limit: int, seed: int) -> None:
    torch.set_num_threads(1)
    opener = Members(Parents.open(list(family.values())), family["base"], limit, root, 0)
    opener.learn(packed)
    draw = random.Random(seed)
    for _ in range(15):
        trial = draw.choice(list(packed))
        (opened,) = opener.of(child_of(trial)).values()
        expected = load_file(root.parent / "expected" / f"{trial}.safetensors")
        assert_equal(opened, expected)


@pytest.mark.slow
def test_processes_that_share_a_tiny_budget_do_not_disturb_each_other(
    family: Mapping[str, str],
    lineage: Mapping[str, Recipe],
    replayed: Mapping[str, Mapping[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    (tmp_path / "expected").mkdir()
    for trial, tensors in replayed.items():
        save_file(dict(tensors), tmp_path / "expected" / f"{trial}.safetensors")
    size = sum(tensor.nbytes for tensor in next(iter(replayed.values())).values())
    packed = {trial: pack_recipe(recipe) for trial, recipe in lineage.items()}
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_race, args=(dict(family), packed, tmp_path / "store", 3 * size, seed))
        for seed in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    spec = TensorSpec("w", (256,), torch.float32)
    store = WeightStore(tmp_path / "one", tmp_path, 4 * 1024 + 4 * 200)

    def write(name: str) -> None:
        store.write(name, [spec], {"name": name}, [("w", torch.full((256,), float(ord(name))))])

    for name in "abc":
        write(name)
    assert store.open("a") is not None  # used now
    for name in "de":
        write(name)
    held = {name: store.open(name) for name in "abcde"}
    assert [name for name, weights in held.items() if weights is not None] == ["a", "c", "d", "e"]
    assert held["a"] is not None
    assert held["a"].config == {"name": "a"}
    assert held["a"].tensors["w"].eq(ord("a")).all()


def test_the_budget_is_that_of_all_runs_together(tmp_path: Path) -> None:
    spec = TensorSpec("w", (256,), torch.float32)
    for run in ("one", "two", "three"):
        store = WeightStore(tmp_path / run, tmp_path, 2 * 1024 + 2 * 200)
        store.write("a", [spec], {}, [("w", torch.zeros(256))])
    assert {path.parent.name for path in kept(tmp_path)} == {"two", "three"}


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WeightStore(tmp_path / "one", tmp_path, PLENTY)
    monkeypatch.setattr("evomerge.checkpoints.weight_store.write_at", _full)
    with pytest.raises(OSError, match="No space left"):
        store.write("a", [TensorSpec("w", (4,), torch.float32)], {}, [("w", torch.zeros(4))])
    assert list((tmp_path / "one").iterdir()) == []


def _full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_parents_whose_children_would_differ_in_shape_are_refused(family: Mapping[str, str], tmp_path: Path) -> None:
    fit = Parents.open(list(family.values())).checkpoints
    assert member_problems(fit) == []
    other = str(tiny_family(tmp_path, hidden=16, vocab=72, parents=1, dtype=dtype_of(family))["a"])
    (problem,) = member_problems({**fit, **Parents.open([other]).checkpoints})
    assert problem.where == other
    assert "tensor lm_head.weight is (64, 16)" in problem.what or "embed_tokens.weight is (64, 16)" in problem.what
    assert "(72, 16)" in problem.what
