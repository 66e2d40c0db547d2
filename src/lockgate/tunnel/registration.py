"""The control stream: how a connector registers a connection at an edge, and takes it back.

Ordinary two-party Cap'n Proto RPC, of which one interface with three methods is used: the connector calls, the edge
answers. Both ends are here, without a socket: bytes in, events out, bytes to send in `output`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final

from lockgate.tunnel.capnp import Builder, CapnpError, Framer, Struct

_INTERFACE: Final = 0xF71695EC7FE85497  # RegistrationServer
_REGISTER, _UNREGISTER, _UPDATE_LOCAL_CONFIGURATION = 0, 1, 2

_UNIMPLEMENTED, _ABORT, _CALL, _RETURN, _FINISH, _RELEASE, _BOOTSTRAP = 0, 1, 2, 3, 4, 6, 8  # tags of a Message
_RESULTS, _EXCEPTION = 0, 1  # tags of a Return
_PROMISED: Final = 1  # tag of a MessageTarget
_SENDER_HOSTED: Final = 1
_KEEPS_PARAMETERS_AND_NEEDS_NO_FINISH: Final = 3
_FAILED, _METHOD_UNKNOWN = 0, 3  # types of an Exception
_MAX_QUESTIONS: Final = 64

ALREADY_CONNECTED: Final = "EDUPCONN"  # as a cause: this connector is at this edge already; it tries another one


@dataclass(frozen=True, slots=True)
class Options:
    """What a connector says of itself when it registers a connection."""

    client_id: bytes  # 16, the same for all connections of a process
    features: tuple[str, ...] = ()
    version: str = ""
    arch: str = ""  # such as "linux_amd64"
    origin_local_ip: bytes = b""  # 16, IPv4 as ::ffff:a.b.c.d
    replace_existing: bool = False
    previous_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Register:
    """A call: take this connection. Answer it by `RegistrationServer.accept` or `refuse`."""

    question: int
    account_tag: str
    secret: bytes = field(repr=False)
    tunnel_id: bytes  # 16
    index: int  # of the connection within its connector
    options: Options


@dataclass(frozen=True, slots=True)
class Unregister:
    """A call: open no more streams here. Answer it by `RegistrationServer.done`."""

    question: int


@dataclass(frozen=True, slots=True)
class LocalConfiguration:
    """A call: this is what the connector serves (JSON). Answer it by `RegistrationServer.done`."""

    question: int
    config: bytes


Call = Register | Unregister | LocalConfiguration


@dataclass(frozen=True, slots=True)
class Registered:
    """The edge took the connection."""

    connection_id: uuid.UUID
    location: str
    remotely_managed: bool  # the edge pushes the ingress rules


@dataclass(frozen=True, slots=True)
class Refused:
    """The edge did not take the connection, and closes it."""

    cause: str
    should_retry: bool = False
    retry_after: float = 0.0  # seconds


@dataclass(frozen=True, slots=True)
class Unregistered:
    """The edge opens no more streams."""


@dataclass(frozen=True, slots=True)
class Reported:
    """The edge knows what is served here, if it wants to."""

    taken: bool


Answer = Registered | Refused | Unregistered | Reported


class RegistrationError(Exception):
    """The other end does not speak this protocol, or ended it."""


class RegistrationClient:
    """The connector's end."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._asked: dict[int, int] = {}  # question: method
        self._next_question = 1
        self.output = bytearray()

    def register(self, account_tag: str, secret: bytes, tunnel_id: bytes, index: int, options: Options) -> None:
        """Ask for the registration; the answer is Registered or Refused."""
        message = Builder.root(1, 1)
        message.u16(0, _BOOTSTRAP)
        message.struct(0, 1, 1)  # question 0
        self.output += message.message()
        message, parameters = self._call(_REGISTER, 1, 3)
        auth = parameters.struct(0, 0, 2)
        auth.text(0, account_tag)
        auth.data(1, secret)
        parameters.data(1, tunnel_id)
        parameters.u8(0, index)
        chosen = parameters.struct(2, 1, 2)
        chosen.bit(0, options.replace_existing)
        chosen.u8(2, min(options.previous_attempts, 255))
        client = chosen.struct(0, 0, 4)
        client.data(0, options.client_id)
        client.texts(1, options.features)
        client.text(2, options.version)
        client.text(3, options.arch)
        chosen.data(1, options.origin_local_ip)
        self.output += message.message()

    def unregister(self) -> None:
        """Ask for no more streams; the answer is Unregistered."""
        message, _ = self._call(_UNREGISTER, 0, 0)
        self.output += message.message()

    def update_local_configuration(self, config: bytes) -> None:
        """Say what is served here, as JSON; the answer is Reported."""
        message, parameters = self._call(_UPDATE_LOCAL_CONFIGURATION, 0, 1)
        parameters.data(0, config)
        self.output += message.message()

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are whole by now; RegistrationError for anything else than answers."""
        try:
            answers = [self._answer(Struct.root(segments)) for segments in self._framer.feed(data)]
        except CapnpError as error:
            raise RegistrationError(str(error)) from None
        return [answer for answer in answers if answer is not None]

    def _call(self, method: int, data_words: int, pointers: int) -> tuple[Builder, Builder]:
        question = self._next_question
        self._next_question += 1
        self._asked[question] = method
        message = Builder.root(1, 1)
        message.u16(0, _CALL)
        call = message.struct(0, 3, 3)
        call.u32(0, question)
        call.u16(4, method)
        call.u64(8, _INTERFACE)
        target = call.struct(0, 1, 1)
        target.u16(4, _PROMISED)
        target.struct(0, 1, 1)  # what question 0, the bootstrap, will have answered
        return message, call.struct(1, 0, 2).struct(0, data_words, pointers)

    def _answer(self, message: Struct) -> Answer | None:
        kind, body = message.u16(0), message.struct(0)
        if kind == _ABORT:
            raise RegistrationError(f"the edge ended the registration ({body.text(0) if body else 'no reason'})")
        if kind != _RETURN or body is None:
            return None
        question = body.u32(0)
        finish = Builder.root(1, 1)
        finish.u16(0, _FINISH)
        finish.struct(0, 1, 0).u32(0, question)
        self.output += finish.message()
        if question == 0:
            return None
        method = self._asked.pop(question, None)
        if method is None:
            raise RegistrationError(f"the edge answers question {question}, which was not asked")
        if body.u16(6) != _RESULTS:
            if method == _UPDATE_LOCAL_CONFIGURATION:
                return Reported(taken=False)  # an edge need not want it
            reason = body.struct(0)
            raise RegistrationError(f"the edge failed ({reason.text(0) if reason else 'no reason'})")
        if method == _UNREGISTER:
            return Unregistered()
        return _outcome(body) if method == _REGISTER else Reported(taken=True)


def _outcome(body: Struct) -> Answer:
    payload = body.struct(0)
    results = payload.struct(0) if payload else None
    response = results.struct(0) if results else None
    outcome = response.struct(0) if response else None
    if response is None or outcome is None:
        raise RegistrationError("the edge answered a registration with nothing")
    if response.u16(0) == 0:
        return Refused(outcome.text(0), outcome.bit(64), max(outcome.i64(0), 0) / 1e9)
    identifier = outcome.data(0)
    if len(identifier) != 16:
        raise RegistrationError(f"the edge names the connection by {len(identifier)} bytes, not by 16")
    return Registered(uuid.UUID(bytes=identifier), outcome.text(1), outcome.bit(0))


class RegistrationServer:
    """The edge's end."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._open: set[int] = set()  # questions not yet answered
        self.output = bytearray()

    def feed(self, data: bytes) -> list[Call]:
        """The calls that are whole by now; RegistrationError for what is none."""
        try:
            calls = [self._read(Struct.root(segments)) for segments in self._framer.feed(data)]
        except CapnpError as error:
            raise RegistrationError(str(error)) from None
        return [call for call in calls if call is not None]

    def accept(self, call: Register, connection_id: uuid.UUID, location: str, *, remotely_managed: bool) -> None:
        """Take the connection; `location` shows in the connector's log and figures."""
        message, results = self._results(call.question, 0, 1)
        response = results.struct(0, 1, 1)
        response.u16(0, 1)
        details = response.struct(0, 1, 2)
        details.bit(0, remotely_managed)
        details.data(0, connection_id.bytes)
        details.text(1, location)
        self.output += message.message()

    def refuse(self, call: Register, refusal: Refused) -> None:
        """Do not take it. The edge closes the connection when this has been sent: cloudflared does not."""
        message, results = self._results(call.question, 0, 1)
        error = results.struct(0, 1, 1).struct(0, 2, 1)
        error.i64(0, round(refusal.retry_after * 1e9))
        error.bit(64, refusal.should_retry)
        error.text(0, refusal.cause)
        self.output += message.message()

    def done(self, call: Unregister | LocalConfiguration) -> None:
        """Answer with nothing."""
        message, _ = self._results(call.question, 0, 0)
        self.output += message.message()

    def _read(self, message: Struct) -> Call | None:
        kind, body = message.u16(0), message.struct(0)
        if kind == _ABORT:
            raise RegistrationError(f"the connector ended the registration ({body.text(0) if body else 'no reason'})")
        if kind in (_FINISH, _RELEASE, _UNIMPLEMENTED):
            return None
        if body is None or kind not in (_BOOTSTRAP, _CALL):
            self._say_unimplemented(kind)
            return None
        question = body.u32(0)
        if question in self._open or len(self._open) >= _MAX_QUESTIONS:
            raise RegistrationError(f"the connector asks question {question} while it is open")
        if kind == _BOOTSTRAP:
            self._bootstrap(question)
            return None
        return self._read_call(question, body)

    def _bootstrap(self, question: int) -> None:
        message = Builder.root(1, 1)
        message.u16(0, _RETURN)
        answer = message.struct(0, 2, 1)
        answer.u32(0, question)
        payload = answer.struct(0, 0, 2)
        payload.capability(0, 0)
        payload.composite(1, 1, 1).u16(0, _SENDER_HOSTED)
        self.output += message.message()

    def _read_call(self, question: int, body: Struct) -> Call | None:
        method = body.u16(4)
        payload = body.struct(1)
        parameters = payload.struct(0) if payload else None
        if body.u64(8) != _INTERFACE or method > _UPDATE_LOCAL_CONFIGURATION:
            self._fail(question, _METHOD_UNKNOWN, f"interface {body.u64(8):#x} has no method {method} here")
            return None
        self._open.add(question)
        if method == _UNREGISTER:
            return Unregister(question)
        if method == _UPDATE_LOCAL_CONFIGURATION:
            return LocalConfiguration(question, parameters.data(0) if parameters else b"")
        auth = parameters.struct(0) if parameters else None
        options = parameters.struct(2) if parameters else None
        client = options.struct(0) if options else None
        if parameters is None or auth is None or options is None or client is None:
            raise RegistrationError("a registration without credentials or options")
        if len(parameters.data(1)) != 16 or len(client.data(0)) != 16:
            raise RegistrationError("a registration whose tunnel or client id does not have 16 bytes")
        return Register(
            question=question,
            account_tag=auth.text(0),
            secret=auth.data(1),
            tunnel_id=parameters.data(1),
            index=parameters.u8(0),
            options=Options(
                client_id=client.data(0),
                features=tuple(client.texts(1)),
                version=client.text(2),
                arch=client.text(3),
                origin_local_ip=options.data(1),
                replace_existing=options.bit(0),
                previous_attempts=options.u8(2),
            ),
        )

    def _results(self, question: int, data_words: int, pointers: int) -> tuple[Builder, Builder]:
        self._open.discard(question)
        message, answer = self._return(question, _RESULTS)
        return message, answer.struct(0, 0, 2).struct(0, data_words, pointers)

    def _fail(self, question: int, kind: int, reason: str) -> None:
        message, answer = self._return(question, _EXCEPTION)
        exception = answer.struct(0, 1, 1)
        exception.u16(4, kind)
        exception.text(0, reason)
        self.output += message.message()

    def _return(self, question: int, kind: int) -> tuple[Builder, Builder]:
        """Begin the answer to a call."""
        message = Builder.root(1, 1)
        message.u16(0, _RETURN)
        answer = message.struct(0, 2, 1)
        answer.u32(0, question)
        answer.u16(4, _KEEPS_PARAMETERS_AND_NEEDS_NO_FINISH)
        answer.u16(6, kind)
        return message, answer

    def _say_unimplemented(self, kind: int) -> None:
        message = Builder.root(1, 1)
        message.u16(0, _UNIMPLEMENTED)
        message.struct(0, 1, 1).u16(0, kind)
        self.output += message.message()
