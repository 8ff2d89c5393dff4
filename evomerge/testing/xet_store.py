"""A store of Xet objects in memory: takes the xorbs and shards that ``hf_xet`` uploads, and hands them back.

Written from the public specification (https://huggingface.co/docs/xet). Chunks stay compressed, as they came:
the client unpacks and checks them when it downloads; nothing here knows the compression.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Any

_SHARD_HEADER = 48
_ENTRY = 48
_WITH_VERIFICATION = 1 << 31
_WITH_SHA256 = 1 << 30
_BOOKEND = "f" * 64


@dataclass(frozen=True)
class Term:
    """A run of chunks ``[start, end)`` of one xorb; ``length`` is its size unpacked, in bytes."""

    xorb: str
    start: int
    end: int
    length: int


class XetStore:
    """Xorbs by hash and files by hash, as a Xet server keeps them; safe to use from several threads."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, list[Term]] = {}
        self.by_sha256: dict[str, str] = {}
        self._lock = threading.Lock()

    def put_xorb(self, name: str, data: bytes) -> bool:
        """Keep a serialised xorb; return whether it was new."""
        with self._lock:
            new = name not in self.xorbs
            self.xorbs[name] = data
        return new

    def put_shard(self, data: bytes) -> None:
        """Enter the files that a shard lists.

        Raises:
            ValueError: it names a xorb, or a chunk of one, that was never uploaded.
        """
        offset = _SHARD_HEADER
        while (name := _hex(data, offset)) != _BOOKEND:
            flags, count = struct.unpack_from("<II", data, offset + 32)
            terms = [_term(data, offset + _ENTRY * (1 + i)) for i in range(count)]
            for term in terms:
                self._check(term)
            offset += _ENTRY * (1 + count + (count if flags & _WITH_VERIFICATION else 0))
            with self._lock:
                self.files[name] = terms
                if flags & _WITH_SHA256:
                    self.by_sha256[_hex(data, offset)] = name
            offset += _ENTRY if flags & _WITH_SHA256 else 0

    def size(self, name: str) -> int:
        """Return the unpacked size of a file in bytes."""
        return sum(term.length for term in self.files[name])

    def reconstruction(self, name: str, base_url: str, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """Return version 1 of the answer to "how do I rebuild bytes first..last of this file"."""
        last = self.size(name) - 1 if last is None else last
        terms, position, skipped = [], 0, None
        for term in self.files[name]:
            begin, position = position, position + term.length
            if begin <= last and position > first:
                skipped = first - begin if skipped is None else skipped
                terms.append(term)
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in terms:
            ends = self.chunk_ends(term.xorb)
            bounds = {"start": ends[term.start - 1] if term.start else 0, "end": ends[term.end - 1] - 1}
            chunks = {"start": term.start, "end": term.end}
            entry: dict[str, Any] = {"range": chunks, "url": f"{base_url}/{term.xorb}", "url_range": bounds}
            if entry not in fetch.setdefault(term.xorb, []):
                fetch[term.xorb].append(entry)
        return {
            "offset_into_first_range": skipped or 0,
            "terms": [
                {"hash": t.xorb, "unpacked_length": t.length, "range": {"start": t.start, "end": t.end}} for t in terms
            ],
            "fetch_info": fetch,
        }

    def chunk_ends(self, xorb: str) -> list[int]:
        """Return where each chunk of a serialised xorb ends, in bytes from its beginning."""
        data, ends, offset = self.xorbs[xorb], [], 0
        while offset + 8 <= len(data) and data[offset] == 0:  # a chunk's header begins with its version, 0
            offset += 8 + int.from_bytes(data[offset + 1 : offset + 4], "little")
            ends.append(offset)
        return ends

    def _check(self, term: Term) -> None:
        if term.xorb not in self.xorbs:
            raise ValueError(f"xorb {term.xorb} was never uploaded")
        if term.end > len(self.chunk_ends(term.xorb)):
            raise ValueError(f"xorb {term.xorb} has no chunk {term.end - 1}")


def _term(data: bytes, offset: int) -> Term:
    _, length, start, end = struct.unpack_from("<IIII", data, offset + 32)
    return Term(_hex(data, offset), start, end, length)


def _hex(data: bytes, offset: int) -> str:
    """Return the 32 bytes at ``offset`` in the protocol's notation: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, offset))
