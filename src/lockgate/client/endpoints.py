"""An URL and the files of TLS → where a Server is: `mqtt`, `mqtts`, `ws` and `wss`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from lockgate.client.url import ServerAddress, parse_url
from lockgate.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from lockgate.transport.tls_client import ClientTls

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_DEFAULT_PATH: Final = "/mqtt"


def parse_endpoint(
    url: str,
    *,
    cafile: Path | None = None,
    certfile: Path | None = None,
    keyfile: Path | None = None,
    alpn: Sequence[str] = (),
) -> tuple[Endpoint, ServerAddress]:
    """Where the Server of an URL is, and who we are there; `mqtts` and `wss` speak TLS, `ws` and `wss` WebSocket.

    Raises ValueError, which says what is wrong without repeating the password.
    """
    parts = urlsplit(url)
    scheme = parts.scheme
    if scheme not in _PORTS:
        raise ValueError(f"the URL must begin with {', '.join(f'{name}://' for name in _PORTS)}")
    is_websocket = scheme in ("ws", "wss")
    # Only a WebSocket's URL has a path.
    address = parse_url(f"mqtt://{parts.netloc}" if is_websocket else f"mqtt{url[len(scheme) :]}")
    port = address.port if parts.port is not None else _PORTS[scheme]
    tls: ClientTls | None = None
    if scheme in ("mqtts", "wss"):
        from lockgate.transport.tls_client import ClientTls

        tls = ClientTls(cafile=cafile, certfile=certfile, keyfile=keyfile, alpn=tuple(alpn))
    websocket_path = None
    if is_websocket:
        websocket_path = parts.path if parts.path not in ("", "/") else _DEFAULT_PATH
    return Endpoint(host=address.host, port=port, tls=tls, websocket_path=websocket_path), address._replace(port=port)


def check_tls(endpoint: Endpoint) -> None:
    """Read the files of TLS, so that what is wrong with them is known before connecting. Raises ValueError."""
    if endpoint.tls is None:
        return
    from lockgate.transport.tls_client import TlsSetupError

    try:
        endpoint.context()
    except TlsSetupError as error:
        place = f" {error.path}:" if error.path is not None else ""
        raise ValueError(f"{error.what}:{place} {error}") from None
