"""Names to content files."""

from pathlib import Path

import pytest

from evomerge import library
from evomerge.errors import UnknownNameError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "ties.yaml").write_text("# mine\n")
    (tmp_path / "recipes" / "mine" / "special.yml").write_text("# special\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_name_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = library.find("experiments", "quickstart")
    assert (entry.name, entry.origin, entry.path.name) == ("quickstart", "evomerge", "quickstart.yaml")


def test_the_project_folder_comes_before_the_shipped_library(project: Path) -> None:
    assert library.find("recipes", "ties").path == project / "recipes" / "ties.yaml"
    assert library.find("recipes", "linear").origin == "evomerge"


def test_an_explicit_path_comes_first(project: Path) -> None:
    (project / "ties.yaml").write_text("# another\n")
    assert library.find("recipes", "./ties.yaml").path == Path("ties.yaml")


def test_a_folder_in_the_environment_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib" / "fitness").mkdir(parents=True)
    (tmp_path / "lib" / "fitness" / "own.yaml").write_text("# own\n")
    monkeypatch.setenv("EVOMERGE_LIBRARY", str(tmp_path / "lib"))
    assert library.find("fitness", "own").origin == "EVOMERGE_LIBRARY"


def test_a_name_in_a_folder_is_found_by_its_last_part(project: Path) -> None:
    assert library.find("recipes", "special").name == "mine/special"
    assert library.find("recipes", "mine/special").name == "mine/special"


def test_an_ambiguous_last_part_is_refused(project: Path) -> None:
    (project / "recipes" / "yours").mkdir()
    (project / "recipes" / "yours" / "special.yaml").write_text("# also special\n")
    with pytest.raises(UnknownNameError, match=r"did you mean 'mine/special' or 'yours/special'"):
        library.find("recipes", "special")


def test_a_miss_lists_the_nearest_names_and_the_places_searched(project: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown recipe 'linaer' \(searched: .*recipes.*\); did you mean 'linear'"
    ):
        library.find("recipes", "linaer")
