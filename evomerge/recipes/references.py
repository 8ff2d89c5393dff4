"""How a recipe names a model: as text, or spelled out in mergekit's mappings.

A reference is one text everywhere in evomerge: ``name``, ``name@revision``, ``name+adapter``. mergekit also writes
``{model: {path, revision}, lora: {path, revision}, override_architecture}``; the first two are read into the text, the
last into the recipe's own field (see `Recipe.override_architecture`).

Inside a run, ``trial:HASH`` names the model that an earlier trial's recipe makes, by that recipe's hash. The hash of a
recipe with such a source covers its whole lineage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]
PARTS = ("model", "lora", "override_architecture")
_TRIAL = re.compile(r"trial:([0-9a-f]{16})")


def trial_reference(recipe_hash: str) -> str:
    """Return how recipes of a run name the model that a trial's recipe makes."""
    return f"trial:{recipe_hash}"


def trial_of(reference: str) -> str | None:
    """Return the hash of the trial's recipe that a reference names, None if it names another model."""
    match = _TRIAL.fullmatch(reference)
    return match[1] if match else None


def check_reference(reference: str) -> str:
    """Return ``reference`` unchanged.

    Raises:
        ValueError: it has two adapters or two revisions, or an empty part.
    """
    parts = reference.split("+")
    if len(parts) > 2 or any(not part.strip() or part.count("@") > 1 for part in parts):
        raise ValueError("a model is written 'name', 'name@revision' or 'name+adapter'")
    return reference


def as_text(value: Any) -> Any:
    """Return a reference that is spelled out as text; anything else unchanged.

    Raises:
        ValueError: the mapping is no reference, or cannot be written as text.
    """
    if not isinstance(value, Mapping):
        return value
    if unknown := sorted(set(map(str, value)) - set(PARTS)):
        raise ValueError(f"a model has no field {unknown[0]!r}; write its name, or {{model: {{path, revision}}, lora}}")
    if "model" not in value:
        raise ValueError("a model that is spelled out needs the field 'model'")
    parts = [_path(value[part]) for part in ("model", "lora") if value.get(part) is not None]
    return "+".join(parts)


def _path(value: Any) -> str:
    if isinstance(value, str):
        path, _, revision = value.partition("@")
    elif isinstance(value, Mapping) and set(value) <= {"path", "revision"} and isinstance(value.get("path"), str):
        path, revision = value["path"], value.get("revision") or ""
    else:
        raise ValueError("a model's path is a name, or {path, revision}")
    if "+" in path or "@" in f"{path}{revision}" or "+" in str(revision):
        raise ValueError(f"{path!r} cannot be told from a name with a revision or an adapter; rename the folder")
    return f"{path}@{revision}" if revision else path


def walk(data: Any) -> Iterator[tuple[Place, Any]]:
    """Yield (key path, reference as written) for every model that a recipe's raw data names."""
    if not isinstance(data, Mapping):
        return
    yield from _fields(data, ("base_model", "tokenizer_source"), ())
    yield from _inputs(data, ())
    yield from _fields(data, ("outside",), ()) if isinstance(data.get("outside"), str) else ()
    for part in [data["outside"]] if isinstance(data.get("outside"), Mapping) else []:
        yield from _fields(part, ("base_model",), ("outside",))
        yield from _inputs(part, ("outside",))
    for name, module in _items(data.get("modules")):
        yield from _inputs(module, ("modules", name))
    settings = data.get("tokenizer")
    yield from _fields(settings, ("source",), ("tokenizer",))
    for token, embedding in _items(settings.get("tokens") if isinstance(settings, Mapping) else None):
        place: Place = ("tokenizer", "tokens", token)
        source = embedding.get("source")
        if isinstance(source, Mapping) and "kind" in source:
            yield from _fields(source, ("model",), (*place, "source"))
        else:
            yield from _fields(embedding, ("source",), place)


def _inputs(data: Mapping[str, Any], place: Place) -> Iterator[tuple[Place, Any]]:
    for index, entry in _entries(data.get("models")):
        yield from _fields(entry, ("model",), (*place, "models", index))
    for index, part in _entries(data.get("slices")):
        here = (*place, "slices", index)
        for number, source in _entries(part.get("sources")):
            yield from _fields(source, ("model",), (*here, "sources", number))
        yield from _fields(part, ("base_model",), here)


def _fields(data: Any, names: Sequence[str], place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(data, Mapping):
        yield from (((*place, name), data[name]) for name in names if data.get(name) is not None)


def _items(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items() if isinstance(inner, Mapping))


def _entries(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((index, inner) for index, inner in enumerate(value) if isinstance(inner, Mapping))


def overrides(data: Any) -> dict[str, str]:
    """Return reference → the architecture that the recipe's raw data gives it.

    Raises:
        ValueError: one model has several, or has one in some places only (mergekit takes these for two models).
    """
    named = list(walk(data))
    if not any(isinstance(value, Mapping) for _, value in named):
        return {}  # at once, as recipes that are sent to workers never have one
    found: dict[str, set[str | None]] = {}
    for place, value in named:
        if str(place[0]).startswith("tokenizer"):
            continue  # a file is read there, whatever the architecture
        architecture = value.get("override_architecture") if isinstance(value, Mapping) else None
        try:
            text = as_text(value)
        except ValueError:
            continue  # told where the field is read
        if isinstance(text, str):
            found.setdefault(text.strip(), set()).add(architecture)
    for reference, architectures in found.items():
        if len(architectures) > 1:
            raise ValueError(f"{reference!r} has not the same override_architecture everywhere; write it the same way")
    return {name: value for name, values in found.items() for value in values if isinstance(value, str)}


def spelled_out(data: dict[str, Any], architectures: Mapping[str, str]) -> dict[str, Any]:
    """Return a recipe's plain data with these models as mappings that say their architecture, as mergekit reads it."""
    for place, reference in list(walk(data)):
        if reference in architectures:
            holder: Any = data
            for key in place[:-1]:
                holder = holder[key]
            model, _, lora = reference.partition("+")
            spelled = {"model": _spell(model), **({"lora": _spell(lora)} if lora else {})}
            holder[place[-1]] = {**spelled, "override_architecture": architectures[reference]}
    return data


def _spell(path: str) -> dict[str, str]:
    name, _, revision = path.partition("@")
    return {"path": name, **({"revision": revision} if revision else {})}
