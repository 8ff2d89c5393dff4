"""Prepared states are computed once per node, whatever happens to files and processes."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import METHODS, Parents, merge_tensors, preparations
from evomerge.merging.preparations import SUFFIX, Preparations
from evomerge.merging.state import PerEntry
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family


def big(value=1.0):
    return [PerEntry(torch.full((50_000,), value)), (1, "a", None)]


def test_a_state_is_computed_once_and_comes_back_from_the_file(tmp_path):
    calls = []

    def prepare():
        calls.append(1)
        return big()

    for _ in range(2):  # the second is another process's, as far as memory goes
        kept = Preparations(tmp_path)
        states = [kept.get(("key",), lambda: ["f"], prepare) for _ in range(2)]
        assert states[0] is states[1]
        assert torch.equal(states[0][0].tensor, big()[0].tensor)
        assert states[0][1] == (1, "a", None)
    assert len(calls) == 1


def test_other_keys_and_other_parents_have_states_of_their_own(tmp_path):
    made = {(key, print_): float(len(key) + len(print_)) for key in ("a", "bb") for print_ in ("c", "ddd")}
    kept = Preparations(tmp_path)
    for (key, print_), value in made.items():
        one = Preparations(tmp_path).get((key,), lambda p=print_: [p], lambda v=value: big(v))
        assert one[0].tensor[0] == value
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == len(made)
    assert kept.get(("a",), lambda: ["c"], lambda: big(-1.0))[0].tensor[0] == made["a", "c"]


def test_only_what_is_needed_of_a_larger_storage_is_written(tmp_path):
    Preparations(tmp_path).get(("key",), list, lambda: torch.zeros(1_000_000)[:10_000])
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    assert file.stat().st_size < 100_000


def test_without_a_folder_or_with_one_that_cannot_be_written_everything_still_works(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "inside"):
        assert Preparations(folder).get(("key",), list, big)[0].tensor[0] == 1


def test_a_full_disk_keeps_the_state_in_memory(tmp_path, monkeypatch):
    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparations, "_write", full)
    kept, calls = Preparations(tmp_path), []
    for _ in range(2):
        kept.get(("key",), list, lambda: calls.append(1) or big())
    assert len(calls) == 1


def test_a_damaged_file_is_made_anew(tmp_path):
    Preparations(tmp_path).get(("key",), list, big)
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    whole = file.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert torch.equal(Preparations(tmp_path).get(("key",), list, big)[0].tensor, big()[0].tensor)
        assert file.stat().st_size == len(whole)


def test_an_error_of_the_preparation_is_passed_on(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Preparations(tmp_path).get(("key",), list, lambda: 1 / 0)


def test_the_folder_stays_below_its_limit_and_forgets_the_oldest(tmp_path, monkeypatch):
    kept = Preparations(tmp_path)
    for age, key in enumerate("abc"):
        kept.get((key,), list, big)
        for file in tmp_path.glob(f"*{SUFFIX}"):
            if file.stat().st_mtime > time.time() - 50:
                os.utime(file, (time.time() - 1000 + age * 100,) * 2)
                newest = file
    monkeypatch.setattr(preparations, "FOLDER_BYTES", newest.stat().st_size + 10)
    Preparations(tmp_path).get(("small",), list, lambda: (1, "a"))
    assert list(tmp_path.glob(f"*{SUFFIX}")) == [newest]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 9)), unique_by=lambda f: f[1]))
def test_the_least_recently_used_beyond_the_limit_go_and_what_was_left_behind_a_day_ago(files):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(preparations, "FOLDER_BYTES", 20)
        kept, room = set(), 20
        for state, hours, size in sorted(files, key=lambda each: each[1]):
            file = folder / f"{hours}{SUFFIX if state else '.partial'}"
            file.write_bytes(b"x" * size)
            os.utime(file, (time.time() - 3600 * hours - 60,) * 2)
            room -= size
            kept |= {file} if room >= 0 and (state or hours < 24) else set()
        Preparations(folder).get(("small",), list, lambda: (1, "a"))
        assert {path for path in folder.iterdir() if path.suffix != ".lock"} == kept


def test_the_folder_is_looked_at_once_and_only_by_those_who_prepare(tmp_path, monkeypatch):
    looked, scandir = [], os.scandir
    monkeypatch.setattr(preparations.os, "scandir", lambda path: looked.append(path) or scandir(path))
    kept = Preparations(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    for key in "ab":
        kept.get((key,), list, big)
    assert looked == [tmp_path / "kept"]


def test_processes_that_begin_at_once_share_one_computation(tmp_path):
    script = (
        "import sys, time, torch; from pathlib import Path\n"
        "from evomerge.merging.preparations import Preparations\n"
        "def prepare():\n"
        "    (Path(sys.argv[1]) / f'computed-{time.time_ns()}').touch(); time.sleep(1); return torch.ones(9999)\n"
        "print(Preparations(Path(sys.argv[1]) / 'kept').get(('k',), lambda: [], prepare).sum())\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [worker.communicate(timeout=240)[0].strip() for worker in workers] == ["tensor(9999.)"] * 4
    assert len(list(tmp_path.glob("computed-*"))) == 1


def test_merges_from_files_equal_merges_without_for_every_method_that_prepares(tmp_path, monkeypatch):
    monkeypatch.setattr(preparations, "SMALL", 0)
    family = tiny_family(tmp_path / "models", parents=2, seed=3, dtype="bfloat16")
    prepared = [name for name, method in METHODS.items() if method.prepare and not method.statistics]
    for name in prepared:
        method = METHODS[name]
        count = 2 if method.max_models is None or method.max_models > 2 else 1
        names = ["a", "b"][:count]
        recipe = Recipe.model_validate(
            {
                "merge_method": name,
                "base_model": str(family["base"]),
                "models": [{"model": str(family[n])} for n in names],
                "parameters": {p.name: p.default for p in method.parameters if p.required},
            }
        )
        parents = Parents.open(recipe.parents())
        plain = dict(merge_tensors(recipe, parents))
        for _ in range(2):
            kept = dict(merge_tensors(recipe, parents, preparations=Preparations(tmp_path / "kept")))
            assert all(torch.equal(kept[tensor], plain[tensor]) for tensor in plain), name
