"""What configs say of a vocabulary: its size, and the ids of tokens with a meaning (end of text, padding, an image)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ID_FIELDS = ("token_id", "token_ids", "token_index", "suppress_tokens")  # endings of their names

Translate = Callable[[int], int | None]


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the config with ``vocab_size`` set to ``rows``: in itself, its language model's config, or both."""
    found = dict(config)
    parts = [name for name, part in config.items() if isinstance(part, Mapping) and "vocab_size" in part]
    named = [name for name in parts if config[name]["vocab_size"] == config.get("vocab_size")]
    if "text_config" in parts and "text_config" not in named:
        named.append("text_config")
    if "vocab_size" not in config and not named:
        named = ["text_config"] if isinstance(config.get("text_config"), Mapping) else parts[:1]
    for name in named:
        found[name] = {**config[name], "vocab_size": rows}
    if "vocab_size" in config or not named:
        found["vocab_size"] = rows
    return found


def with_ids(config: Mapping[str, Any], translate: Translate) -> dict[str, Any]:
    """Return the config with its token ids translated, in its parts too.

    An id without translation becomes None; in a list it is left out.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found[name] = with_ids(value, translate)
        else:
            found[name] = _translated(value, translate) if name.endswith(ID_FIELDS) else value
    return found


def taking_ids(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the token ids that ``other`` says, in its parts too."""
    found = dict(config)
    for name, value in other.items():
        if isinstance(value, Mapping):
            if isinstance(config.get(name), Mapping):
                found[name] = taking_ids(config[name], value)
        elif name.endswith(ID_FIELDS) and value is not None:
            found[name] = value
    return found


def vocabulary_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that depend on its vocabulary; parts that hold such fields come whole."""
    return {
        name: value
        for name, value in config.items()
        if name == "vocab_size"
        or name.endswith(ID_FIELDS)
        or (isinstance(value, Mapping) and bool(vocabulary_fields(value)))
    }


def _translated(value: Any, translate: Translate) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return translate(value)
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        return [new for each in value if (new := translate(each)) is not None]
    return value
