"""The connector as a service: several connections to the edges it was told, each dialled anew whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import platform
import random
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lockgate import __version__
from lockgate.config.errors import ConfigError
from lockgate.config.model import ConnectorConfig
from lockgate.tunnel.answers import Answers
from lockgate.tunnel.conduit import FEATURE, PLACE
from lockgate.tunnel.figures import REGISTER, REPORT, UNREGISTER, Calls
from lockgate.tunnel.h2_session import Session, SessionLimits, Stream, StreamProtocol
from lockgate.tunnel.headers import Kind, kind_of
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.ingress import Ingress
from lockgate.tunnel.management import Management
from lockgate.tunnel.pushes import Configurations
from lockgate.tunnel.registration import (
    ALREADY_CONNECTED,
    Answer,
    Options,
    Refused,
    Registered,
    RegistrationClient,
    RegistrationError,
    Reported,
    Unregistered,
)
from lockgate.tunnel.services import AllowList, host_and_port
from lockgate.tunnel.token import Token

log = logging.getLogger(__name__)

_FEATURES: Final = ("allow_remote_config", "serialized_headers", FEATURE)
_MACHINE_ID: Final = Path("/etc/machine-id")
_DIAL_SECONDS: Final = 15.0
_REGISTER_SECONDS: Final = 5.0
_APART_SECONDS: Final = 0.25  # between the first registrations
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 32.0  # seconds, of the back-off
_STABLE_SECONDS: Final = 30.0  # a connection that lasted as long begins the back-off anew


class TokenRefused(ConfigError):
    """Every edge would refuse it: there is no use in trying again."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where to dial, and what the certificate has to be good for."""

    host: str
    port: int
    address: str


class Connector:
    """Dials out and carries in what the edge sends; no port is opened but the one for figures."""

    name = "connector"

    def __init__(self, config: ConnectorConfig, token: Token, ingress: Ingress, trust: Trust) -> None:
        """`trust`: how edges are trusted."""
        self._config = config
        self._token = token
        self._edges = config.edges or token.edges
        self._trust = trust
        self._local = ingress
        self.configurations = Configurations(ingress, AllowList.parse(config.allow))
        self.client_id = uuid.uuid4()
        self.streams = Answers(
            self.configurations,
            AllowList.parse(config.allow),
            AllowList.parse(config.proxy_protocol, "connector.proxy_protocol"),
            Management(token.tunnel_id, {"connector_id": str(self.client_id), "hostname": platform.node()}),
        )
        self.slots = [_Slot(self, index) for index in range(config.connections)]
        self.register_success = 0
        self.register_fail: dict[str, int] = {}
        self.calls = Calls()
        self.features = (*_FEATURES, PLACE + _place(config.metrics))
        self._draining = False
        self.stop_seconds = config.grace_seconds + 2

    async def run(self, ready: Callable[[], None]) -> None:
        """Keep the connections up until cancelled, and then drain them; TokenRefused ends it."""
        from lockgate.tunnel.metrics import serve_figures

        figures = await serve_figures(self, self._config.metrics)
        first = asyncio.get_running_loop().create_future()
        self.streams.begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._become_ready(first, ready))
                for slot in self.slots:
                    tasks.create_task(slot.run(first), name=f"connection {slot.index}")
        except BaseExceptionGroup as group:
            refused = group.subgroup(TokenRefused)
            if refused is None:
                raise
            raise _leaf(refused) from None
        finally:
            await self._drain()
            self.streams.close()
            figures.close()

    def status(self) -> dict[str, object]:
        """What `lockgate status` shows."""
        counts = self.streams.counts
        return {
            "connector": str(self.client_id),
            "connections": [slot.status() for slot in self.slots],
            "configuration_version": self.configurations.version,
            "requests": counts.requests,
            "open": counts.open,
            "errors": counts.errors,
            "tcp_open": counts.tcp_open,
            "resumed": counts.resumed,
        }

    @property
    def ready_connections(self) -> int:
        return sum(slot.registered is not None for slot in self.slots)

    @property
    def token(self) -> Token:
        return self._token

    @property
    def server_name(self) -> str:
        return self._config.server_name

    @property
    def trust(self) -> Trust:
        return self._trust

    def local_configuration(self) -> bytes:
        """What is served here, as the edge is told."""
        flags = {"protocol": "http2", "ha-connections": str(self._config.connections)}
        return json.dumps({"__configuration_flags": flags, **self._local.as_json()}).encode()

    async def resolve(self, avoid: Sequence[str]) -> Edge:
        """An address to dial, one that no other connection uses if there is one."""
        found: list[Edge] = []
        problem: OSError | None = None
        for text in self._edges:
            host, port = host_and_port(text)
            try:
                loop = asyncio.get_running_loop()
                for *_, name in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                    found.append(Edge(host, port, str(name[0])))
            except OSError as error:
                problem = error
        if not found:
            raise problem or OSError("no edge is configured")
        used = [avoid.count(f"{edge.address}:{edge.port}") for edge in found]
        fewest = [edge for edge, times in zip(found, used, strict=True) if times == min(used)]
        return random.choice(fewest)

    async def _become_ready(self, first: asyncio.Future[None], ready: Callable[[], None]) -> None:
        await asyncio.shield(first)
        ready()

    async def _drain(self) -> None:
        """Take no more streams, and let those that are open come to their end."""
        if self._draining:
            return
        self._draining = True
        sessions = [slot for slot in self.slots if slot.session is not None]
        for slot in sessions:
            slot.unregister()
        if sessions:
            log.info("Draining: up to %g s for what is open", self._config.grace_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.grace_seconds):
                for slot in sessions:
                    await slot.drained()
        for slot in sessions:
            if slot.session is not None:
                slot.session.close("the connector ends")


class _Slot:
    """One of the connections, again and again."""

    def __init__(self, connector: Connector, index: int) -> None:
        self.index = index
        self.session: Session | None = None
        self.registered: Registered | None = None
        self.address = ""
        self.restarts = 0
        self._connector = connector
        self._control: _Control | None = None
        self._lost = asyncio.Event()
        self._reason = ""
        self._failures = 0
        self._avoid = ""

    def status(self) -> dict[str, object]:
        return {
            "index": self.index,
            "edge": self.address,
            "location": self.registered.location if self.registered else "",
            "registered": self.registered is not None,
            "restarts": self.restarts,
        }

    async def run(self, first: asyncio.Future[None]) -> None:
        """Dial, register, serve; and again. Connection 0 goes first, for it shows whether the token is good."""
        if self.index:
            await asyncio.shield(first)
            await asyncio.sleep(_APART_SECONDS * (self.index - 1))
        while True:
            lasted = 0.0
            wait: float | None = None
            try:
                begin = await self._connect()
                self._connector.register_success += 1
                if not first.done():
                    first.set_result(None)
                await self._lost.wait()
                lasted = time.monotonic() - begin
                log.warning("Connection %d to %s is lost: %s", self.index, self.address, self._reason)
            except _Unregistered as error:
                self._let_go()
                wait = self._heed(error.refusal)
            except (OSError, RegistrationError, TimeoutError) as error:
                self._count_failure(type(error).__name__)
                what = str(error) or "no answer in time"
                log.warning("Connection %d: %s: %s", self.index, self.address or "no edge", what)
            self._let_go()
            self.restarts += 1
            self._failures = 0 if lasted >= _STABLE_SECONDS else self._failures + 1
            if wait is None:
                wait = random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**self._failures))
            await asyncio.sleep(wait)

    def _let_go(self) -> None:
        self.registered = None
        if self.session is not None:
            self.session.close("it is lost")
            self.session = None

    def unregister(self) -> None:
        """Ask the edge for no more streams."""
        if self._control is not None:
            self._control.unregister()

    async def drained(self) -> None:
        """Wait until nothing is open, or the edge has closed the connection."""
        while self.session is not None and not self.session.is_closing:
            if self._control is None or (self._control.is_unregistered and self.session.stream_count <= 1):
                return
            await asyncio.sleep(0.02)

    async def _connect(self) -> float:
        """Give when it was registered."""
        connector = self._connector
        self._lost.clear()
        self._control = None
        others = [slot.address for slot in connector.slots if slot is not self and slot.session is not None]
        edge = await connector.resolve([*others, self._avoid])
        self.address = self._avoid = f"{edge.address}:{edge.port}"
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()

        def opened(stream: Stream, headers: Headers) -> None:
            if kind_of(dict(headers)) is Kind.CONTROL and self._control is None:
                self._control = _Control(stream, self._registration(stream), answer, connector.calls)
            else:
                connector.streams.opened(stream, headers)

        def made(session: Session) -> None:
            self.session = session
            if problem := connector.trust.problem(session.transport.get_extra_info("ssl_object")):
                session.abort(problem)  # before it has heard anything

        session = Session(client=False, limits=SessionLimits(), opened=opened, made=made, lost=self._on_lost)
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                await loop.create_connection(
                    lambda: session, edge.address, edge.port, ssl=connector.trust.context,
                    server_hostname=connector.server_name or edge.host,
                )  # fmt: skip
        except ssl.SSLCertVerificationError as error:
            raise OSError(f"its certificate is not trusted: {error.verify_message}") from None
        async with asyncio.timeout(_REGISTER_SECONDS + _DIAL_SECONDS):
            lost = loop.create_task(self._lost.wait())
            done, _ = await asyncio.wait((answer, lost), return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()
        if answer not in done:
            raise RegistrationError(f"the edge closed the connection before it answered ({self._reason})")
        said = answer.result()
        if not isinstance(said, Registered):
            raise _Unregistered(said if isinstance(said, Refused) else Refused("no answer"))
        self.registered = said
        log.info("Connection %d is registered at %s (%s)", self.index, self.address, said.location)
        if self.index == 0 and not said.remotely_managed and self._control is not None:
            self._control.report(connector.local_configuration())
        return time.monotonic()

    def _registration(self, stream: Stream) -> RegistrationClient:
        token = self._connector.token
        local = stream.get_extra_info("sockname")
        address = ipaddress.ip_address(str(local[0]).partition("%")[0]) if local else ipaddress.IPv4Address(0)
        packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
        registration = RegistrationClient()
        registration.register(
            token.account_tag,
            token.secret,
            token.tunnel_id.bytes,
            self.index,
            Options(
                client_id=self._connector.client_id.bytes,
                features=self._connector.features,
                version=f"lockgate/{__version__}",
                arch=f"{platform.system().lower()}_{platform.machine()}",
                origin_local_ip=packed,
                previous_attempts=min(self._failures, 255),
            ),
        )
        return registration

    def _on_lost(self, _: Session, reason: str) -> None:
        self._reason = reason
        self.registered = None
        self._lost.set()

    def _count_failure(self, error: str) -> None:
        fails = self._connector.register_fail
        fails[error] = fails.get(error, 0) + 1

    def _heed(self, refusal: Refused) -> float | None:
        """How long to wait after this refusal, None for the back-off; TokenRefused where waiting is of no use."""
        self._count_failure(refusal.cause.partition(":")[0] or "refused")
        if refusal.cause == ALREADY_CONNECTED:
            log.info("Connection %d: %s has us already; another edge is tried", self.index, self.address)
            return None
        if not refusal.should_retry:
            raise TokenRefused(
                f"the edge {self.address} refuses this tunnel: {refusal.cause}",
                key="token",
                accepted="a token that `lockgate edge tunnel token NAME` or the vendor's dashboard shows now",
            )
        log.warning("Connection %d: the edge asks us to come again: %s", self.index, refusal.cause)
        return refusal.retry_after or None


class _Unregistered(Exception):
    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.cause)
        self.refusal = refusal


class _Control(StreamProtocol):
    """The control stream of one connection."""

    def __init__(
        self, stream: Stream, registration: RegistrationClient, answer: asyncio.Future[Answer], calls: Calls
    ) -> None:
        """`registration` has been asked to register, and `answer` is to be the answer to that."""
        self.is_unregistered = False
        self._calls = calls
        self._asked = {REGISTER: time.monotonic()}  # by method, what is not answered yet
        self._stream = stream
        self._registration = registration
        self._answer = answer
        stream.set_protocol(self)
        stream.send_headers([(b":status", b"200"), (b"content-type", b"application/octet-stream")])
        self._say()

    def report(self, config: bytes) -> None:
        self._asked[REPORT] = time.monotonic()
        self._registration.update_local_configuration(config)
        self._say()

    def unregister(self) -> None:
        self._asked[UNREGISTER] = time.monotonic()
        self._registration.unregister()
        self._say()

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self._registration.feed(data):
                if isinstance(answer, Unregistered):
                    self._count(UNREGISTER)
                    self.is_unregistered = True
                elif isinstance(answer, Reported):
                    self._count(REPORT, failed=not answer.taken)
                elif not self._answer.done():
                    self._count(REGISTER, failed=isinstance(answer, Refused))
                    self._answer.set_result(answer)
        except RegistrationError as error:
            if not self._answer.done():
                self._answer.set_exception(error)
            else:
                log.warning("The control stream broke: %s", error)
                self._stream.abort()
            return
        self._say()

    def connection_lost(self, exc: Exception | None) -> None:
        for method in list(self._asked):
            self._count(method, failed=True)
        if not self._answer.done():
            self._answer.set_exception(RegistrationError(f"the control stream ended ({exc or 'closed by the edge'})"))
            self._answer.exception()
        self._stream.give_up_session("the control stream ended")

    def _count(self, method: str, *, failed: bool = False) -> None:
        if (asked := self._asked.pop(method, None)) is not None:
            self._calls.count(method, time.monotonic() - asked, failed=failed)

    def _say(self) -> None:
        self._stream.write(bytes(self._registration.output))
        self._registration.output.clear()


def _leaf(group: BaseExceptionGroup[TokenRefused]) -> TokenRefused:
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    assert isinstance(one, TokenRefused)
    return one


def _place(metrics: str) -> str:
    """Say where this process runs without naming it: on this machine, with the port that one process at a time has."""
    machine = _MACHINE_ID.read_text().strip() if _MACHINE_ID.exists() else ""
    return hashlib.sha256(f"{machine}\0{platform.node()}\0{metrics}".encode()).hexdigest()[:16]


class Trust:
    """How edges are trusted: by certificates of authorities, or by the digest of their own certificate."""

    def __init__(self, context: ssl.SSLContext, pin: str = "") -> None:
        """`pin`: SHA-256 of the edge's certificate in hex, which is then all that counts."""
        self.context = context
        self._pin = pin

    def problem(self, tls: ssl.SSLObject | None) -> str:
        """Why an edge is not the one that is wanted, empty if it is."""
        if self._pin:
            certificate = tls.getpeercert(binary_form=True) if tls is not None else None
            if hashlib.sha256(certificate or b"").hexdigest() != self._pin:
                return "its certificate is not the one that the token names"
        return ""


def trust(said: str, ca_file: Path | None) -> Trust:
    """By the file, else by what the token says, else as the system does. Raises ConfigError."""
    pin = said.removeprefix("sha256:") if said.startswith("sha256:") and ca_file is None else ""
    try:
        context = ssl.create_default_context(cafile=ca_file, cadata=said if said and not (pin or ca_file) else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be used: {error}", path=ca_file, accepted="certificates in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pin:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Trust(context, pin)
