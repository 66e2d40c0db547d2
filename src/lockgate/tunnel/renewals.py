"""Certificates of the edge's public names: ordered where there is none, and when a third of the time is left."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from lockgate import files
from lockgate.tunnel.tunnel_edits import spoken

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 5.0  # how often the wall clock is held against the certificates
# The first and the longest pause after a failure. Let's Encrypt takes five failed validations of a name in an hour.
_FIRST_PAUSE: Final = 300.0
_LONGEST_PAUSE: Final = 3600.0


class OrderError(Exception):
    """There is no new certificate. Says why in one line: what the server has against it, or the way to it."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a certificate begins and ends, in Unix seconds."""

    begins: float
    ends: float

    @classmethod
    def of(cls, pem: bytes) -> Lifetime:
        """Read the first certificate of a file. Raises ValueError."""
        found = x509.load_pem_x509_certificate(pem)
        return cls(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())

    def is_due(self, now: float) -> bool:
        """Whether no more than a third of it is left."""
        return now >= self.ends - (self.ends - self.begins) / 3


class _Kept:
    """The certificate of one name: its file, and how it goes with it."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file
        self.lifetime = _lifetime(file)
        self.problem = ""  # why there is no newer one
        self.pause = 0.0  # after the last failure
        self.pause_ends = 0.0  # by the steady clock

    @property
    def told(self) -> str:
        return f"the one that is there ends at {spoken(self.lifetime.ends)}" if self.lifetime else "there is none yet"


class Renewals:
    """Keeps certificates; from `start` to `close` in a thread, as an order waits for others."""

    def __init__(
        self,
        kept: Mapping[str, Path],
        order: Callable[[str], bytes],
        *,
        clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kept`: names and their files. `order` gives a name's certificate and key in PEM, or raises OrderError."""
        self._kept = [_Kept(name, file) for name, file in kept.items()]
        self._order = order
        self._clock = clock
        self._steady_clock = steady_clock
        self._closing = threading.Event()

    def start(self) -> None:
        # Nothing waits for its end: it may be waiting itself, for a server that does not answer.
        threading.Thread(target=self._run, name="acme", daemon=True).start()

    def close(self) -> None:
        """Order nothing more."""
        self._closing.set()

    def status(self) -> dict[str, dict[str, str]]:
        """By name: when the certificate ends, and why there is no newer one. From any thread."""
        return {
            one.name: ({"ends": spoken(one.lifetime.ends)} if one.lifetime is not None else {})
            | ({"problem": one.problem} if one.problem else {})
            for one in self._kept
        }

    def look(self) -> None:
        """Order what is due and not waiting after a failure, one after the other. Blocks, and raises nothing."""
        for one in self._kept:
            is_due = one.lifetime is None or one.lifetime.is_due(self._clock())
            if is_due and self._steady_clock() >= one.pause_ends and not self._closing.is_set():
                self._renew(one)

    def _run(self) -> None:
        while not self._closing.is_set():
            self.look()
            self._closing.wait(_LOOK_SECONDS)

    def _renew(self, one: _Kept) -> None:
        try:
            pem = self._order(one.name)
            lifetime = Lifetime.of(pem)
            _write(one.file, pem)
            one.lifetime = lifetime
            if lifetime.is_due(self._clock()):
                raise OrderError("a new one is there, and by this machine's clock it is due again: is the clock right?")
        except OrderError as error:
            self._fail(one, str(error))
        except Exception as error:  # the thread has to live
            log.exception("The order of a certificate for %s failed", one.name)
            self._fail(one, f"{type(error).__name__}: {error}")
        else:
            one.problem, one.pause = "", 0.0
            log.info("There is a new certificate for %s; it ends at %s", one.name, spoken(lifetime.ends))

    def _fail(self, one: _Kept, problem: str) -> None:
        """Wait between half of a pause that doubles and the whole of it; a problem that stays is told once."""
        one.pause = min(_LONGEST_PAUSE, 2 * one.pause) or _FIRST_PAUSE
        one.pause_ends = self._steady_clock() + random.uniform(one.pause / 2, one.pause)
        if problem != one.problem:
            log.warning("No new certificate for %s, %s: %s", one.name, one.told, problem)
        one.problem = problem


def _write(file: Path, pem: bytes) -> None:
    try:
        files.replace(file, pem)
    except OSError as error:
        raise OrderError(f"{file} cannot be written: {error.strerror}") from None


def _lifetime(file: Path) -> Lifetime | None:
    """That of a certificate that can be used; what is none is taken away, so that the edge starts without it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)
        return Lifetime.of(file.read_bytes())
    except (ssl.SSLError, ValueError) as error:
        log.error("The certificate in %s cannot be used, and is ordered anew: %s", file, error)
        file.unlink()
    except OSError:  # it is not there, or `Certificates` says what is wrong
        pass
    return None
