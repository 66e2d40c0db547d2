"""The composition root: builds services from the configuration, starts them in order, stops them in reverse.

A service's module is imported when the service is built, so that a process holds only what it runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lockgate import __version__
from lockgate.config.errors import ConfigError
from lockgate.config.model import BridgeConfig, BrokerConfig, Config, ConnectorConfig, EdgeConfig, HttpSinkConfig
from lockgate.telemetry import logs, service_manager
from lockgate.telemetry.health import Answer, StatusServer

if TYPE_CHECKING:
    from lockgate.access.scram import ScramAuthenticator
    from lockgate.broker.ports import StoreAnswers
    from lockgate.net.logins import Access, Methods
    from lockgate.net.service import Bridging, BrokerService, OpenStore

log = logging.getLogger(__name__)

# Read the configuration again, write what could wait, print the subscriptions, open the log files anew
SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN)
STOP_SECONDS = 2.5  # for all services of a process together; whoever started it waits 3 s
# Where a connector dials whose token is the vendor's, and the name that all of these edges answer for
VENDORS_EDGES = ("region1.v2.argotunnel.com:7844", "region2.v2.argotunnel.com:7844")
VENDORS_NAME = "h2.cftunnel.com"
FAILED, MISCONFIGURED = 1, 3  # exit codes, Mosquitto's
_IS_READY, _HAS_ENDED = 0, 255  # what a host's thread tells; between them lie the numbers of signals


class Service(Protocol):
    """One of the gateway's services."""

    @property
    def name(self) -> str: ...

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled, which is a clean stop. Calls `ready` once others may rely on it."""

    def status(self) -> Mapping[str, object]:
        """What it has done so far, for JSON. Called on the loop it runs on."""


@runtime_checkable
class Reloads(Protocol):
    """A service that SIGHUP means something to."""

    async def reload(self, config: Config) -> None:
        """Go on with another configuration; raises ConfigError or OSError, and goes on as before, where it cannot."""


@runtime_checkable
class Saves(Protocol):
    """A service that SIGUSR1 means something to."""

    def save(self) -> None:
        """Write what could wait. Called on the loop it runs on."""


@runtime_checkable
class PrintsTree(Protocol):
    """A service that SIGUSR2 means something to."""

    def tree(self) -> str:
        """Give who subscribed to what, for people. Called on the loop it runs on."""


@runtime_checkable
class Answers(Protocol):
    """A service that can be asked more than how it is."""

    def answers(self) -> Mapping[str, Answer]:
        """Give what answers each question, for JSON. Called on the loop it runs on."""


@runtime_checkable
class Drains(Protocol):
    """A service that lets what is open come to its end when it stops, and takes longer for it."""

    @property
    def stop_seconds(self) -> float: ...


Build = Callable[[Config], Service]


def preload(config: Config) -> None:
    """Import what the broker will need: another user may not be able to read this installation."""
    broker = config.broker
    kinds = {one.kind for one in broker.every_authority()}
    wanted = ["access.authorities", "net.service", *(f"access.{kind}" for kind in kinds)]
    wanted.append("storage.memory" if broker.persistence is False else "storage.store")
    wanted += ["transport.mistakes", "net.layered", "transport.tls", "transport.websocket", "transport.proxy_protocol"]
    if broker.bridges:
        wanted.append("bridge.bridges")
    for name in wanted:
        importlib.import_module(f"lockgate.{name}")
    _new_loop().close()


def _broker(config: Config) -> Service:
    from lockgate.net.service import BrokerService

    return BrokerService(config.broker, store_opener(config), make_access, _bridges)


def _bridges(service: BrokerService, configs: Sequence[BridgeConfig]) -> Bridging:
    from lockgate.bridge.bridges import Bridges

    return Bridges(service, configs)


def make_access(config: BrokerConfig, before: Access | None) -> tuple[Methods | None, Access]:
    """Load the authorities that the broker's configuration names. Raises ConfigError for a file that cannot be used."""
    from lockgate.access.authorities import Authorities

    return scram_authenticator(config), Authorities(config, before if isinstance(before, Authorities) else None)


def store_opener(config: Config) -> OpenStore:
    """How the broker's store is opened: in memory only where the owner's own file says so."""
    broker = config.broker
    if broker.persistence is False:
        from lockgate.storage.memory import MemoryStore

        log.warning("Nothing is kept: sessions, queued and retained messages are lost when the broker ends.")
        return MemoryStore
    from lockgate.storage.store import SqliteStore
    from lockgate.telemetry.clock import Clock

    folder = persistence_folder(config)
    interval = broker.autosave_interval
    seconds = broker.flush_interval_seconds
    if interval and not broker.autosave_on_changes:
        seconds = min(seconds, float(interval))
    changes = interval if broker.autosave_on_changes else 0

    def open_store(answers: StoreAnswers) -> SqliteStore:
        store = SqliteStore(
            folder,
            answers,
            Clock(),
            flush_seconds=seconds,
            flush_changes=changes,
            persistence_file=broker.persistence_file,
        )
        store.open()
        return store

    return open_store


def persistence_folder(config: Config) -> Path:
    """Where the broker's store lies."""
    broker = config.broker
    if broker.persistence_location is not None:
        return broker.persistence_location
    from_environment = os.environ.get("MOSQUITTO_PERSISTENCE_LOCATION")
    if from_environment:
        return Path(from_environment)
    return Path() if broker.persistence else config.gateway.broker_dir


def scram_authenticator(config: BrokerConfig) -> ScramAuthenticator | None:
    """The authority for enhanced authentication, if one is configured. Raises ConfigError for a file it cannot use."""
    if config.scram_file is None:
        return None
    from lockgate.access.scram import ScramAuthenticator, ScramFileError, read_users

    try:
        return ScramAuthenticator(read_users(config.scram_file.read_text("utf-8")))
    except ScramFileError as error:
        raise ConfigError(str(error), path=config.scram_file, line=error.line) from None
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not valid UTF-8"
        raise ConfigError(f"broker.scram_file cannot be read: {problem}", path=config.scram_file) from None


def _processor(config: Config) -> Service:
    from lockgate.processor.service import Processor

    return Processor(config.gateway, config.processor, config.buffer, config.forwarder)


def _forwarder(config: Config) -> Service:
    from lockgate.forwarder.service import Forwarder

    return Forwarder(config.gateway, config.buffer, config.forwarder)


def _demo_device(config: Config) -> Service:
    from lockgate.demo.device import Device

    return Device(config.processor.connection.url)


def _demo_cloud(config: Config) -> Service:
    from lockgate.demo.cloud import Cloud

    urls = [sink.url for sink in config.forwarder.sinks if isinstance(sink, HttpSinkConfig)]
    if not urls:
        raise ConfigError("the demo's cloud is where a sink of type http sends to, and there is none", key="sinks")
    return Cloud(config.gateway.data_dir, urls[0])


def connector(config: Config, token_text: str = "") -> Service:
    """The connector, with the token that is given, or that its configuration or the environment names."""
    from lockgate.tunnel import token
    from lockgate.tunnel.connector import Connector, trust
    from lockgate.tunnel.ingress import NOTHING
    from lockgate.tunnel.ingress_files import configured
    from lockgate.tunnel.tunnels import ACCOUNT_TAG

    said = config.connector
    found = token.find(token_text, said.token_file, os.environ)
    if found is None:
        accepted = (
            f"--token, connector.token_file, or one of {', '.join((*token.TEXT_VARIABLES, *token.FILE_VARIABLES))}"
        )
        raise ConfigError("a connector needs the token of its tunnel", key="connector", accepted=accepted)
    credentials, where = found
    for variable in token.TEXT_VARIABLES:
        if text := os.environ.pop(variable, "").strip():
            token.hide(text)
    log.info("The token is that of %s, for tunnel %s", where, credentials.tunnel_id)
    if not (said.edges or credentials.edges) and credentials.account_tag != ACCOUNT_TAG:
        name = said.server_name or VENDORS_NAME
        said = dataclasses.replace(said, edges=VENDORS_EDGES, server_name=name)
    if not (said.edges or credentials.edges):
        raise ConfigError("nobody says where the edge is", key="connector.edges", accepted='["edge.example.org:7844"]')
    return Connector(said, credentials, configured(said) or NOTHING, trust(credentials.ca, said.ca_file))


def _edge(config: Config) -> Service:
    from lockgate.tunnel.edge_service import Edge

    return Edge(config.gateway, config.edge)


# In the order of starting: each relies on those before it.
SERVICES: dict[str, Build] = {"broker": _broker, "processor": _processor, "forwarder": _forwarder}
# The two ends of the tunnel, which most gateways do without.
TUNNEL_SERVICES: dict[str, Build] = {"connector": connector, "edge": _edge}
DEMO_SERVICES: dict[str, Build] = {"demo-cloud": _demo_cloud, "demo-device": _demo_device}

# As processes: those of a stage rely on the stages before, not on each other.
STAGES = (("broker",), ("processor", "forwarder"))


def services(config: Config) -> dict[str, Build]:
    """Give every service of a configuration by name, those of its sources and of the tunnel where it has them."""
    said = {"connector": config.connector != ConnectorConfig(), "edge": config.edge != EdgeConfig()}
    tunnel = {name: build for name, build in TUNNEL_SERVICES.items() if said[name]}
    return SERVICES | tunnel | {source.service: _source(source.name) for source in config.sources}


def stages(config: Config) -> list[tuple[str, ...]]:
    """Give `STAGES` and the rest behind them: what sources publish finds its subscribers, who comes in the broker."""
    last = tuple(name for name in services(config) if name not in SERVICES)
    return [*STAGES, *([last] if last else [])]


def _source(name: str) -> Build:
    def build(config: Config) -> Service:
        from lockgate.sources import build as build_source

        return build_source(next(source for source in config.sources if source.name == name))

    return build


Reread = Callable[[], Config]


def run(config: Config, names: Sequence[str], registry: Mapping[str, Build], reread: Reread) -> int:
    """Host the named services in this process until SIGTERM or SIGINT; gives the exit code. Main thread only.

    One alone runs on the main thread, several on a thread each, so that none holds up another's loop. `reread` reads
    the configuration again, at SIGHUP, and raises ConfigError if it cannot be used.
    """
    hosts = [_Host(name, registry[name], config, reread) for name in registry if name in names]
    return _run_one(hosts[0]) if len(hosts) == 1 else _run_many(hosts)


class _Host:
    """One service with its loop and its status socket. `exit_code` tells how it went."""

    def __init__(self, name: str, build: Build, config: Config, reread: Reread) -> None:
        self.name = name
        self._reread = reread
        self._reloading: asyncio.Task[None] | None = None
        self.exit_code = 0
        self._build = build
        self._config = config
        self._started = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._stop = asyncio.Event()
        self._deadline = 0.0

    def run(self, on_ready: Callable[[], None], on_signal: bool = False) -> None:
        """Serve on this thread until told to stop or the service fails, which is logged here."""
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(self._serve(on_ready, on_signal))
        except ConfigError as error:
            error.path = error.path or self._config.path  # a service knows the line of its rule, not the file
            self._fail(str(error), error.exit_code)
        except OSError as error:
            self._fail(_explain(error), FAILED)
        except Exception:
            log.exception("%s failed", self.name)
            self.exit_code = FAILED

    def request_stop(self, deadline: float) -> None:
        """Ask for a clean stop until `deadline` (time.monotonic). Any thread may, even before the loop is there."""
        self._deadline = deadline
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_by, deadline)

    def request(self, number: signal.Signals) -> None:
        """Do what one of SIGNALS asks for. Any thread may ask."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heed, number)

    def _heed(self, number: signal.Signals) -> None:
        service = self._service
        if number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1 and isinstance(service, Saves):
            service.save()
        elif number == signal.SIGUSR2 and isinstance(service, PrintsTree):
            print(service.tree(), end="", flush=True)
        elif number == signal.SIGRTMIN:
            self._reopen_logs()

    def _reopen_logs(self) -> None:
        try:
            logs.configure(self._config.broker.log)
        except ConfigError as error:
            log.error("The log files stay as they were. %s", error)

    def _reload(self) -> None:
        if not isinstance(self._service, Reloads):
            log.warning("SIGHUP ignored by %s: nothing of it can be read again yet; restart instead", self.name)
            return
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload_service(self._service))
        else:  # what changed since it read is not missed
            self._reloading.add_done_callback(lambda _: self._reload())

    async def _reload_service(self, service: Reloads) -> None:
        log.info("Reloading config.")
        try:
            config = self._reread()
            places = logs.Places(config.broker.log)
            try:
                await service.reload(config)
            except BaseException:
                places.close()
                raise
            places.use()
            self._config = config
            log.info("The new configuration is in use.")
        except (ConfigError, OSError) as error:
            text = str(error) if isinstance(error, ConfigError) else _explain(error)
            log.error("The configuration stays as it was. %s", text)
            if isinstance(error, ConfigError) and error.exit_code != MISCONFIGURED:
                if self._config.broker.on_bad_reload == "exit":
                    self.exit_code = MISCONFIGURED
                    self._stop_by(time.monotonic() + STOP_SECONDS)
        except Exception:
            log.exception("%s could not reload", self.name)

    @property
    def stop_seconds(self) -> float:
        """How long a clean stop may take."""
        return self._service.stop_seconds if isinstance(self._service, Drains) else STOP_SECONDS

    def _stop_by(self, deadline: float) -> None:
        self._deadline = deadline
        self._stop.set()

    async def _serve(self, on_ready: Callable[[], None], on_signal: bool) -> None:
        self._loop = asyncio.get_running_loop()
        if self._deadline:  # asked to stop before there was a loop
            return
        if on_signal:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, lambda: self._stop_by(time.monotonic() + self.stop_seconds))
            for number in SIGNALS:
                self._loop.add_signal_handler(number, self._heed, number)
        service = self._service = self._build(self._config)
        ready = asyncio.Event()
        path = self._config.gateway.sockets_dir / f"{self.name}.sock"
        running = asyncio.create_task(service.run(ready.set))
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait({running, stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not stopping.done():
                answers: dict[str, Answer] = {
                    "status": lambda _: self._status(service),
                    "health": lambda _: {"problems": []},  # that it answers says enough, of most
                }
                if isinstance(service, Answers):
                    answers |= service.answers()
                async with StatusServer(path, answers), service_manager.alive():
                    log.info("%s is ready", self.name)
                    on_ready()
                    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                raise RuntimeError(f"{self.name} ended by itself")
        finally:
            if on_signal:
                service_manager.tell(service_manager.STOPPING)
            starting.cancel()
            stopping.cancel()
            running.cancel()
            _, late = await asyncio.wait({running}, timeout=max(0.1, (self._deadline or 1e9) - time.monotonic()))
        if late:
            log.error("%s did not stop in time", self.name)
            self.exit_code = FAILED
            os._exit(FAILED)  # what holds it up would hold up the end of its loop too
        if not running.cancelled():
            running.result()
        log.info("%s has stopped", self.name)

    def _status(self, service: Service) -> dict[str, object]:
        return {
            "service": self.name,
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "status": dict(service.status()),
        }

    def _fail(self, text: str, exit_code: int) -> None:
        log.error("%s cannot run: %s", self.name, text)
        self.exit_code = exit_code


def _run_one(host: _Host) -> int:
    host.run(lambda: service_manager.tell(service_manager.READY), on_signal=True)
    return host.exit_code


def _run_many(hosts: Sequence[_Host]) -> int:
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)  # a handler in Python would miss a signal that comes just before a wait
    for number in (signal.SIGTERM, signal.SIGINT, *SIGNALS):
        signal.signal(number, lambda *_: None)
    threads: list[threading.Thread] = []
    try:
        for host in hosts:
            threads.append(threading.Thread(target=_run_thread, args=(host, told), name=host.name, daemon=True))
            threads[-1].start()
            if _next_event(heard, hosts) != _IS_READY:
                break
        else:
            service_manager.tell(service_manager.READY)
            _next_event(heard, hosts)
    finally:
        service_manager.tell(service_manager.STOPPING)
        deadline = time.monotonic() + max(host.stop_seconds for host in hosts)
        for host, thread in reversed(list(zip(hosts, threads, strict=False))):
            host.request_stop(deadline)
            thread.join(max(0.1, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("%s did not stop in time", host.name)
                host.exit_code = FAILED
    return next((host.exit_code for host in hosts if host.exit_code), 0)


def _next_event(heard: int, hosts: Sequence[_Host]) -> int:
    """Wait until a host is ready or has ended, or all are to stop; every host hears what else a signal asks for."""
    while (event := os.read(heard, 1)[0]) in SIGNALS:
        for host in hosts:
            host.request(signal.Signals(event))
    return event


def _run_thread(host: _Host, told: int) -> None:
    try:
        host.run(lambda: _tell(told, _IS_READY))
    finally:
        _tell(told, _HAS_ENDED)


def _tell(told: int, event: int) -> None:
    os.write(told, bytes((event,)))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _explain(error: OSError) -> str:
    """The text of an OSError, with the program that holds a port in use where that can be seen."""
    port = getattr(error, "port", None)
    if error.errno == errno.EADDRINUSE and isinstance(port, int):
        from lockgate.telemetry.port_owner import who_listens

        owner = who_listens(port)
        holder = f"held by {owner}" if owner else "by which program cannot be seen from here; try as root"
        return f"{error.strerror}, {holder}"
    if error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return error.strerror or str(error)
