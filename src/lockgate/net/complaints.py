"""The log of peers that were never let in: what they did wrong is told, repetition is counted."""

from __future__ import annotations

import ipaddress
import logging
from typing import Final

log = logging.getLogger(__name__)

_SECONDS: Final = 60.0
_REASONS: Final = 10  # different ones told of one address in that time
_ADDRESSES: Final = 256  # remembered; all others count as one
_OTHERS: Final = "other addresses"


class _Address:
    """What was told of one address since `began`."""

    __slots__ = ("began", "left_out", "reasons")

    def __init__(self, now: float) -> None:
        self.began = now
        self.reasons: set[str] = set()
        self.left_out = 0


class Complaints:
    """Tells each reason once a minute for each address, ten of them at most, and how many were left out.

    Times are those of the broker's clock, in seconds.
    """

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}

    def is_repeating(self, peer: str, now: float) -> bool:
        """Whether lines about this peer are being left out: its next connection is not worth one either."""
        if not self._addresses:
            return False
        host = _host(peer)
        known = self._addresses.get(host) or self._addresses.get(_OTHERS)
        return known is not None and known.left_out > 0 and now < known.began + _SECONDS

    def tell(self, peer: str, reason: str, now: float) -> None:
        """Log why a peer was sent away, unless that was said of its address within the last minute."""
        known = self._of(peer, now)
        if reason in known.reasons or len(known.reasons) == _REASONS:
            known.left_out += 1
            return
        known.reasons.add(reason)
        log.warning("Client [%s] disconnected: %s.", peer, reason)

    def count(self, peer: str, now: float) -> None:
        """Count a peer that came and went without a word: the line about its coming was one too many already."""
        self._of(peer, now).left_out += 1

    def close(self) -> None:
        """Say what was left out until now."""
        for host, known in self._addresses.items():
            _sum_up(host, known)
        self._addresses.clear()

    def _of(self, peer: str, now: float) -> _Address:
        host = _host(peer)
        known = self._addresses.get(host)
        if known is None:
            self._forget(now)
            if len(self._addresses) >= _ADDRESSES:
                host = _OTHERS
                known = self._addresses.get(host)
        if known is not None and now >= known.began + _SECONDS:
            _sum_up(host, known)
            known = None
        if known is None:
            known = self._addresses[host] = _Address(now)
        return known

    def _forget(self, now: float) -> None:
        """Make room: drop the addresses whose minute is over, with their sums."""
        if len(self._addresses) < _ADDRESSES:
            return
        for host, known in list(self._addresses.items()):
            if now >= known.began + _SECONDS:
                _sum_up(host, known)
                del self._addresses[host]


def _sum_up(host: str, known: _Address) -> None:
    if known.left_out:
        log.warning("%d more connections from %s ended before they were let in.", known.left_out, host)


def _host(peer: str) -> str:
    """Give the address without its port, of IPv6 the network: one machine has all of its addresses."""
    host, colon, port = peer.rpartition(":")
    if not colon or not port.isdecimal():
        return peer.partition(" (")[0]  # a Unix socket, with process and user behind
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
