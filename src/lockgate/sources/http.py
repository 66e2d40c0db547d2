"""Messages pushed over HTTP. A request is answered when the broker has acknowledged all it brought."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import orjson
from aiohttp import web

from lockgate.client import ClientError, NotConnected, PublishRefused
from lockgate.config.errors import ConfigError
from lockgate.config.model import HttpClientConfig, HttpRouteConfig, HttpSourceConfig
from lockgate.sources import routes
from lockgate.sources.bodies import ACCEPTED, UnknownType, split
from lockgate.sources.http_clients import Clients
from lockgate.sources.publisher import Publisher, endpoint_of, is_for_good
from lockgate.sources.repeats import Attempt, OtherRequest, Repeats

log = logging.getLogger(__name__)

HEALTH: Final = "/health"
_RETRY_AFTER_SECONDS: Final = 2
_LINGER_SECONDS: Final = 1.0  # what is left of a body that was refused is read so long
_STOP_SECONDS: Final = 0.5  # for requests that are under way
_KEY_CHARACTERS: Final = 255  # of an Idempotency-Key

Message = tuple[str, bytes, bool]  # topic, payload, retain


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        super().__init__(problem)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(self) -> web.Response:
        body = orjson.dumps({"error": str(self)})
        return web.Response(status=self.status, body=body, content_type="application/json", headers=self.headers)


def _later(problem: str) -> Refused:
    return Refused(503, problem, Retry_After=str(_RETRY_AFTER_SECONDS))


class HttpSource:
    """A source of type http."""

    def __init__(self, config: HttpSourceConfig) -> None:
        """Raises ConfigError for a secret or a certificate that cannot be used."""
        self._config = config
        self._clients = Clients(config.clients)
        self._context = _context(config)
        endpoint_of(config)
        self._publisher = Publisher(config)
        self._repeats = Repeats(config.idempotency_seconds, config.idempotency_keys)
        self._busy = 0  # requests that are read or wait for the broker
        self._tasks: set[asyncio.Task[None]] = set()  # that publish for an Idempotency-Key
        self._left_alone: set[asyncio.Task[None]] = set()  # those of them that nobody may wait for any more
        self._requests = 0
        self._malformed = 0  # requests that are no HTTP
        self._unauthorised = 0
        self._repeated = 0
        self._answers: dict[int, int] = {}  # by status

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen until cancelled; `ready` is called when the port is open, with the broker there or not.

        Raises OSError for a port that cannot be had, ConfigError where the broker refuses us for good.
        """
        await self._publisher.serve(lambda: self._listen(ready))

    def reread(self) -> None:
        """Read the secrets again. Raises ConfigError; then those before stay."""
        self._clients = Clients(self._config.clients)

    def status(self) -> Mapping[str, object]:
        return {
            **self._publisher.status(),
            "requests": self._requests,
            "malformed": self._malformed,
            "unauthorised": self._unauthorised,
            "repeated": self._repeated,
            "answers": {str(status): count for status, count in sorted(self._answers.items())},
        }

    async def _listen(self, ready: Callable[[], None]) -> None:
        config = self._config
        host, port = config.listen
        server = _Server(self._answer, config.max_connections, config.read_timeout_seconds, self._peers_log())
        try:
            listener = await asyncio.get_running_loop().create_server(
                server,
                host,
                port,
                ssl=self._context,
                ssl_handshake_timeout=config.read_timeout_seconds if self._context is not None else None,
            )
        except OSError as error:
            error.port = port  # type: ignore[attr-defined]
            raise
        try:
            log.info("source %s listens on %s port %d", config.name, host, port)
            ready()
            await asyncio.get_running_loop().create_future()
        finally:
            listener.close()
            server.pre_shutdown()
            await server.shutdown(_STOP_SECONDS)
            for task in self._tasks:
                task.cancel()

    def _peers_log(self) -> logging.Logger:
        """A logger for aiohttp, which tells what it cannot read with a traceback: here the mistake is the peer's."""
        peers = logging.getLogger(f"{__name__}.{self._config.name}")

        def count(record: logging.LogRecord) -> bool:
            if record.levelno >= logging.ERROR:
                self._malformed += 1
                if self._malformed == 1:
                    log.warning("source %s: a request is no HTTP; such are counted from now on", self._config.name)
            return False

        peers.filters[:] = [count]
        return peers

    # --- one request -----------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._requests += 1
        try:
            answer = await self._health(request) or await self._take(request)
        except Refused as refused:
            answer = refused.answer()
        except Exception:  # ours; the connection goes on
            log.exception("source %s: a request failed", self._config.name)
            answer = Refused(500, "an error of the gateway, see its log").answer()
        self._answers[answer.status] = self._answers.get(answer.status, 0) + 1
        return answer

    async def _health(self, request: web.BaseRequest) -> web.Response | None:
        if request.method not in ("GET", "HEAD") or request.raw_path.partition("?")[0] != HEALTH:
            return None
        well = self._publisher.connected
        body = orjson.dumps({"status": "ok" if well else "the broker is away"})
        return web.Response(status=200 if well else 503, body=body, content_type="application/json")

    async def _take(self, request: web.BaseRequest) -> web.Response:
        client = self._who(request)
        route, variables = self._route(request, client)
        if self._busy + len(self._left_alone) >= self._config.max_requests:
            raise _later("too many requests at once")
        self._busy += 1
        try:
            body = await self._read(request)
            messages = self._messages(request, route, variables, body)
            key = request.headers.get("Idempotency-Key")
            if key is None:
                await self._publish(messages, set(range(len(messages))))
            else:
                await self._publish_once((client.name if client else "", key), messages)
        finally:
            self._busy -= 1
        return web.Response(status=204)

    def _who(self, request: web.BaseRequest) -> HttpClientConfig | None:
        client = self._clients.who(request.headers.get("Authorization", ""))
        if client is None and not self._config.allow_anonymous:
            self._unauthorised += 1
            if self._unauthorised == 1:
                log.warning("source %s: a request from %s is not authorised", self._config.name, request.remote)
            raise Refused(401, "not authorised", WWW_Authenticate='Bearer, Basic realm="lockgate"')
        return client

    def _route(
        self, request: web.BaseRequest, client: HttpClientConfig | None
    ) -> tuple[HttpRouteConfig, dict[str, str]]:
        try:
            found = routes.find(self._config.routes, request.raw_path.partition("?")[0])
        except routes.NoTopic as error:
            raise Refused(400, str(error)) from None
        if not found:
            raise Refused(404, "no route has this path")
        for route, variables in found:
            if request.method in route.methods:
                if client is not None and client.routes and route.name not in client.routes:
                    raise Refused(403, f"{client.name} may not use this route")
                return route, variables
        methods = sorted({method for route, _ in found for method in route.methods})
        raise Refused(405, f"this path takes {', '.join(methods)}", Allow=", ".join(methods))

    async def _read(self, request: web.BaseRequest) -> bytes:
        limit = self._config.max_body_bytes
        too_large = Refused(413, f"a body has at most {limit} bytes", Connection="close")
        if request.content_length is not None and request.content_length > limit:
            raise too_large
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.read_timeout_seconds):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise Refused(408, "the body did not come in time", Connection="close") from None
        except web.HTTPException:
            raise
        except (web.RequestPayloadError, ConnectionError) as error:
            raise Refused(400, f"the body cannot be read: {error}", Connection="close") from None
        return bytes(body)

    def _messages(
        self, request: web.BaseRequest, route: HttpRouteConfig, variables: Mapping[str, str], body: bytes
    ) -> list[Message]:
        said = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        try:
            pushed = split(said, body)
        except UnknownType:
            raise Refused(
                415, f"{said} is not read here; try {', '.join(ACCEPTED)}", Accept=", ".join(ACCEPTED)
            ) from None
        except ValueError as error:
            raise Refused(400, f"no JSON: {error}") from None
        if not pushed:
            raise Refused(400, "no message")
        if len(pushed) > self._config.max_messages:
            raise Refused(413, f"a request has at most {self._config.max_messages} messages")
        made: list[Message] = []
        for number, one in enumerate(pushed, start=1):
            try:
                made.append((routes.topic_of(route, variables, one.document), one.payload, route.retain))
            except routes.NoTopic as error:
                raise Refused(422, f"message {number}: {error}" if len(pushed) > 1 else str(error)) from None
        return made

    # --- to the broker ---------------------------------------------------------------------------------------------

    async def _publish(self, messages: Sequence[Message], left: set[int]) -> None:
        """Publish the messages that are `left`, and take each from it that the broker has. Raises Refused."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                await self._publish_all(messages, left)
        except TimeoutError:
            raise _later(f"the broker did not acknowledge within {self._config.timeout_seconds:g} seconds") from None

    async def _publish_once(self, key: tuple[str, str], messages: Sequence[Message]) -> None:
        """Publish what is not on its way yet, or at the broker already, under this key."""
        if not 0 < len(key[1]) <= _KEY_CHARACTERS:
            raise Refused(400, f"an Idempotency-Key has 1 to {_KEY_CHARACTERS} characters")
        digest = hashlib.sha256(repr(messages).encode()).digest()
        try:
            attempt, again = self._repeats.attempt(key, digest, len(messages), asyncio.get_running_loop().time())
        except OtherRequest:
            raise Refused(422, "this Idempotency-Key was that of another request") from None
        self._repeated += again
        if not attempt.left:
            return
        if attempt.task is None or attempt.task.done():
            attempt.task = self._begin(attempt, messages)
        try:
            await asyncio.wait_for(asyncio.shield(attempt.task), self._config.timeout_seconds)
        except TimeoutError:  # it goes on: who asks again gets the answer
            self._left_alone.add(attempt.task)
            raise _later(f"the broker did not acknowledge within {self._config.timeout_seconds:g} seconds") from None

    def _begin(self, attempt: Attempt, messages: Sequence[Message]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._publish_all(messages, attempt.left))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._left_alone.discard(task)
        if not task.cancelled():
            task.exception()  # told to who waited; nobody else needs to hear of it

    async def _publish_all(self, messages: Sequence[Message], left: set[int]) -> None:
        numbers = sorted(left)
        outcomes = await asyncio.gather(
            *(self._publisher.publish(*messages[number]) for number in numbers), return_exceptions=True
        )
        first: BaseException | None = None
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome is None:
                left.discard(number)
            elif first is None:
                first = outcome
        if isinstance(first, NotConnected):
            raise _later(str(first))
        if isinstance(first, PublishRefused):
            raise Refused(403, f"the broker refuses it: {first}") if is_for_good(first) else _later(str(first))
        if isinstance(first, ValueError):
            raise Refused(422, str(first))
        if isinstance(first, ClientError):
            raise _later(str(first))
        if first is not None:
            raise first


class _Server(web.Server):
    """Closes connections beyond a number at once; one that asks nothing whole in time is closed too."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        maximum: int,
        read_timeout_seconds: float,
        peers_log: logging.Logger,
    ) -> None:
        super().__init__(
            handler,
            logger=peers_log,
            access_log=None,
            keepalive_timeout=read_timeout_seconds,
            lingering_time=_LINGER_SECONDS,
            handler_cancellation=False,  # a message on its way is told of in the figures, with somebody there or not
        )
        self._maximum = maximum

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self._maximum:
            transport.abort()


def _context(config: HttpSourceConfig) -> ssl.SSLContext | None:
    if config.certfile is None or config.keyfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for key, path in (("certfile", config.certfile), ("keyfile", config.keyfile), ("cafile", config.cafile)):
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                problem = f"{path}: cannot be read: {error.strerror}"
                raise ConfigError(problem, key=f"sources.{config.name}.{key}") from None
    try:
        context.load_cert_chain(config.certfile, config.keyfile, lambda: "")  # nobody is asked for a passphrase
    except ssl.SSLError as error:
        problem = f"cannot be used with {config.keyfile}: {error.reason or error}"
        raise ConfigError(problem, path=config.certfile, accepted="a certificate and its key, in PEM") from None
    if config.cafile is not None:
        try:
            context.load_verify_locations(config.cafile)
        except ssl.SSLError:
            raise ConfigError("no certificates in PEM", path=config.cafile) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
