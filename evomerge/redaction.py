"""Secrets out of texts: whatever goes to a terminal, a run folder, a report or a card passes through `redact`."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType

HIDDEN = "***"
SHORTEST = 6  # characters; a shorter value of a variable is too likely to be a word of its own
NAMES = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|SECRET_KEY|_AUTH|CREDENTIALS)$")  # of variables
URL_PASSWORD = re.compile(r"(?<=://)([^\s/:@'\"]*):([^\s/'\"]+)@")
HEADER = re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:(bearer|basic|token)\s+)?[^\s'\",;]+")
BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
FIELD = re.compile(r"(?i)\b((?:password|passwd|api_key|access_token|auth_token)['\"]?\s*=\s*['\"]?)[^\s&'\",;()]+")
TOKENS = re.compile(  # of the Hub, of language-model services, of GitHub
    r"(?<![A-Za-z0-9])(hf_jwt_|hf_oauth_|hf_|sk-|gh[pousr]_|github_pat_)(?=[\w.-]{16})[A-Za-z0-9][\w.-]*"
)


def redact(text: str, secrets: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> str:
    """Return ``text`` with every secret that can be told as one replaced by ``***``.

    These are tokens of the Hub and of usual services, ``Authorization`` headers, passwords in addresses and in
    ``password=``, and the values of variables of the environment that are named like a secret (``HF_TOKEN``,
    ``WANDB_API_KEY``, ``PGPASSWORD``, ``REDISCLI_AUTH``, ...), if they have 6 characters or more.

    Args:
        text: of any length.
        secrets: further texts to replace, whatever they look like.
        environment: variables; this process's by default.
    """
    variables = os.environ if environment is None else environment
    values = {value for name, value in variables.items() if NAMES.search(name.upper()) and len(value) >= SHORTEST}
    for secret in sorted(values | set(filter(None, secrets)), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = HEADER.sub(lambda m: f"{m[1]}{m[2] + ' ' if m[2] else ''}{HIDDEN}", text)
    text = FIELD.sub(rf"\1{HIDDEN}", BEARER.sub(rf"\1{HIDDEN}", text))
    return TOKENS.sub(rf"\1{HIDDEN}", text)


def redact_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody caught, as Python does, without secrets: a ``sys.excepthook``."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
