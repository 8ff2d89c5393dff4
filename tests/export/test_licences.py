"""Licences: read from the parents, never guessed, the most restrictive wins, and what clashes is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.export.licences import RANKS, Family, StatedLicence, combine, read_licence, resolve_licence


def stated(*ids: str) -> list[StatedLicence]:
    return [StatedLicence(f"parent{n}", one) for n, one in enumerate(ids)]


def folder(path: Path, front: str = "", **files: str) -> Path:
    path.mkdir(parents=True)
    if front:
        (path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@pytest.mark.parametrize(
    ("ids", "winner"),
    [
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "gpl-3.0"], "gpl-3.0"),
        (["lgpl-3.0", "gpl-3.0"], "gpl-3.0"),
        (["gpl-3.0", "agpl-3.0"], "agpl-3.0"),
        (["apache-2.0", "llama3"], "llama3"),
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["gemma", "gemma"], "gemma"),
    ],
)
def test_the_most_restrictive_licence_wins(ids: list[str], winner: str) -> None:
    assert combine(stated(*ids)).id == winner
    assert combine(stated(*ids)).problems == ()


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        (["llama3", "gemma"], "gemma-and-llama3"),
        (["gpl-3.0", "llama3.1"], "gpl-3.0-and-llama3.1"),
        (["llama3", "cc-by-nc-4.0"], "cc-by-nc-4.0-and-llama3"),
        (["apache-2.0", "gpl-2.0"], "apache-2.0-and-gpl-2.0"),
    ],
)
def test_licences_that_do_not_give_way_are_all_named(ids: list[str], name: str) -> None:
    licence = combine(stated(*ids))
    assert (licence.id, licence.name) == ("other", name)
    assert len(licence.problems) == 1
    assert all(one in licence.problems[0] for one in ids)


def test_copyleft_with_other_terms_is_called_a_contradiction() -> None:
    assert "contradict" in combine(stated("gpl-3.0", "llama3")).problems[0]
    assert "same time" in combine(stated("gemma", "llama3")).problems[0]


def test_an_unknown_licence_is_said_and_never_guessed() -> None:
    licence = combine(stated("apache-2.0", "unknown"))
    assert (licence.id, licence.name) == ("other", "apache-2.0-and-unknown")
    assert "no licence is stated by parent1" in licence.problems[0]
    assert "README.md" in licence.problems[0]


def test_a_licence_without_derivatives_is_a_problem_even_alone() -> None:
    assert "does not allow derived works" in combine(stated("cc-by-nc-nd-4.0")).problems[0]


@given(st.lists(st.sampled_from(sorted(RANKS)), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_parents_changes_nothing(ids: list[str], random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = combine(stated(*ids)), combine(stated(*shuffled))
    assert (first.id, first.name) == (second.id, second.name)


@given(st.lists(st.sampled_from(sorted(RANKS)), min_size=1, max_size=5))
def test_no_parent_is_stricter_than_the_result(ids: list[str]) -> None:
    licence = combine(stated(*ids))
    if licence.id != "other":
        assert RANKS[licence.id] == max(RANKS[one] for one in ids)
    else:
        assert licence.problems


def test_a_licence_is_read_from_the_card(tmp_path: Path) -> None:
    assert read_licence(folder(tmp_path / "a", "license: Apache-2.0")).id == "apache-2.0"
    named = read_licence(
        folder(tmp_path / "b", "license: other\nlicense_name: Tongyi Qianwen\nlicense_link: https://x.org/L")
    )
    assert (named.id, named.name, named.link) == ("other", "tongyi-qianwen", "https://x.org/L")
    assert named.rank[0] is Family.COMMUNITY
    research = read_licence(folder(tmp_path / "c", "license: other\nlicense_name: mistral-research-license"))
    assert research.rank[0] is Family.NON_COMMERCIAL


def test_a_licence_is_read_from_config_or_text_when_the_card_is_silent(tmp_path: Path) -> None:
    assert read_licence(folder(tmp_path / "a", config__json='{"license": "mit"}')).id == "mit"
    text = "                Apache License\n          Version 2.0, January 2004\n"
    found = read_licence(folder(tmp_path / "b", "tags: [x]", LICENSE=text))
    assert (found.id, found.source) == ("apache-2.0", "the text of its file LICENSE")


@pytest.mark.parametrize("front", ["", "license: unknown", "license: other", "license: [", "tags: [merge]"])
def test_a_card_that_says_nothing_makes_the_licence_unknown(tmp_path: Path, front: str) -> None:
    assert read_licence(folder(tmp_path / "a", front)).id == "unknown"


def test_resolve_licence_takes_folders_by_name_or_path(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "a", "license: mit"), folder(tmp_path / "b", "license: gpl-3.0")
    licence = resolve_licence([one, two])
    assert licence.id == "gpl-3.0"
    assert licence.reason == "the most restrictive of the parents' licences (the others: mit)"
    assert resolve_licence({"zoo/a": one}).parents[0].parent == "zoo/a"
    assert licence.metadata == {"license": "gpl-3.0"}


def test_an_adapter_brings_a_licence_of_its_own(tmp_path: Path) -> None:
    from evomerge.checkpoints import Checkpoint, CheckpointView
    from evomerge.export.card import folders_of
    from evomerge.testing.tiny_models import tiny_family

    base = tiny_family(tmp_path, parents=0)["base"]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")

    class Adapted(CheckpointView):
        folders = (base, tmp_path / "adapter")

    found = resolve_licence(folders_of({"base+adapter": Adapted(Checkpoint(base))}))
    assert [stated.parent for stated in found.parents] == ["base+adapter", "base+adapter (adapter)"]
    assert found.id == "cc-by-nc-4.0"
