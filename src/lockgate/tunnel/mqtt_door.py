"""A device that speaks MQTT at the edge: its CONNECT decides whether it is let in, before a stream is opened for it.

Its bytes then run through its filter (`devices`) in both directions. While no tunnel connection carries them the filter
answers PINGREQ, so that a device with a short Keep Alive waits for the gap to end as well. To that end a WebSocket that
is passed on without a policy is followed (`mqtt_frames`).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lockgate.mqtt import reason_codes
from lockgate.tunnel.device_policy import DevicePolicy, Peer, Refused
from lockgate.tunnel.devices import DeviceFilter, State
from lockgate.tunnel.edge import NoConnector
from lockgate.tunnel.headers import SOURCE, UPGRADE, HeaderError
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.logins import TooManyLogins
from lockgate.tunnel.mqtt_frames import MqttFrames
from lockgate.tunnel.paced import Pace, PacedEnd
from lockgate.tunnel.tunnels import Mqtts, Tunnel

if TYPE_CHECKING:
    from lockgate.tunnel.public import Public

_ANSWERED_BYTES: Final = 1 << 20  # that wait for a device that does not read

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a device's bytes go."""

    tunnel: Tunnel
    headers: Headers  # of the stream
    frames: bool  # the stream carries WebSocket frames
    host: str  # it was asked for
    policy: DevicePolicy | None
    target: str = ""  # that is named to the connector


class Device(PacedEnd):
    """The device's end. `route` says where it goes, by its user name; None where that leads nowhere."""

    def __init__(
        self, public: Public, peer: Peer, policy: DevicePolicy | None, route: Callable[[str | None], Route | None]
    ) -> None:
        super().__init__(Pace(0))  # the tunnel's, once it is known
        self._public = public
        self._route = route
        self._loop = asyncio.get_running_loop()
        self.filter = DeviceFilter(peer, policy or DevicePolicy(), self._loop.time())
        self._timer = self._loop.call_later(self.filter.policy.connect_seconds, self._expire)
        self._task: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        before = self.filter.state
        passed = self.filter.receive(data)
        self.say()
        if passed:
            super().data_received(passed)
        if self.filter.state is State.LOGIN and before is State.AWAITING_CONNECT:
            self.pause_reading()
            self._task = self._public.spawn(self._let_in())

    def say(self) -> None:
        """Tell the device what the edge itself has to say, and close it if that was the last."""
        if self.transport is None:
            return
        if said := self.filter.answer():
            self.transport.write(said)
        if self.filter.answer_bytes + self.transport.get_write_buffer_size() > _ANSWERED_BYTES:
            log.info("A device at %s (%r) reads no answers", self.filter.peer.address, self._name())
            self.abort()
            return
        if self.filter.state is State.CLOSED:
            log.info("A device at %s (%r) is closed: %s", self.filter.peer.address, self._name(), self.filter.problem)
            if self.other is None:
                facts = {"from": self.filter.peer.address, "who": self.filter.username or "", "client": self._name()}
                self._public.audit.refused(self.filter.problem, **facts)
            self._timer.cancel()
            self.close()
            if self.other is not None:
                self.other.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        super().connection_lost(exc)

    def _name(self) -> str:
        return self.filter.client_id[:100]

    def _expire(self) -> None:
        self.filter.expire(self._loop.time())
        self.say()

    async def _let_in(self) -> None:
        route = self._route(self.filter.username)
        if route is None:
            self._refuse(reason_codes.NOT_AUTHORIZED, "its user name leads to no tunnel")
            return
        if route.policy is not None:
            self.filter.policy = route.policy
        if self.filter.is_slow:
            address = self.filter.peer.address.rpartition(":")[0]
            try:
                outcome = await self._public.logins.run(address, lambda: self.filter.log_in(time.time()))
            except TooManyLogins:
                self._refuse(reason_codes.SERVER_BUSY, "too many logins wait")
                return
        else:
            outcome = self.filter.log_in(time.time())
        if isinstance(outcome, Refused):
            self.filter.admit(outcome)
            self.say()
            return
        try:
            opened = await self._public.hub.open(route.tunnel, route.headers, key=self.filter.client_id)
        except (NoConnector, ConnectionError, HeaderError) as error:
            self._refuse(reason_codes.SERVER_UNAVAILABLE, f"tunnel {route.tunnel.name}: {error}")
            return
        response = opened.response
        if not (response.switches if route.frames else response.status == 200):
            opened.refuse()
            detail = response.cause or f"the origin answers {response.status}"
            self._refuse(reason_codes.SERVER_UNAVAILABLE, f"tunnel {route.tunnel.name}: {detail}")
            return
        passed = self.filter.admit(outcome)
        self._timer.cancel()
        opened.on_gap = self._on_gap
        self.pace, back = self._public.paces(route.tunnel)
        origin = _Origin(back, self)
        visit = self._public.audit.begin(
            who=self.filter.username or "",
            address=self.filter.peer.address,
            tunnel=route.tunnel.name,
            host=route.host,
            origin=route.target,
            kind=f"mqtt {self._name()}",
        )
        self._public.record(self, origin, visit)
        self._public.join(self, origin, opened, frames=route.frames)
        if passed:
            super().data_received(passed)
        self.say()

    def _refuse(self, reason_code: int, detail: str) -> None:
        self.filter.refuse(reason_code, detail)
        self.say()

    def _on_gap(self, begins: bool) -> None:
        self.filter.answers_pings = begins


class _Origin(PacedEnd):
    """The other end: what the broker says passes through the device's filter."""

    def __init__(self, pace: Pace, device: Device) -> None:
        super().__init__(pace)
        self._device = device

    def data_received(self, data: bytes) -> None:
        passed = self._device.filter.from_broker(data)
        if passed:
            super().data_received(passed)
        if self._device.filter.state is State.CLOSED:
            self._device.say()


class FramedDevice(PacedEnd):
    """The end of a device whose WebSocket frames go to the broker as they are."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self.frames = MqttFrames()

    def data_received(self, data: bytes) -> None:
        if passed := self.frames.from_device(data):
            super().data_received(passed)
        said = self.frames.answer()
        if said and self.transport is not None:
            self.transport.write(said)
            if self.transport.get_write_buffer_size() > _ANSWERED_BYTES:
                log.info("A device at %s reads no answers", self.transport.get_extra_info("peername"))
                self.abort()

    def on_gap(self, begins: bool) -> None:
        if begins:
            self.frames.begin_gap()
        elif waited := self.frames.end_gap():
            super().data_received(waited)


class FramedOrigin(PacedEnd):
    """The other end: what the broker says goes to the device as it is, and is followed."""

    def __init__(self, pace: Pace, device: FramedDevice) -> None:
        super().__init__(pace)
        self._frames = device.frames

    def data_received(self, data: bytes) -> None:
        self._frames.from_broker(data)
        super().data_received(data)


def to_target(tunnel: Tunnel, where: Mqtts, name: str, address: str) -> Route:
    """By raw TCP to the target that is named, or by WebSocket frames to what the rule for the host name says."""
    if where.target:
        headers: Headers = [
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", where.target.encode()), (b":path", b"/"),
            (SOURCE, address.encode()),
        ]  # fmt: skip
        return Route(tunnel, headers, False, name, where.devices, where.target)
    return websocket_route(tunnel, name, "/mqtt", address, where.devices)


def websocket_route(tunnel: Tunnel, name: str, path: str, address: str, policy: DevicePolicy | None) -> Route:
    """By WebSocket, of which the edge is the client."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]") or address
    headers: Headers = [
        (b":method", b"GET"), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", path.encode()),
        (UPGRADE, b"websocket"), (b"sec-websocket-key", base64.b64encode(os.urandom(16))),
        (b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"mqtt"),
        (b"x-forwarded-for", host.encode()), (b"cf-connecting-ip", host.encode()),
    ]  # fmt: skip
    return Route(tunnel, headers, True, name, policy)
