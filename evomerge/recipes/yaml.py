"""YAML in and out, with the line of every value, so that an error can say where it is.

Reading is safe (data only). Numbers such as ``1e-3`` are numbers and ``no``/``on`` are strings, as in YAML
1.2; a key written twice is refused. ``validate`` turns pydantic's errors into problems with a line and the
nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from evomerge.errors import ConfigError, Problem, suggest

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]
MOST_VALUES = 200_000
DEEPEST = 100


@dataclass(frozen=True)
class Document:
    """Parsed YAML: the data, where it came from, and the line (1-based) of every key path."""

    data: Any
    source: str
    lines: Mapping[Key, int] = field(default_factory=dict)

    def where(self, key: Key = ()) -> str:
        """Return ``source:line: a.b[0]`` for a key path (the nearest enclosing one that has a line)."""
        known = next((key[:n] for n in range(len(key), -1, -1) if key[:n] in self.lines), ())
        line = self.lines.get(known)
        place = f"{self.source}:{line}" if line else self.source
        return f"{place}: {dotted(key)}" if key else place


def dotted(key: Key) -> str:
    """Return a key path as it is written for people: ``fitness.objectives[0].task``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 booleans and floats."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def loads(text: str, source: str = "<string>") -> Document:
    """Parse one YAML document.

    Raises:
        ConfigError: not YAML, several documents, or a mapping has the same key twice; says the line.
    """
    documents = loads_all(text, source)
    if len(documents) > 1:
        what = "the file has several documents (separated by '---'), one is expected here"
        raise ConfigError(Problem(what, documents[1].where()))
    return documents[0]


def loads_all(text: str, source: str = "<string>") -> tuple[Document, ...]:
    """Parse every document of a YAML text, at least one; empty ones beside others are left out.

    Raises:
        ConfigError: not YAML, or a mapping has the same key twice; says the line.
    """
    loader: _Loader | None = None
    documents: list[Document] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            lines: dict[Key, int] = {}
            _collect(node, (), lines, source)
            data = loader.construct_document(node)
            if data is not None:
                documents.append(Document(data, source, lines))
    except ValueError as error:  # a date or number that only looks like one
        raise ConfigError(Problem(f"not valid YAML: {error}", source)) from error
    except RecursionError as error:
        raise ConfigError(Problem("not valid YAML: nested too deeply", source)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(Problem(f"not valid YAML: {getattr(error, 'problem', error)}", where)) from error
    finally:
        if loader is not None:
            loader.dispose()
    return tuple(documents) or (Document(None, source),)


def load(path: Path | str) -> Document:
    """Parse the YAML file at ``path``.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    return loads(read(path), str(path))


def read(path: Path | str) -> str:
    """Return the text of the file at ``path``.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(f"cannot read the file: {error}", str(path))) from error


def dumps(data: Any) -> str:
    """Write plain data as YAML: keys in their order, short lists of numbers on one line, floats exact."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that keeps lists of scalars on one line and writes floats so that they read back exactly."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, (int, float, str, bool)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


def _represent_float(dumper: yaml.SafeDumper, data: float) -> yaml.Node:
    text = {float("inf"): ".inf", float("-inf"): "-.inf"}.get(data, repr(data)) if data == data else ".nan"
    # PyYAML's own loader (YAML 1.1) needs a dot in the mantissa to see a float.
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    if re.search(r"e\d", text):
        text = text.replace("e", "e+")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML reads the rarer line breaks back as "\n" unless they are escaped, which only double quotes do.
    style = '"' if re.search("[\x85\u2028\u2029]", data) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _represent_text)
# A string such as "1e3" must be quoted, as our loader would read a number.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, lambda dumper, data: _represent_list(dumper, list(data)))
_Dumper.add_representer(float, _represent_float)


def validate(model: type[Model], document: Document, data: Any = None, prefix: Key = ()) -> Model:
    """Return ``model`` built from the document's data, or from ``data``, a part of it under ``prefix``.

    Raises:
        ConfigError: every problem at once, each with file, line, key path and the nearest valid name.
    """
    data = document.data if data is None else data
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise ConfigError(Problem(f"expected a mapping of fields, found {found}", document.where(prefix)))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        inner = {detail["loc"][:n] for detail in details for n in range(len(detail["loc"]))}
        # A list whose only entry is wrong is also "too short": report the cause alone.
        details = [d for d in details if not (d["type"] == "too_short" and d["loc"] in inner)]
        problems = [_problem(model, document, prefix, detail) for detail in details]
        raise ConfigError(list(dict.fromkeys(problems))) from error


def _problem(model: type[BaseModel], document: Document, prefix: Key, detail: Any) -> Problem:
    raw = tuple(detail["loc"])
    key = prefix + _within(document.data, prefix, raw)
    where = document.where(key)
    if detail["type"] == "extra_forbidden":
        fields = fields_at(model, raw[:-1])
        return Problem(f"unknown field {raw[-1]!r}", where, suggest(str(raw[-1]), fields))
    if detail["type"] == "missing":
        return Problem(f"missing field {raw[-1]!r}", document.where(prefix + _within(document.data, prefix, raw[:-1])))
    if detail["type"] in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        return Problem(f"{detail['input']!r} is not a valid value", where, suggest(str(detail["input"]), choices))
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (found {given!r})" if isinstance(given, (str, int, float, bool)) or given is None else ""
    return Problem(message[:1].lower() + message[1:] + shown, where)


def _within(data: Any, prefix: Key, location: Key) -> Key:
    """Drop from a pydantic location the parts that are not keys of the data (names of union members)."""
    for part in prefix:
        data = data[part]
    path: list[str | int] = []
    for i, part in enumerate(location):
        known = part in data if isinstance(data, Mapping) else False
        if isinstance(data, (list, tuple)):
            known = isinstance(part, int) and part < len(data)
        if known:
            data = data[part]
        elif not (isinstance(data, Mapping) and i == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def fields_at(model: type[BaseModel], location: Key) -> list[str]:
    """Return the field names (aliases included) that a mapping at ``location`` inside ``model`` may have."""
    models = [model]
    for part in location:
        inner: list[type[BaseModel]] = []
        for candidate in models:
            by_alias = {(info.alias or name): info.annotation for name, info in candidate.model_fields.items()}
            if part in by_alias:
                inner += _models_in(by_alias[part])
        models = inner or models
    names = [info.alias or name for candidate in models for name, info in candidate.model_fields.items()]
    return list(dict.fromkeys(names))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _collect(node: yaml.Node, key: Key, lines: dict[Key, int], source: str) -> None:
    if len(lines) > MOST_VALUES or len(key) > DEEPEST:
        raise ConfigError(Problem("too many nested or repeated values (an anchor inside itself?)", source))
    lines[key] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key_node, value_node in node.value:
            name, where = key_node.value, f"{source}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(Problem("a key must be a plain word", where))
            if name in seen:
                raise ConfigError(Problem(f"the key {name!r} is written twice", where))
            seen.add(name)
            _collect(value_node, (*key, name), lines, source)
            lines[(*key, name)] = key_node.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect(item, (*key, index), lines, source)
