"""Public keys of those who issue JWTs (RFC 7517): from a file, or from an address that is asked again and again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from lockgate.config.errors import ConfigError
from lockgate.files import Stamp, stamp

log = logging.getLogger(__name__)

_SET_BYTES: Final = 1 << 20
_MOST_KEYS: Final = 100
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})  # members of a key that nobody needs here
_FRESH_SECONDS: Final = 600.0  # how often an address is asked
_PAUSE_SECONDS: Final = 30.0  # and at most, however many tokens name keys that are not known


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key; without `kid` or `alg` it says nothing about them."""

    kid: str
    alg: str
    key: Any


class Keys(Protocol):
    """Where the keys are."""

    def get(self) -> tuple[PublicKey, ...]:
        """Give those that are known now."""

    def miss(self) -> None:
        """Hear that a token named a key that is not among them."""


def parse(text: str | bytes) -> tuple[PublicKey, ...]:
    """Read a JWK Set; keys that are no public keys for signatures are passed over. Raises ValueError."""
    from jwt import PyJWK, PyJWTError

    try:
        said = json.loads(text)
    except RecursionError:
        raise ValueError("it is no JSON that can be read") from None
    members = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(members, list) or len(members) > _MOST_KEYS:
        raise ValueError(f"it is no JWK Set of at most {_MOST_KEYS} keys")
    found: list[PublicKey] = []
    for one in members:
        if not isinstance(one, dict) or one.get("kty") not in ("RSA", "EC", "OKP") or one.get("use", "sig") != "sig":
            continue
        try:
            key = PyJWK.from_dict({name: value for name, value in one.items() if name not in _PRIVATE}).key
        except (PyJWTError, ValueError, TypeError, KeyError):
            continue
        found.append(PublicKey(str(one.get("kid") or ""), str(one.get("alg") or ""), key))
    if not found:
        raise ValueError("it has no public key for signatures")
    return tuple(found)


class KeyFile:
    """A JWK Set in a file, read again when that changes; one that cannot be used then leaves the old keys."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self._path = path
        self._state: Stamp | None = None
        self._keys: tuple[PublicKey, ...] = ()
        self._read()

    def get(self) -> tuple[PublicKey, ...]:
        try:
            self._read()
        except ConfigError as error:
            log.warning("the old keys stay: %s", error)
        return self._keys

    def miss(self) -> None:
        """Do nothing: the file is looked at each time."""

    def _read(self) -> None:
        try:
            state = stamp(self._path)
            if state == self._state:
                return
            self._state = state
            self._keys = parse(self._path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path=self._path, accepted="a JWK Set") from None
        except ValueError as error:
            raise ConfigError(f"cannot be used: {error}", path=self._path, accepted="a JWK Set (RFC 7517)") from None


class KeyUrl:
    """A JWK Set at an address. Until it was fetched there are no keys, and all tokens are refused."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for an address that anybody on the way could answer for."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (
            parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
        ):
            raise ValueError("must begin with https://")
        self.url = url
        self._keys: tuple[PublicKey, ...] = ()
        self._missed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # on which it is kept

    def get(self) -> tuple[PublicKey, ...]:
        return self._keys

    def miss(self) -> None:
        """Any thread may say so: logins with passwords are looked at in one."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._missed.set)

    async def keep(self) -> None:
        """Fetch the keys, again every ten minutes and when a token names another; runs until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self.fetch()
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                async with asyncio.timeout(_FRESH_SECONDS - _PAUSE_SECONDS):
                    await self._missed.wait()
            except TimeoutError:
                pass
            self._missed.clear()

    async def fetch(self) -> bool:
        """Fetch them once; the old ones stay where that fails."""
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=15)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self.url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                body = bytearray()
                async for piece in response.content.iter_chunked(65_536):
                    body += piece
                    if len(body) > _SET_BYTES:
                        raise ValueError(f"more than {_SET_BYTES} bytes")
                self._keys = parse(bytes(body))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.warning("keys cannot be fetched from %s, the old ones stay: %s", self.url, error)
            return False
        return True


class Keeping:
    """Keeps the keys of some addresses fresh: those that are wanted now."""

    def __init__(self) -> None:
        self._tasks: dict[KeyUrl, asyncio.Task[None]] = {}

    def want(self, wanted: Iterable[KeyUrl]) -> None:
        """Begin with those that are new, end those that are gone, and begin those again that failed."""
        kept = set(wanted)
        for url in [one for one in self._tasks if one not in kept]:
            self._tasks.pop(url).cancel()
        for url in kept:
            if url not in self._tasks or self._tasks[url].done():
                self._tasks[url] = asyncio.get_running_loop().create_task(_keep(url))

    def close(self) -> None:
        """End all."""
        self.want(())


async def _keep(url: KeyUrl) -> None:
    try:
        await url.keep()
    except Exception:
        log.exception("the keys of %s are not kept fresh for now", url.url)


def urls(sources: Iterable[Keys]) -> list[KeyUrl]:
    """Give those that have to be kept fresh, each once."""
    return list(dict.fromkeys(source for source in sources if isinstance(source, KeyUrl)))
