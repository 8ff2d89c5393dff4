"""Where parents disagree on the tokens that begin, end and pad a text, and on the chat template.

The exported model takes all of these from one parent; a reader must know when another was tuned differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIELDS: tuple[tuple[str, str], ...] = (
    ("config.json", "eos_token_id"),
    ("config.json", "bos_token_id"),
    ("config.json", "pad_token_id"),
    ("generation_config.json", "eos_token_id"),
    ("generation_config.json", "bos_token_id"),
    ("generation_config.json", "pad_token_id"),
    ("tokenizer_config.json", "eos_token"),
    ("tokenizer_config.json", "bos_token"),
    ("tokenizer_config.json", "pad_token"),
)


def token_disagreements(parents: Mapping[str, Path] | Sequence[Path]) -> list[str]:
    """Return one line for each special token, and for the chat template, that two parents state differently.

    Args:
        parents: reference → folder, or folders. A parent that says nothing disagrees with nobody.
    """
    named = parents if isinstance(parents, Mapping) else {str(folder): folder for folder in parents}
    lines = []
    for file, field in FIELDS:
        stated = {name: _shown(_json(folder / file).get(field)) for name, folder in named.items()}
        lines += _differing(f"{field} of {file}", stated)
    templates = {name: _template(folder) for name, folder in named.items()}
    distinct = list(dict.fromkeys(text for text in templates.values() if text))
    letters = {name: f"version {distinct.index(text) + 1}" if text else "" for name, text in templates.items()}
    return lines + _differing("chat template", letters)


def _differing(what: str, stated: Mapping[str, str]) -> list[str]:
    """Return a line that says who states what, if two of them state different things."""
    names: dict[str, list[str]] = {}
    for name, value in stated.items():
        if value:
            names.setdefault(value, []).append(name)
    if len(names) < 2:
        return []
    return [f"the parents differ in the {what}: " + "; ".join(f"{v} in {', '.join(n)}" for v, n in names.items())]


def _shown(value: Any) -> str:
    """Return a token or a list of ids as text; empty for none. A list of one id is that id."""
    if isinstance(value, dict):
        value = value.get("content")
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else sorted(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _template(folder: Path) -> str:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8").strip()
    except OSError:
        template = _json(folder / "tokenizer_config.json").get("chat_template")
        return template.strip() if isinstance(template, str) else json.dumps(template) if template else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
