"""The YAML reader: what it takes, what it refuses, and where it says that things are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipes import yaml

plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8", exclude_categories=("Cs",))),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_plain_data_reads_back_exactly(data: Any) -> None:
    again = yaml.loads(yaml.dumps(data)).data
    assert again == data
    assert repr(again) == repr(data)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "a\u2029", "\r\n", "\ufeff", "1:30", "2020-01-01", "=", "<<"])
def test_odd_strings_read_back_exactly(text: str) -> None:
    assert yaml.loads(yaml.dumps({"a": text})).data == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        ("'1e5'", "1e5"),
        ("-.inf", float("-inf")),
    ],
)
def test_scalars_are_read_as_people_mean_them(text: str, value: Any) -> None:
    assert yaml.loads(text).data == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "f:4: the key 'c' is written twice"),
        ("a: [1,\nb: 2", "f:2: not valid YAML"),
        ("a: !!python/object:os.system x", "f:1: not valid YAML: could not determine a constructor"),
        ("a: &x [*x]", "an anchor inside itself"),
        ("[" * 3000, "nested too deeply"),
        ("? [a, b]\n: 1", "f:1: a key must be a plain word"),
        ("&a [&b [x, x], *b, *b]\n---\n2", "f:3: the file has several documents"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        yaml.loads(text, "f")
    assert message in str(raised.value)


def test_a_few_anchors_cannot_grow_into_billions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="too many nested or repeated values"):
        yaml.loads("\n".join(lines))


def test_places_are_given_by_line_and_key_path() -> None:
    document = yaml.loads("a:\n  - x: 1\n    y: 2\n", "f.yaml")
    assert document.where(("a", 0, "y")) == "f.yaml:3: a[0].y"
    assert document.where(("a", 0, "z")) == "f.yaml:2: a[0].z"
    assert document.where() == "f.yaml:1"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot read the file"):
        yaml.load(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: cannot read the file"):
        yaml.load(tmp_path / "bytes.yaml")
