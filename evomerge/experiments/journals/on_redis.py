"""A journal on Redis, under the keys that Optuna's backend uses: ``PREFIX:log_number`` and ``PREFIX:log:N``.

The run is held by ``PREFIX:lock``, a key that expires unless it is renewed. Each append is one script, which the server
carries out as a whole: it checks the lock and the number before it writes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from evomerge.experiments.journals.address import Address
from evomerge.experiments.journals.server import TIMEOUT, ServerBackend

EXPIRY = 30.0  # seconds after which a killed driver's lock is gone
RENEWAL = 5.0  # seconds between renewals
LOOK = 0.5  # seconds between looks at another driver's lock

# Both set the lock if it is vacant: a server that was away may have let it expire.
HOLD = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
"""
APPEND = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return {'held', holder} end
local number = tonumber(ARGV[3])
local there = tonumber(redis.call('get', KEYS[2]) or '-1') + 1
if there == number + 1 and redis.call('get', KEYS[3]) == ARGV[4] then return {'written', there} end
if there > number then return {'other', there} end
if there < number then return {'lost', there} end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('set', KEYS[3], ARGV[4])
redis.call('set', KEYS[2], ARGV[3])
return {'written', number + 1}
"""
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"


class RedisBackend(ServerBackend):
    """The entries of one run on Redis; the password is that of ``REDISCLI_AUTH``, if any."""

    lost: ClassVar[tuple[type[Exception], ...]] = (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.TryAgainError,
    )
    refused: ClassVar[tuple[type[Exception], ...]] = (redis.RedisError, ValueError)

    def __init__(self, address: Address, folder: Path, is_writer: bool, note: Callable[[str], None]) -> None:
        super().__init__(address, folder, is_writer, note)
        prefix = f"evomerge:{address.run}"
        self._lock, self._last, self._entry = f"{prefix}:lock", f"{prefix}:log_number", f"{prefix}:log:"
        self._client: redis.Redis | None = None
        self._renewing: threading.Thread | None = None
        self._closing = threading.Event()

    def connect(self) -> None:
        """Connect if need be, and hold the run."""
        if self._client is not None:
            return
        client = self._new_client()
        client.ping()
        self._client = client
        if self._is_writer:
            self._hold(client)

    def disconnect(self) -> None:
        """Drop the connection."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(redis.RedisError):
                client.close()

    def read(self, start: int, count: int) -> list[str]:
        """Return at most so many entries from number ``start`` on."""
        client = self._connected()
        last = int(client.get(self._last) or -1)
        keys = [f"{self._entry}{number}" for number in range(start, min(last + 1, start + count))]
        entries = []
        for number, entry in enumerate(client.mget(keys) if keys else [], start):
            if entry is None:
                raise self.unexpected(last + 1, number)
            entries.append(str(entry))
        return entries

    def append(self, number: int, entry: str) -> None:
        """Make ``entry`` the one of this number if it is not there yet."""
        keys = [self._lock, self._last, f"{self._entry}{number}"]
        lease = int(EXPIRY * 1000)
        state, detail = self._connected().eval(APPEND, len(keys), *keys, self.holder, lease, number, entry)
        if state == "held":
            raise self.held(detail)
        if state != "written":
            raise self.unexpected(number, None if state == "other" else int(detail))

    def warnings(self) -> list[str]:
        """Return in which way the server might lose entries; none where it does not tell its settings."""
        try:
            client, names = self._connected(), ("appendonly", "appendfsync", "maxmemory-policy")
            settings = {name: client.config_get(name).get(name) for name in names}  # several at once only from Redis 7
        except redis.RedisError:
            return []
        found = []
        if settings.get("appendonly") == "no":
            found.append("this Redis keeps its data in memory (appendonly no): if it stops, the last trials are lost")
        elif settings.get("appendfsync") == "no":
            found.append("this Redis leaves it to the system when to write (appendfsync no): a power cut loses trials")
        if str(settings.get("maxmemory-policy")).startswith("allkeys"):
            found.append("this Redis drops any data when memory is short (maxmemory-policy): set it to noeviction")
        return found

    def remove(self) -> None:
        """Remove all keys of the run."""
        client = self._connected()
        last = int(client.get(self._last) or -1)
        client.delete(self._last, self._lock, *(f"{self._entry}{number}" for number in range(last + 1)))

    def close(self) -> None:
        """Stop renewing the lock, and delete it if it is ours."""
        self._closing.set()
        if self._renewing is not None:
            self._renewing.join()
        if self._is_writer and self._client is not None:
            with suppress(redis.RedisError):
                self._client.eval(RELEASE, 1, self._lock, self.holder)
        self.disconnect()

    def _new_client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self.address.url,
            password=os.environ.get("REDISCLI_AUTH"),
            decode_responses=True,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),  # ours is longer, and tells the user
        )

    def _connected(self) -> redis.Redis:
        assert self._client is not None
        return self._client

    def _hold(self, client: redis.Redis) -> None:
        """Take the lock, waiting for one that nobody renews any more to expire."""
        left = None
        while holder := client.eval(HOLD, 1, self._lock, self.holder, int(EXPIRY * 1000)):
            before, left = left, client.pttl(self._lock)
            if before is not None and left > before:  # renewed: its driver lives
                self.disconnect()
                raise self.held(holder)
            if before is None:
                self._note(f"the run is held by {holder.partition(' ')[0]}: waiting to see whether that goes on")
            time.sleep(LOOK)
        if self._renewing is None:
            self._renewing = threading.Thread(target=self._renew, name="journal-lock", daemon=True)
            self._renewing.start()

    def _renew(self) -> None:
        with self._new_client() as client:  # of its own, as the other may be dropped at any time
            while not self._closing.wait(RENEWAL):
                with suppress(
                    redis.RedisError
                ):  # if the server is away, or the lock another's, the next append says so
                    client.eval(HOLD, 1, self._lock, self.holder, int(EXPIRY * 1000))
