"""`lockgate check [FILE]`: every mistake of the configuration, with its place."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from lockgate.app import scram_authenticator
from lockgate.cli.common import load_config
from lockgate.config.errors import ConfigError, MosquittoConfError
from lockgate.config.libraries import library
from lockgate.config.model import (
    BridgeConfig,
    Config,
    ConnectorConfig,
    EdgeConfig,
    HttpSourceConfig,
    ListenerConfig,
    ModbusSourceConfig,
    MqttSinkConfig,
    OpcuaSourceConfig,
    is_local,
)

KINDS = {HttpSourceConfig: "http", ModbusSourceConfig: "modbus", OpcuaSourceConfig: "opcua"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, metavar="FILE", help="lockgate.toml")


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    scram_authenticator(config.broker)
    check_access(config)
    check_rules(config)
    check_data_path(config)
    check_sources(config)
    check_certificates(config)
    check_bridges(config)
    check_connector(config)
    check_edge(config)
    for warning in (
        *config.broker.warnings,
        *unreadable(config),
        *in_the_clear(config),
        *twice(config),
        *check_edge_certificates(config),
    ):
        print(f"Warning: {warning}")
    print(summary(config))
    return 0


def check_access(config: Config) -> None:
    """Read password, ACL and dynamic security files. Raises ConfigError, with file and line."""
    from lockgate.access import authorities

    authorities.check(config.broker)


def check_rules(config: Config) -> None:
    """Compile every schema and rule. Raises ConfigError, with the line of the rule."""
    from lockgate.processor.runner import Rulebook

    try:
        Rulebook(config.processor, config.buffer).close()
    except ConfigError as error:
        error.path = error.path or config.path  # the processor does not know the file
        raise


def twice(config: Config) -> Iterator[str]:
    """Warn of Topic Filters that bring the processor a message twice: a broker sends it for each that matches."""
    from lockgate.processor.schemas import Schemas, overlap

    filters = dict.fromkeys(Schemas(config.processor.schemas).topic_filters, "[schemas]")
    for standing in config.broker.standing_sessions:
        if (standing.client_id or standing.name) == config.processor.connection.client_id:
            place = f"[standing_sessions.{standing.name}]"
            filters |= {topic_filter: place for topic_filter in standing.topics if topic_filter not in filters}
    for (one, its), (other, others) in combinations(filters.items(), 2):
        if overlap(one, other):
            yield (
                f"{one} in {its} and {other} in {others} match the same topics: the processor gets what matches both "
                "twice. Write the same Topic Filters, or such that exclude each other."
            )


def check_data_path(config: Config) -> None:
    """Try the roll-ups of the buffer's classes, and the libraries of compression and sinks. Raises ConfigError."""
    from lockgate.buffer.log import check_roll_ups
    from lockgate.buffer.packed import check_library

    check_roll_ups(config.buffer)
    if config.buffer.compression == "zstd":
        check_library()
    if config.forwarder.sinks:
        from lockgate.forwarder.messages import Messages
        from lockgate.forwarder.sinks import build

        for sink in config.forwarder.sinks:
            build(sink, Messages(config.gateway.id))


def check_sources(config: Config) -> None:
    """Try the libraries of sources. Raises ConfigError."""
    if config.sources:
        from lockgate.sources import check

        for source in config.sources:
            check(source)


def unreadable(config: Config) -> Iterator[str]:
    """Secrets and certificates of sources, processor, forwarder and ACME that cannot be read here, for people.

    No mistakes, only warnings: a service may have files that whoever asks has not.
    """
    connections = [("processor", config.processor.connection), ("downlink", config.forwarder.downlink.connection)]
    connections += [
        (f"sinks.{sink.name}", sink.connection) for sink in config.forwarder.sinks if isinstance(sink, MqttSinkConfig)
    ]
    connections += [(f"sources.{source.name}", source.connection) for source in config.sources]
    sinks = [(f"sinks.{sink.name}", sink) for sink in config.forwarder.sinks]
    sources = [(f"sources.{source.name}", source) for source in config.sources]
    clients = [
        (f"sources.{source.name}.clients.{client.name}", client)
        for source in config.sources
        if isinstance(source, HttpSourceConfig)
        for client in source.clients
    ]
    acme = [("edge.acme", config.edge.acme)] if config.edge.acme is not None else []
    for section, model in (*connections, *sinks, *sources, *clients, *acme):
        for field in dataclasses.fields(model):
            value = getattr(model, field.name)
            paths = [path for _, path in value] if field.name == "header_files" else [value]
            for path in paths:
                if isinstance(path, Path) and field.name not in ("path", "metered_while"):
                    try:
                        path.open("rb").close()
                    except OSError as error:
                        yield f"{section}.{field.name}: {path}: cannot be read: {error.strerror}"


def in_the_clear(config: Config) -> Iterator[str]:
    """Warn of secrets that a source takes or gives over a network as they are."""
    for source in config.sources:
        if isinstance(source, HttpSourceConfig) and source.clients and source.certfile is None:
            if not is_local(source.listen[0]):
                yield f"sources.{source.name}: its clients send their secrets as they are: there is no certfile."
        if isinstance(source, OpcuaSourceConfig) and source.user is not None and source.security_policy == "None":
            yield f"sources.{source.name}: the user's password may be sent as it is: there is no security_policy."


def check_certificates(config: Config) -> None:
    """Read the certificates and keys of every listener. Raises ConfigError, with option and line."""
    configured = [listener.tls for listener in config.broker.listeners if listener.tls is not None]
    if configured:
        from lockgate.transport.tls import TlsServer

        for tls in configured:
            TlsServer(tls)


def check_bridges(config: Config) -> None:
    """Read the certificates and keys of every bridge. Raises ConfigError, with option and line."""
    for bridge in config.broker.bridges:
        if bridge.tls is not None:
            from lockgate.bridge.remote import tls_context
            from lockgate.transport.tls_client import TlsSetupError

            try:
                tls_context(bridge.tls)
            except TlsSetupError as error:
                option = f"bridge_{error.what}"
                place = bridge.tls.places.get(option)
                path, line = place if place is not None else (config.broker.path, None)
                file = f"{error.path}: " if error.path is not None else ""
                raise MosquittoConfError(f"{option}: {file}{error}.", path=path, line=line, key=option) from None


def check_connector(config: Config) -> None:
    """Read the ingress rules and the allow-list of the connector. Raises ConfigError, with the number of the rule."""
    if config.connector != ConnectorConfig():
        from lockgate.tunnel.ingress_files import configured
        from lockgate.tunnel.services import AllowList

        configured(config.connector)
        try:
            AllowList.parse(config.connector.allow)
        except ConfigError as error:
            error.path = config.path
            raise


def check_edge(config: Config) -> None:
    """Try the library of ACME, and read the tunnels of the edge, if there are any. Raises ConfigError."""
    if config.edge.acme is not None:
        library("acme.client", "acme", "edge.acme")
    path = config.edge.tunnels_file(config.gateway)
    if os.access(path, os.R_OK):
        from lockgate.tunnel import tunnels

        tunnels.load(path)


def check_edge_certificates(config: Config) -> Iterator[str]:
    """Warn of certificates of the edge that cannot be used here; whoever asks may not be who serves."""
    if config.edge == EdgeConfig():
        return
    from lockgate.tunnel.certificates import Certificates, Pair, public_pairs

    def public() -> list[Pair]:
        return public_pairs(config.edge, config.gateway)

    def of_tunnel() -> list[Pair]:
        return [config.edge.tunnel_pair(config.gateway)]

    for find in (public, of_tunnel):
        try:
            Certificates(find, client_ca=config.edge.client_ca_file, alpn=())
        except ConfigError as error:
            yield f"edge: {error}"


def summary(config: Config) -> str:
    listeners = ", ".join(map(_listener, config.broker.listeners))
    anonymous = "everybody is let in" if config.broker.allow_anonymous else "nobody is let in without a user name"
    sources = ", ".join(f"{source.name} ({KINDS[type(source)]})" for source in config.sources)
    lines = [
        f"{config.path or 'no lockgate.toml, defaults'}: good",
        f"broker     {config.broker.path or 'no mosquitto.conf, defaults'}: {listeners}; {anonymous}",
        *(f"bridge     {one.name}: {_addresses(one)}" for one in config.broker.bridges),
        *([f"sources    {sources}"] if sources else []),
        f"processor  {len(config.processor.schemas)} schemas, {len(config.processor.rules)} rules",
        f"buffer     {config.gateway.buffer_dir}, classes {', '.join(config.buffer.classes)}",
        f"forwarder  {len(config.forwarder.sinks)} sinks: {', '.join(sink.name for sink in config.forwarder.sinks)}",
        *([f"connector  {_rules(config.connector)}"] if config.connector != ConnectorConfig() else []),
        *([f"edge       {_edge(config)}"] if config.edge != EdgeConfig() else []),
    ]
    return "\n".join(line.rstrip(" :") for line in lines)


def _rules(connector: ConnectorConfig) -> str:
    from lockgate.tunnel.ingress_files import configured

    found = configured(connector)
    rules = f"{len(found.rules)} rules" if found is not None else "the rules that its edge pushes"
    return f"to {', '.join(connector.edges) or 'the edges of its token'}, {rules}; may dial " + (
        ", ".join(connector.allow) or "what its rules lead to"
    )


def _edge(config: Config) -> str:
    doors = (*config.edge.listen_tunnel, *config.edge.listen_https, *config.edge.listen_mqtts)
    return f"{', '.join(doors)}; tunnels in {config.edge.tunnels_file(config.gateway)}"


def _addresses(bridge: BridgeConfig) -> str:
    return ", ".join(f"{host}:{port}" for host, port in bridge.addresses)


def _listener(listener: ListenerConfig) -> str:
    place = str(listener.path) if listener.path is not None else f"{listener.address or '*'}:{listener.port}"
    speaks = ["WebSocket"] if listener.websockets else []
    speaks += ["TLS"] if listener.tls is not None else []
    speaks += [f"PROXY version {listener.proxy_protocol}"] if listener.proxy_protocol else []
    return f"{place} ({', '.join(speaks)})" if speaks else place
