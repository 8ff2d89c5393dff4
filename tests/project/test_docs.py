"""The documentation names what there is, and only that."""

import re
import tomllib
from pathlib import Path

import pytest

from evomerge import library
from evomerge.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    documented = (ROOT / "README.md").read_text() + (ROOT / "docs" / "experiments.md").read_text()
    assert re.search(rf"`?evomerge[ `]+([\w|]*\|)?{command}\b|`{command}`|\b{command}\|", documented), command


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(text: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text.read_text()):
        assert (text.parent / target).exists(), f"{text.name}: {target}"


@pytest.mark.parametrize("kind", library.KINDS)
def test_every_content_folder_has_a_readme_and_no_python(kind: library.Kind) -> None:
    assert (ROOT / kind / "README.md").is_file()
    assert not list((ROOT / kind).rglob("*.py"))


@pytest.mark.parametrize("entry", [e for k in library.KINDS for e in library.entries(k)], ids=str)
def test_every_content_file_says_what_it_is(entry: library.Entry) -> None:
    assert re.match(r"# \S.{10,}", entry.path.read_text()), f"{entry.path} opens with no comment that says what it is"


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[\[<>=~ ]", requirement)[0]
        assert name in explained or name == "types-PyYAML", name


def test_changelog_and_package_agree_on_the_version() -> None:
    import evomerge

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == evomerge.__version__


def test_the_page_of_methods_is_what_the_registrations_say() -> None:
    from evomerge.merging import METHODS
    from evomerge.reports.methods_page import methods_page

    assert (ROOT / "docs" / "methods.md").read_text() == methods_page(METHODS), "run `make docs`"
