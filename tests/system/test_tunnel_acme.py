"""Certificates of the edge from a real ACME server, and who notices what of it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate.config.model import AcmeConfig
from lockgate.mqtt.encoder import PINGREQ_FRAME, encode
from lockgate.mqtt.packets import V3_1_1, Connect
from lockgate.tunnel.edge_service import Edge
from tests.support.acme import Pebble
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port
from tests.support.tunnels import Bench, bench

pytest.importorskip("acme")
NAME = "home.example.org"


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    """A tunnel whose edge has no public certificate."""
    async with bench(tmp_path) as one:
        for file in (one.gateway.data_dir / "edge" / "certificates").iterdir():
            file.unlink()
        yield one


@pytest.fixture
def pebble(tunnel: Bench, tmp_path: Path) -> Pebble:
    return Pebble(tmp_path / "pebble", tunnel.https_port)


def acme(pebble: Pebble, **settings: object) -> AcmeConfig:
    usual = {"names": (NAME,), "agree_to_terms": True, "directory": pebble.directory, "ca_file": pebble.ca_file}
    return AcmeConfig(**(usual | settings))  # type: ignore[arg-type]


async def connect(trust: ssl.SSLContext, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As a client that checks the certificate. Raises OSError."""
    return await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=NAME)


async def serial(trust: ssl.SSLContext, port: int) -> str:
    """The number of the certificate. Raises OSError."""
    _, writer = await connect(trust, port)
    number = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(number)


async def first_serial(trust: ssl.SSLContext, port: int) -> str:
    """The same, as soon as nobody is refused any more."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await serial(trust, port)
            except ConnectionError:
                await asyncio.sleep(0.05)


async def problem(edge: Edge) -> str:
    """What it says of the name, as soon as it says something."""
    async with asyncio.timeout(30):
        while not (said := edge.status()["acme"][NAME].get("problem")):  # type: ignore[index]
            await asyncio.sleep(0.05)
    return str(said)


def gateway(tunnel: Bench, directory: str, ca_file: Path) -> Gateway:
    """The same edge as a process."""
    return Gateway(
        tunnel.folder,
        f"""\
[edge]
listen_tunnel = ["127.0.0.1:{tunnel.tunnel_port}"]
listen_https = ["127.0.0.1:{tunnel.https_port}"]
listen_mqtts = ["127.0.0.1:{tunnel.mqtts_port}"]
[edge.acme]
names = ["{NAME}"]
agree_to_terms = true
email = "admin@example.org"
directory = "{directory}"
ca_file = "{ca_file}"
""",
    )


async def test_from_nothing_to_a_certificate_that_clients_know(tunnel: Bench, pebble: Pebble) -> None:
    with pebble.running() as trust, gateway(tunnel, pebble.directory, pebble.ca_file).running("edge") as edge:
        assert await first_serial(trust, tunnel.https_port) == await first_serial(trust, tunnel.mqtts_port)
        (folder,) = (tunnel.gateway.data_dir / "edge" / "acme").iterdir()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert modes == {"account.key": 0o600, f"{NAME}.pem": 0o600}
        edge.stop("edge")


async def test_an_edge_ends_though_its_acme_server_does_not_answer(tunnel: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        directory = f"https://127.0.0.1:{silent.getsockname()[1]}/dir"
        with gateway(tunnel, directory, tunnel.authority.cafile).running("edge") as edge:
            asked, _ = silent.accept()
            with asked:
                edge.stop("edge")


async def test_a_renewal_disturbs_nobody(tunnel: Bench, pebble: Pebble, tmp_path: Path) -> None:
    broker, ahead = Mosquitto(tmp_path), 0.0
    with tunnel.edit() as said:
        (one,) = said["tunnels"].values()
        one["mqtts"] = {NAME: {"target": f"127.0.0.1:{broker.port}"}}
    try:
        with pebble.running() as trust:
            await tunnel.start_edge(lambda: time.time() + ahead, acme=acme(pebble))
            await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",))
            old = await first_serial(trust, tunnel.https_port)
            await first_serial(trust, tunnel.mqtts_port)
            reader, writer = await connect(trust, tunnel.mqtts_port)
            writer.write(encode(Connect("device", V3_1_1), V3_1_1))
            assert await asyncio.wait_for(reader.readexactly(4), 10) == b"\x20\x02\x00\x00"
            ahead = 4 * 365 * 86_400.0  # of five years
            async with asyncio.timeout(30):
                while await serial(trust, tunnel.https_port) == old:  # each of these clients checks what it is shown
                    pass
                while await serial(trust, tunnel.mqtts_port) == old:
                    pass
            writer.write(PINGREQ_FRAME)
            assert await asyncio.wait_for(reader.readexactly(2), 10) == b"\xd0\x00"
            writer.close()
    finally:
        broker.kill()


async def test_a_certificate_outlives_a_restart_and_the_servers_absence(
    tunnel: Bench, pebble: Pebble, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lockgate.tunnel.renewals")
    with pebble.running() as trust:
        edge = await tunnel.start_edge(acme=acme(pebble))
        known = await first_serial(trust, tunnel.https_port)
        await tunnel.stop(edge)
        edge = await tunnel.start_edge(acme=acme(pebble))
        assert await serial(trust, tunnel.https_port) == known
        await tunnel.stop(edge)
        assert pebble.log.read_text().count("Issued certificate") == 1
    caplog.clear()
    edge = await tunnel.start_edge(lambda: time.time() + 4 * 365 * 86_400.0, acme=acme(pebble))
    assert "Connection refused" in await problem(edge)
    assert await serial(trust, tunnel.mqtts_port) == known
    (told,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert f"No new certificate for {NAME}, the one that is there ends at " in told
    assert f": {pebble.directory} does not answer as it should: " in told


async def test_a_name_that_cannot_be_proved_is_told_in_the_servers_words(
    tunnel: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pebble = Pebble(tmp_path / "pebble", free_port())  # where nobody listens
    with pebble.running():
        edge = await tunnel.start_edge(acme=acme(pebble))
        said = await problem(edge)
    assert said.startswith("urn:ietf:params:acme:error:unauthorized: Failed to connect to 127.0.0.1")
    assert f"No new certificate for {NAME}, there is none yet: {said}" in caplog.text


@pytest.mark.parametrize(
    "key", ["c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "bm90LXRoZS1vbmUtdGhhdC10aGUtc2VydmVyLWhhcw"]
)
async def test_an_account_is_bound_to_another_one(tunnel: Bench, tmp_path: Path, key: str) -> None:
    right = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"
    bound = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"customer": right}}
    pebble = Pebble(tmp_path / "pebble", tunnel.https_port, **bound)
    file = tmp_path / "hmac"
    file.write_text(f"{key}\n")
    with pebble.running() as trust:
        edge = await tunnel.start_edge(acme=acme(pebble, eab_key_id="customer", eab_hmac_file=file))
        if key == right:
            await first_serial(trust, tunnel.https_port)
        else:
            said = await problem(edge)
            assert said.startswith("urn:ietf:params:acme:error:")
            assert key not in said
