"""An OPC UA server: asyncua's own, here or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from asyncua.ua import status_codes
from cryptography.x509.oid import ExtendedKeyUsageOID

NAMESPACE = "urn:plant"
SERVER_URI = "urn:plant:server"
CLIENT_URI = "urn:lockgate:source"


class Users(UserManager):
    """Lets in `plant` with the password `s3cret`, and everybody who gives no name where that is allowed."""

    def get_user(
        self, iserver: Any, username: Any = None, password: Any = None, certificate: Any = None
    ) -> User | None:
        if username is None or (username, password) == ("plant", "s3cret"):
            return User(role=UserRole.User)
        return None


class Plant:
    """A server with some variables; `nodes` has them by name."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.url = url
        self.nodes: dict[str, Any] = {}

    async def add(self, name: str, value: object, kind: Any = None) -> None:
        self.nodes[name] = await self.server.nodes.objects.add_variable(f"ns=2;s={name}", name, value, kind)

    async def write(self, name: str, value: object, status: str = "Good", at: Any = None) -> None:
        data = ua.DataValue(ua.Variant(value), ua.StatusCode(getattr(status_codes.StatusCodes, status)), at)
        await self.nodes[name].write_value(data)


@contextlib.asynccontextmanager
async def opcua_server(port: int, folder: Path | None = None, anonymous: bool = True) -> AsyncIterator[Plant]:
    """Serve on a port of the loopback; with a folder, signed and encrypted alone, as server.der there."""
    server = Server(user_manager=Users())
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/plant")
    await server.set_application_uri(SERVER_URI)
    if folder is not None:
        await certificate(folder, "server", SERVER_URI)
        await server.load_certificate(str(folder / "server.der"))
        await server.load_private_key(str(folder / "server.pem"))
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
    if not anonymous:
        server.set_identity_tokens([ua.UserNameIdentityToken])
    await server.register_namespace("urn:first")
    plant = Plant(server, f"opc.tcp://127.0.0.1:{port}/plant")
    assert await server.get_namespace_index("urn:first") == 2
    await server.register_namespace(NAMESPACE)
    await plant.add("temperature", 21.5)
    await plant.add("running", True)
    await plant.add("name", "boiler")
    async with server:
        yield plant


async def certificate(folder: Path, name: str, uri: str) -> tuple[Path, Path]:
    """Make NAME.der and its key NAME.pem."""
    certfile, keyfile = folder / f"{name}.der", folder / f"{name}.pem"
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    await setup_self_signed_certificate(keyfile, certfile, uri, socket.gethostname(), uses, {"commonName": name})
    return certfile, keyfile


async def _serve(port: int) -> None:
    async with opcua_server(port) as plant:
        print("serving", flush=True)
        number = 0.0
        while True:
            await asyncio.sleep(0.1)
            number += 1
            await plant.write("temperature", number)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
