"""What Docker's engine says of its containers, where its socket may be used."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

_SECONDS = 2.0


class _Engine(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(os.fspath(self._path))


def containers(path: Path) -> list[dict[str, object]] | None:
    """Give the containers that run, as the engine behind the socket `path` lists them; None: it cannot be asked."""
    engine = _Engine(path)
    try:
        engine.request("GET", "/containers/json")
        answer = engine.getresponse()
        said = json.loads(answer.read()) if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        engine.close()
    return [one for one in said if isinstance(one, dict)] if isinstance(said, list) else None


def name_of(container: dict[str, object]) -> str:
    """Give the name that people use."""
    names = container.get("Names")
    return str(names[0]).lstrip("/") if isinstance(names, list) and names else str(container.get("Id", ""))[:12]


def published(container: dict[str, object]) -> list[tuple[int, int]]:
    """Give the TCP ports that a container publishes: the machine's, and its own."""
    ports = container.get("Ports")
    found = []
    for one in ports if isinstance(ports, list) else ():
        if isinstance(one, dict) and one.get("Type", "tcp") == "tcp" and isinstance(one.get("PublicPort"), int):
            found.append((int(one["PublicPort"]), int(one["PrivatePort"])))
    return sorted(set(found))


def mounted(container: dict[str, object]) -> list[tuple[Path, Path]]:
    """Give what of the machine a container sees: the place here, and its own."""
    mounts = container.get("Mounts")
    return [
        (Path(str(one.get("Source", ""))), Path(str(one.get("Destination", ""))))
        for one in (mounts if isinstance(mounts, list) else ())
        if isinstance(one, dict)
    ]
