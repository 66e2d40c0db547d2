"""The listeners of a configuration, as a client on this machine reaches them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockgate.config.model import Config, ListenerConfig, TlsConfig
from lockgate.doctor.case import port_name
from lockgate.doctor.visit import VERSIONS, Door
from lockgate.doctor.x509 import read
from lockgate.transport.endpoint import Endpoint
from lockgate.transport.tls_client import ClientTls

_CERTIFICATE = "--cert FILE --key FILE: this listener lets nobody in without a certificate (require_certificate)"


@dataclass(frozen=True)
class Shown:
    """What a client of TLS brings along."""

    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    insecure: bool = False
    name: str = ""  # in place of one from the certificate

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises TlsSetupError."""
        return ClientTls(
            cafile=self.cafile, certfile=self.certfile, keyfile=self.keyfile, insecure=self.insecure
        ).context()


def doors(config: Config, shown: Shown, websocket_path: str) -> Iterator[Door]:
    """Give every listener; those of an address family that this machine has not are left out."""
    for listener in config.broker.listeners:
        address = _address(listener)
        if address is not None:
            yield _door(listener, address, shown, websocket_path)


def _door(listener: ListenerConfig, address: str, shown: Shown, websocket_path: str) -> Door:
    speaks = "HTTP API" if listener.http_api else "WebSocket" if listener.websockets else "MQTT"
    speaks += " in TLS" if listener.tls is not None else ""
    speaks += f" behind PROXY {listener.proxy_protocol}" if listener.proxy_protocol else ""
    context, name, note, advice = None, "", "", Door.tls_advice
    if listener.tls is not None:
        context, name, note = _trusting(listener.tls, shown)
        if listener.tls.require_certificate and shown.certfile is None:
            advice = _CERTIFICATE
    return Door(
        name=f"{port_name(listener)} ({speaks})",
        endpoint=Endpoint(
            host=address,
            port=listener.port,
            unix=str(listener.path) if listener.path is not None else None,
            websocket_path=websocket_path if listener.websockets else None,
        ),
        context=context,
        tls_name=name,
        proxy=listener.proxy_protocol,
        proxy_tls=listener.proxy_require_tls,
        http=listener.http_api,
        most_qos=listener.max_qos,
        versions=tuple(version for version in VERSIONS if version in listener.protocol_versions),
        note=note,
        tls_advice=advice,
    )


def _trusting(tls: TlsConfig, shown: Shown) -> tuple[ssl.SSLContext, str, str]:
    """Give a context that trusts who issued the listener's certificate, the name it is for, and what is not looked at.

    Where nobody is named who issued it, the certificate itself is trusted: its name and times are looked at still.
    """
    context = shown.context()
    try:
        own = read(tls.certfile.read_text("ascii"))
    except (OSError, ValueError):
        own = []
    names = [name for name in own[0].hosts if not name.startswith("*")] if own else []
    wild = [f"lockgate{name[1:]}" for name in own[0].hosts if name.startswith("*")] if own else []
    name = shown.name or next(iter([*names, *wild]), "")
    note = ""
    if shown.cafile is None and not shown.insecure and own:
        if tls.cafile is not None:
            context.load_verify_locations(tls.cafile)
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(own[0].der))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        note = "who issued the certificate is not looked at; --cafile FILE does"
    return context, name, note


def _address(listener: ListenerConfig) -> str | None:
    """Give where to reach a listener from this machine; None: this machine speaks no such address."""
    address = listener.address
    if address in (None, "0.0.0.0", "::"):
        address = "::1" if listener.domain == "ipv6" or address == "::" else "127.0.0.1"
    assert address is not None
    if ":" in address:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind((address, 0))
        except OSError:
            return None
    return address
