"""A small Hugging Face Hub on localhost, for tests: repositories, commits, LFS and Xet transfer, faults.

It speaks what ``huggingface_hub`` asks for when a model folder is pushed and fetched back, over real HTTP:

    with HubServer() as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        push(folder, "alice/model", token=hub.token)
        assert hub.files("alice/model")["config.json"] == ...

Nothing is written to disk. ``Fault`` makes it fail in the middle of a request, to see what a client does.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from evomerge.testing.hub_api import ROUTES, Repository
from evomerge.testing.xet_store import XetStore

TOKEN = "hf_" + "testing0" * 4
READ_TOKEN = "hf_" + "readonly" * 4


@dataclass
class Fault:
    """Makes requests fail.

    Args:
        method, path: which requests: an exact method, a regular expression searched in the path.
        action: an HTTP status to answer; or ``drop``: read half of the body, then cut the connection; or
            ``stall``: read half, set ``HubServer.stalled``, and say nothing until the client goes away.
        skip: how many matching requests pass first.
        times: how many then fail; None means all.
        headers: sent with the status.
    """

    method: str
    path: str
    action: int | Literal["drop", "stall"]
    skip: int = 0
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def strikes(self, method: str, path: str) -> bool:
        """Count one request and say whether it fails."""
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass(frozen=True)
class Request:
    """One request that arrived: ``received`` counts the bytes of its body that were read."""

    method: str
    path: str
    received: int


class HubServer:
    """The server; a context manager that runs it in a thread.

    Args:
        namespace: the user (or organisation) that ``TOKEN`` may write to.
    """

    token = TOKEN

    def __init__(self, namespace: str = "alice") -> None:
        self.namespace = namespace
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.xet = XetStore()
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering and close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Fail as ``faults`` say inside the block."""
        self.faults += faults
        try:
            yield
        finally:
            self.faults = [fault for fault in self.faults if fault not in faults]

    def bytes_received(self, method: str, path: str) -> int:
        """Return how many body bytes arrived in requests of ``method`` whose path matches."""
        return sum(one.received for one in self.requests if one.method == method and re.search(path, one.path))

    def count(self, method: str, path: str) -> int:
        """Return how many requests of ``method`` have a path that matches."""
        return sum(one.method == method and bool(re.search(path, one.path)) for one in self.requests)

    def files(self, repo_id: str, ref: str = "main") -> dict[str, bytes | None]:
        """Return the committed files; None for those in the Xet store, which only a client can unpack."""
        entries = self.repositories[repo_id].refs[ref]
        return {path: entry.data or self.large.get(entry.sha256) for path, entry in entries.items()}

    def has_large(self, sha256: str) -> bool:
        """Whether a large file has arrived, by either way."""
        return sha256 in self.large or sha256 in self.xet.by_sha256


class HubRequestHandler(BaseHTTPRequestHandler):
    """One request; ``ROUTES`` says which method answers it."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests read ``HubServer.requests``."""

    def handle_request(self) -> None:
        """Find the route, check the token, run the answer."""
        split = urlsplit(self.path)
        self.query, path = parse_qs(split.query), unquote(split.path)
        self.body, fault = b"", next((f for f in self.hub.faults if f.strikes(self.command, path)), None)
        size = int(self.headers.get("Content-Length") or 0)
        if fault and not isinstance(fault.action, int):
            self._break_off(path, size, fault.action)
            return
        self.body = self._read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(size)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, len(self.body)))
        if fault and isinstance(fault.action, int):
            self.error(fault.action, "the test server was told to fail", headers=fault.headers)
            return
        self._answer(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _answer(self, path: str) -> None:
        for method, pattern, needs, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                if self._allowed(needs, found.groupdict()):
                    answer(self, **found.groupdict())
                return
        self.error(404, f"no such page: {self.command} {path}", "EntryNotFound")

    def _allowed(self, needs: str, names: dict[str, str]) -> bool:
        if needs == "nothing":
            return True
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            said = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            self.error(401, said)
        elif needs == "write" and token == READ_TOKEN:
            self.error(403, "you need a token with write access")
        elif "repo" in names and names["repo"] not in self.hub.repositories:
            self.error(404, "Repository not found", "RepoNotFound")
        else:
            return True
        return False

    def send(self, data: Any = b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with bytes, or with anything else as JSON."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        kind = "application/octet-stream" if isinstance(data, bytes) else "application/json"
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, said: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        """Answer with an error as the Hub words it: in the body and in two headers."""
        named = {"X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
        self.send({"error": said}, status, named | (headers or {}))

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def _break_off(self, path: str, size: int, action: str) -> None:
        half = self.rfile.read(size // 2)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, len(half)))
        if action == "stall":
            self.hub.stalled.set()
            self.rfile.read()
        # Linger 0 makes close send a reset, as a cut connection does, instead of a clean end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _handler(hub: HubServer) -> type[HubRequestHandler]:
    return type("BoundHandler", (HubRequestHandler,), {"hub": hub})
