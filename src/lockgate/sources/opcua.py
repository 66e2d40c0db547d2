"""Nodes of an OPC UA server: told by it as they change, or asked for in intervals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import OpcuaSourceConfig
from lockgate.config.secrets import first_line_text
from lockgate.sources.opcua_values import message
from lockgate.sources.publisher import Publisher, endpoint_of

log = logging.getLogger(__name__)

_TOGETHER: Final = 100  # nodes in one request: servers have limits, and few tell them before
_SESSION_SECONDS: Final = 60.0  # a server has few sessions, and one that was left must not keep its place for long
_LOOK_AGAIN_SECONDS: Final = 30.0  # for nodes that were not there
_LEAVE_SECONDS: Final = 1.0
_SERVER: Final = "server"  # what the state topic below the source's calls it
_DOUBLINGS: Final = 30


class Reading(NamedTuple):
    """One value that was read, for people."""

    name: str
    node_id: str
    message: dict[str, object]


class OpcuaSource:
    """A source of type opcua."""

    def __init__(self, config: OpcuaSourceConfig) -> None:
        """Raises ConfigError where asyncua is missing or a file of ours cannot be read."""
        section = f"sources.{config.name}"
        self._asyncua = library("asyncua", "opcua", section)
        self._ua = library("asyncua.ua", "opcua", section)
        self.faults: tuple[type[Exception], ...] = (self._ua.UaError, OSError, TimeoutError)
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # we say what is wrong, once
        self._config = config
        self._password = first_line_text(config.user_password_file) if config.user_password_file is not None else None
        for key in ("certfile", "keyfile", "server_certfile"):
            path = getattr(config, key)
            if path is not None:
                try:
                    path.open("rb").close()
                except OSError as error:
                    raise ConfigError(f"{path}: cannot be read: {error.strerror}", key=f"{section}.{key}") from None
        endpoint_of(config)
        self._publisher = Publisher(config)
        self._online: bool | None = None
        self._problem: str | None = None
        self._missing: dict[str, str] = {}  # nodes that the server does not have, with its words
        self._bad: dict[str, str] = {}  # nodes whose last value was bad
        self._values = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Read until cancelled, with server and broker there or not.

        Raises ConfigError where the broker refuses us for good, or a certificate of ours cannot be used.
        """
        await self._publisher.serve(lambda: self._work(ready))

    def reread(self) -> None:
        """Nobody comes to us."""

    def status(self) -> Mapping[str, object]:
        said = {**self._publisher.status(), "online": self._online, "values": self._values}
        if self._problem is not None:
            said["problem"] = self._problem
        if self._missing:
            said["missing"] = {name: {"problem": problem} for name, problem in self._missing.items()}
        if self._bad:
            said["bad"] = dict(self._bad)
        return said

    async def read_once(self) -> list[Reading]:
        """Read every node once. Raises what asyncua raises, OSError and TimeoutError."""
        async with self._connected() as (client, _):
            nodes = await self._nodes(client)
            found: list[Reading] = []
            for (name, node_id), node in zip(self._config.nodes, nodes, strict=True):
                if node is None:
                    said: dict[str, object] = {"value": None, "status": self._missing[name], "time": _now_ms()}
                else:
                    (data,) = await client.read_attributes([node])
                    said = message(data, _now_ms())
                found.append(Reading(name, node_id, said))
            return found

    async def browse(self, node_id: str | None) -> list[tuple[str, str, str]]:
        """Give NodeId, class and name of what lies below a node; None: below Objects."""
        async with self._connected() as (client, _):
            node = client.get_node(node_id) if node_id is not None else client.nodes.objects
            await node.read_node_class()  # which fails for one that is not there
            found = await node.get_children_descriptions()
            return [(one.NodeId.to_string(), one.NodeClass.name, one.DisplayName.Text or "") for one in found]

    # --- connections -----------------------------------------------------------------------------------------------

    async def _work(self, ready: Callable[[], None]) -> None:
        log.info("source %s reads %d nodes of %s", self._config.name, len(self._config.nodes), self._config.endpoint)
        ready()
        failures = 0
        while True:
            try:
                async with self._connected() as (client, lost):
                    failures = 0
                    await self._serve(client, lost)
            except ConfigError:
                raise
            except self.faults as error:
                self._is_offline(_text(error))
            except Exception as error:  # what a server sends may be anything, and asyncua does not foresee all of it
                if self._problem != _text(error):
                    log.exception(
                        "source %s: the answer of %s is not understood", self._config.name, self._config.endpoint
                    )
                self._is_offline(_text(error))
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # wait_for of Python 3.11, in asyncua, may swallow it
                raise asyncio.CancelledError
            failures = min(failures + 1, _DOUBLINGS)
            longest = min(self._config.retry_max_seconds, self._config.retry_min_seconds * 2.0 ** (failures - 1))
            await asyncio.sleep(random.uniform(longest / 2, longest))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, asyncio.Future[Exception]]]:
        """Give a client with a session, and a future that is told when it is lost."""
        config = self._config
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        client = self._asyncua.Client(
            config.endpoint, timeout=config.timeout_seconds, watchdog_intervall=config.timeout_seconds
        )
        client.name = client.description = "lockgate"
        client.application_uri = config.application_uri
        client.session_timeout = int(_SESSION_SECONDS * 1000)

        async def told(error: Exception) -> None:
            if not lost.done():
                lost.set_result(error)

        client.connection_lost_callback = told
        if config.user is not None:
            client.set_user(config.user)
            client.set_password(self._password or "")
        async with asyncio.timeout(4 * config.timeout_seconds):  # it asks several times, each with its own
            await self._secure(client)
            await client.connect()
        try:
            yield client, lost
        finally:
            with contextlib.suppress(*self.faults):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await client.disconnect()

    async def _secure(self, client: Any) -> None:
        config = self._config
        if config.security_policy == "None":
            return
        policies = library("asyncua.crypto.security_policies", "opcua", f"sources.{config.name}")
        crypto = library("asyncua.crypto.uacrypto", "opcua", f"sources.{config.name}")
        files = {}
        for key, load in (
            ("certfile", crypto.load_certificate),
            ("keyfile", crypto.load_private_key),
            ("server_certfile", crypto.load_certificate),
        ):
            path = getattr(config, key)
            if path is not None:
                content = path.read_bytes()
                form = "pem" if b"-----BEGIN" in content else "der"
                files[key] = crypto.CertProperties(content, extension=form)
                try:
                    await load(content, extension=form)
                except (ValueError, TypeError) as error:
                    raise ConfigError(
                        f"cannot be used: {error}", key=f"sources.{config.name}.{key}", path=path
                    ) from None
        await client.set_security(
            getattr(policies, f"SecurityPolicy{config.security_policy}"),
            certificate=files["certfile"],
            private_key=files["keyfile"],
            server_certificate=files.get("server_certfile"),
            mode=getattr(self._ua.MessageSecurityMode, config.security_mode),
        )

    async def _nodes(self, client: Any) -> list[Any]:
        """Give the nodes; None for one whose namespace the server does not have."""
        found: list[Any] = []
        namespaces = await client.get_namespace_array() if any("nsu=" in node for _, node in self._config.nodes) else []
        for name, text in self._config.nodes:
            if text.startswith("nsu="):
                uri, _, rest = text.removeprefix("nsu=").partition(";")
                if uri not in namespaces:
                    self._is_missing(name, f"the server has no namespace {uri}")
                    found.append(None)
                    continue
                text = f"ns={namespaces.index(uri)};{rest}"
            found.append(client.get_node(text))
        return found

    # --- values ----------------------------------------------------------------------------------------------------

    async def _serve(self, client: Any, lost: asyncio.Future[Exception]) -> None:
        """Publish values until the connection is lost, which is raised."""
        nodes = [
            (name, node)
            for (name, _), node in zip(self._config.nodes, await self._nodes(client), strict=True)
            if node is not None
        ]
        if self._config.mode == "poll":
            self._is_online()
            await self._poll(client, nodes, lost)
        else:
            await self._subscribe(client, nodes, lost)
        error = lost.result()
        raise ConnectionError(_text(error))

    async def _poll(self, client: Any, nodes: Sequence[tuple[str, Any]], lost: asyncio.Future[Exception]) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while not lost.done():
            for start in range(0, len(nodes), _TOGETHER):
                some = nodes[start : start + _TOGETHER]
                for (name, _), data in zip(some, await client.read_attributes([node for _, node in some]), strict=True):
                    self._publish(name, data)
            interval = self._config.interval_seconds
            due += interval * max(1, -((due - now()) // interval))
            await asyncio.wait([lost], timeout=due - now())

    async def _subscribe(self, client: Any, nodes: Sequence[tuple[str, Any]], lost: asyncio.Future[Exception]) -> None:
        names = {node.nodeid: name for name, node in nodes}
        publish = self._publish

        class Handler:
            def datachange_notification(self, node: Any, _value: object, data: Any) -> None:
                publish(names[node.nodeid], data.monitored_item.Value)

            def status_change_notification(self, status: Any) -> None:
                if not lost.done():
                    lost.set_result(ConnectionError(f"the server ended the subscription: {status.Status.name}"))

        config = self._config
        subscription = await client.create_subscription(config.interval_seconds * 1000, Handler())
        sampling = config.sampling_seconds if config.sampling_seconds is not None else config.interval_seconds
        wanted = list(nodes)
        self._is_online()
        while not lost.done():
            refused: list[tuple[str, Any]] = []
            for start in range(0, len(wanted), _TOGETHER):
                some = wanted[start : start + _TOGETHER]
                results = await subscription.subscribe_data_change(
                    [node for _, node in some], queuesize=config.queue_size, sampling_interval=sampling * 1000
                )
                for (name, node), result in zip(some, results, strict=True):
                    if isinstance(result, self._ua.StatusCode):
                        refused.append((name, node))
                        self._is_missing(name, result.name)
            wanted = refused
            await asyncio.wait([lost], timeout=_LOOK_AGAIN_SECONDS if wanted else None)

    def _publish(self, name: str, data: Any) -> None:
        said = message(data, _now_ms())
        self._values += 1
        self._missing.pop(name, None)
        status = str(said["status"])
        if data.StatusCode is not None and data.StatusCode.is_bad():
            if name not in self._bad:
                log.warning("source %s: the value of %s is bad: %s", self._config.name, name, status)
            self._bad[name] = status
        elif self._bad.pop(name, None) is not None:
            log.info("source %s: the value of %s is good again", self._config.name, name)
        self._offer(name, said)

    def _offer(self, name: str, said: dict[str, object]) -> None:
        topic = self._config.topic.fill({"source": self._config.name, "node": name})
        self._publisher.offer(topic, orjson.dumps(said, option=orjson.OPT_NON_STR_KEYS, default=str))

    def _is_missing(self, name: str, problem: str) -> None:
        if self._missing.get(name) != problem:
            log.warning("source %s: node %s cannot be read: %s", self._config.name, name, problem)
            self._offer(name, {"value": None, "status": problem, "time": _now_ms()})
        self._missing[name] = problem

    def _is_online(self) -> None:
        if self._online is not True:
            log.info("source %s: %s answers", self._config.name, self._config.endpoint)
        self._online, self._problem = True, None
        self._publisher.state(True, _SERVER)

    def _is_offline(self, problem: str) -> None:
        if self._online is not False:
            log.warning("source %s: %s is away: %s", self._config.name, self._config.endpoint, problem)
        self._online, self._problem = False, problem
        self._publisher.state(False, _SERVER)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
