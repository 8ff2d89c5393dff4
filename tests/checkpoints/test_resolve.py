"""References: a folder, then the zoo, then the Hub; and what a failed search says."""

import huggingface_hub
import pytest

from evomerge.checkpoints import ZOO_VERSION, cache_folder, resolve, zoo_folder
from evomerge.errors import CheckpointError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def zoo():
    for name in ("base", "math-en"):
        (zoo_folder() / name).mkdir(parents=True)
        (zoo_folder() / name / "config.json").write_text("{}")
    return zoo_folder()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand-in for the Hub's client; records how it was called."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "evomerge"
    assert zoo_folder() == tmp_path / "xdg" / "evomerge" / "zoo" / ZOO_VERSION


def test_existing_folder_wins_and_is_relative_to_the_base_folder_first(monkeypatch, tmp_path, hub):
    for place in ("here", "there"):
        (tmp_path / place / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert resolve("owner/model") == tmp_path / "here" / "owner" / "model"
    assert resolve("owner/model", base_folder=tmp_path / "there") == tmp_path / "there" / "owner" / "model"
    assert resolve(str(tmp_path / "there")) == tmp_path / "there"
    assert not hub


def test_zoo_names(zoo):
    assert resolve("zoo/math-en") == zoo / "math-en"
    with pytest.raises(CheckpointError, match=r"'zoo/maths-en'.*did you mean 'zoo/math-en'"):
        resolve("zoo/maths-en")


def test_zoo_that_is_not_built_says_how_to_build_it():
    with pytest.raises(CheckpointError, match="run `evomerge zoo build`"):
        resolve("zoo/base")


def test_hub_ids_are_downloaded_without_pickles(hub, tmp_path):
    assert resolve("owner/model@v1.0") == tmp_path / "snapshot"
    name, options = hub[0]
    assert (name, options["revision"]) == ("owner/model", "v1.0")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(".bin" in pattern for pattern in options["allow_patterns"])
    assert not options["local_files_only"]
    resolve("gpt2", offline=True)
    assert hub[1][1]["local_files_only"]


def test_model_that_is_not_cached_is_refused_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'owner/missing': tried as a folder and in the local Hub cache \(off"):
        resolve("owner/missing", offline=True)


def test_missing_folder_names_its_neighbours(tmp_path):
    (tmp_path / "math-expert").mkdir()
    with pytest.raises(CheckpointError, match=r"no such folder; in .*did you mean 'math-expert'"):
        resolve(str(tmp_path / "math-expart"))
    with pytest.raises(CheckpointError, match=r"nor is there a folder"):
        resolve("./nowhere/at/all")


def test_a_model_with_an_adapter_lies_where_the_model_lies(tmp_path):
    for name in ("model", "adapter", "c++"):
        (tmp_path / name).mkdir()
    assert resolve(f"{tmp_path}/model+{tmp_path}/adapter") == tmp_path / "model"
    assert resolve(f"{tmp_path}/c++") == tmp_path / "c++"


def test_pickles_are_downloaded_only_where_allowed_and_needed(hub, tmp_path):
    (tmp_path / "snapshot").mkdir()
    resolve("owner/model", allow_pickle=True)
    assert [any(".bin" in pattern for pattern in options["allow_patterns"]) for _, options in hub] == [False, True]
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"")
    hub.clear()
    resolve("owner/model", allow_pickle=True)
    assert len(hub) == 1


def test_a_trial_means_nothing_outside_its_run(hub):
    with pytest.raises(CheckpointError, match=r"a trial, which means something inside its run alone; `evomerge recipe"):
        resolve("trial:0123456789abcdef")
    assert hub == []
