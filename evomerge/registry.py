"""Names to objects: one small registry class for merge methods, searchers and their like."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from evomerge.errors import EvomergeError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to objects that may be filled lazily and is read like a mapping.

    Args:
        kind: what the entries are, in words, for messages (``"merge method"``).
        modules: modules to import before the first look-up; importing one registers its entries.
            Nothing heavy is imported until somebody asks.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._modules = modules
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, *, origin: str = "") -> Callable[[T], T]:
        """Return a decorator that enters its object under ``name``; a name is taken once."""

        def enter(entry: T) -> T:
            self.add(name, entry, origin=origin or getattr(entry, "__module__", "?"))
            return entry

        return enter

    def add(self, name: str, entry: T, *, origin: str) -> None:
        """Enter ``entry`` under ``name``.

        Raises:
            EvomergeError: the name is already taken; the message names both owners.
        """
        if name in self._entries and self._origins[name] != origin:
            raise EvomergeError(f"{self.kind} {name!r} is registered twice: by {self._origins[name]} and by {origin}")
        self._entries[name], self._origins[name] = entry, origin

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, entry), sorted by name."""
        for name in self:
            yield name, self._entries[name]

    def origin(self, name: str) -> str:
        """Return the module that registered ``name``."""
        self[name]
        return self._origins[name]

    def snapshot(self) -> Mapping[str, T]:
        """Return a copy of the table."""
        self._load()
        return dict(self._entries)

    def _load(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)
