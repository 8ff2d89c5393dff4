"""Secrets are replaced wherever they stand; what only looks a little like one stays."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.redaction import redact

HUB = "hf_" + "aB3dE5gH7j" * 3 + "kLmN"
NOWHERE: dict[str, str] = {}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"token {HUB}.", "token hf_***"),
        (f"https://user:{HUB}@huggingface.co/x", "https://user:***@huggingface.co/x"),
        ("postgresql://me:pa55@w:x@db.local:5432/runs", "postgresql://me:***@db.local:5432/runs"),
        ("redis://:s3cret@cache:6379/0", "redis://:***@cache:6379/0"),
        ("{'Authorization': 'Bearer abc.def-1234'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
        ("Authorization=abcdef", "Authorization=***"),
        ("sent Bearer eyJhbGciOi.abc_d", "sent Bearer ***"),
        ("connect(host='db', password='opensesame')", "connect(host='db', password='***')"),
        ("https://api/x?api_key=12345&y=1", "https://api/x?api_key=***&y=1"),
        ("sk-proj-abcdefghijklmnopqrstuv", "sk-***"),
        ("ghp_" + "a1" * 18, "ghp_***"),
    ],
)
def test_what_is_a_secret_by_its_look_is_replaced(text: str, redacted: str) -> None:
    assert redact(text, environment=NOWHERE) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "hf_transfer and hf_hub_download and hf_xet are packages",
        "trial 3 at 2026-01-01T00:00:00, redis://cache:6379/0, file:///a/b@c",
        "see https://host/a@b:c and mail@example.org: 5@6",
        "task-specific sk-learn; the bearer of bad news",
        "the tokenizer's pad_token='</s>', eos_token_id=2",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert redact(text, environment=NOWHERE) == text


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "REDISCLI_AUTH", "AWS_SECRET_ACCESS_KEY"],
)
def test_values_of_variables_named_like_secrets_are_replaced(name: str) -> None:
    environment = {name: "open.sesame+1", "PATH": "/usr/bin", "TOKENIZERS_PARALLELISM": "disabled"}
    assert redact("x open.sesame+1, y", environment=environment) == "x ***, y"
    assert redact("/usr/bin disabled", environment=environment) == "/usr/bin disabled"


def test_words_that_hold_a_password_stay_whole() -> None:
    environment = {"PGPASSWORD": "postgres"}
    assert redact("postgresql and postgres", environment=environment) == "postgresql and ***"


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert redact("secret-longer", ["secret", "secret-longer"], NOWHERE) == "***"


@given(st.text(), st.sampled_from([HUB, "Authorization: Bearer abcdefgh12345", "u://a:bcdefgh@h"]), st.text())
def test_redacting_twice_is_redacting_once(before: str, secret: str, after: str) -> None:
    once = redact(f"{before} {secret} {after}", environment=NOWHERE)
    assert redact(once, environment=NOWHERE) == once
    assert secret not in once


@given(st.text(alphabet="abcdefgh ,.'\n0123456789"))
def test_plain_text_is_left_alone(text: str) -> None:
    assert redact(text, environment=NOWHERE) == text


def test_a_traceback_that_nobody_caught_holds_none() -> None:
    script = (
        "import sys; from evomerge.redaction import redact_traceback\n"
        f"sys.excepthook = redact_traceback; raise KeyError('{HUB}')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert HUB not in run.stderr
    assert "KeyError: 'hf_***'" in run.stderr
