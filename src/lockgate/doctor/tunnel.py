"""Is the tunnel's token kept from others, is the edge found, and are its certificates good for a while?"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from lockgate.config.errors import ConfigError
from lockgate.config.model import ConnectorConfig, EdgeConfig
from lockgate.doctor.case import Case
from lockgate.doctor.certificates import chain
from lockgate.doctor.finding import Finding, good
from lockgate.tunnel.services import host_and_port


def of_connector(case: Case) -> Iterator[Finding]:
    """Look at the token of the connector, and for the edges it names."""
    if case.config is None or case.config.connector == ConnectorConfig():
        return
    said = case.config.connector
    where = os.fspath(case.path)
    edges = said.edges
    if said.token_file is not None:
        path = case.locate(said.token_file)
        if not path.exists():  # a variable may hold it, in the connector's process
            return
        if path.stat().st_mode & stat.S_IROTH:
            yield Finding(
                "secret", "error", where, f"the token {path} is readable by everybody",
                "whoever has it can be the connector, and is given what devices say", f"chmod 0400 {path}",
            )  # fmt: skip
        from lockgate.tunnel import token

        try:
            told = token.read_file(path).edges
            edges = edges or told
        except ConfigError as error:
            yield Finding(
                "tunnel-token", "error", where, str(error), "the connector does not start",
                "a new one: `lockgate edge tunnel token NAME`, or the vendor's dashboard",
            )  # fmt: skip
    for edge in edges:
        yield from _found(edge, where)


def _found(edge: str, where: str) -> Iterator[Finding]:
    try:
        addresses = socket.getaddrinfo(*host_and_port(edge), type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding(
            "edge-name", "error", where, f"the edge {edge} is not found: {error.strerror}",
            "the connector cannot dial it",
            "correct connector.edges, or the DNS; in a container: a network with a way out",
        )  # fmt: skip
        return
    yield good("edge-name", where, f"the edge {edge} is {addresses[0][4][0]}")


def of_edge(case: Case) -> Iterator[Finding]:
    """Look at the certificates that devices, people and connectors see."""
    if case.config is None or case.config.edge == EdgeConfig():
        return
    edge, gateway = case.config.edge, case.config.gateway
    public = sorted(case.locate(edge.certificates_folder(gateway)).glob("*.pem"))
    for path in public:
        yield from _pair(case, path, path.with_suffix(".key"), [])
    for name, path in edge.acme.files(gateway).items() if edge.acme is not None else ():
        yield from _fetched(case, name, path)
    names = [host_and_port(address)[0] for address in edge.public]
    yield from _pair(case, *edge.tunnel_pair(gateway), names)


def _fetched(case: Case, name: str, file: Path) -> Iterator[Finding]:
    if case.locate(file).exists():
        yield from _pair(case, file, file, [name])
        return
    yield Finding(
        "missing", "warning", os.fspath(case.path), f"no certificate for {name} has come from the ACME server yet",
        "who asks for this name is refused",
        f"run the edge, let port 443 of {name} lead to edge.listen_https, and see what `lockgate status` says of it",
    )  # fmt: skip


def _pair(case: Case, certfile: Path, keyfile: Path, hosts: list[str]) -> Iterator[Finding]:
    where = os.fspath(certfile)
    if not case.locate(certfile).exists():
        yield Finding(
            "missing", "error", os.fspath(case.path), f"the certificate {certfile} does not exist",
            "the edge does not start without it", "`lockgate edge certificate NAME` makes the one that connectors see",
        )  # fmt: skip
        return
    key = case.locate(keyfile)
    if key.exists() and key.stat().st_mode & stat.S_IROTH:
        yield Finding(
            "secret", "error", where, f"the key {key} is readable by everybody",
            "whoever has it can be this edge", f"chmod 0400 {key}",
        )  # fmt: skip
    yield from chain(case, certfile, where, hosts)
