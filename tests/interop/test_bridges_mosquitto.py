"""Bridges between our broker and Debian's mosquitto, in both roles, and brokers in a ring."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lockgate.client import Client, Message
from lockgate.config.model import ConnectionConfig
from tests.support.bridged import Bridged, bridged
from tests.support.certificates import Authority
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port, program

pytestmark = pytest.mark.peers
VERSIONS = ("mqttv31", "mqttv311", "mqttv50")
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS)
SECONDS = 10.0


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    peer = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    yield peer
    peer.stop()


@contextlib.asynccontextmanager
async def client_of(url: str, *topic_filters: str) -> AsyncIterator[Client]:
    async with Client(ConnectionConfig(url=url, client_id=uuid.uuid4().hex), session_expiry_seconds=60) as client:
        if topic_filters:
            await client.subscribe([(one, 2) for one in topic_filters])
        yield client


async def take(client: Client, count: int) -> list[Message]:
    taken: list[Message] = []
    async with asyncio.timeout(SECONDS):
        async for message in client.messages():
            taken.append(message)
            if len(taken) == count:
                break
    return taken


async def connected(bridge: Bridged, name: str = "b") -> None:
    await bridge.until(lambda status: status["state"] == "connected", name)


def told(messages: list[Message]) -> list[tuple[str, bytes, int, bool]]:
    return [(message.topic, message.payload, message.qos, message.retain) for message in messages]


@EVERY_VERSION
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_ours_to_mosquitto(mosquitto: Mosquitto, tmp_path: Path, version: str, qos: int) -> None:
    name = uuid.uuid4().hex[:12]
    lines = ["connection b", f"address 127.0.0.1:{mosquitto.port}", f"clientid {name}"]
    lines += [f"bridge_protocol_version {version}", f"topic # out {qos} here/out/ {name}/from/"]
    lines += [f"topic # in {qos} here/in/ {name}/to/"]
    async with (
        bridged(tmp_path, *lines) as bridge,
        client_of(bridge.url, "here/#") as here,
        client_of(mosquitto.url, f"{name}/#") as there,
    ):
        await connected(bridge)
        for number in range(50):
            await here.publish("here/out/a/b", b"%d" % number, qos)
            await there.publish(f"{name}/to/c", b"%d" % number, qos)
        at_home, away = told(await take(here, 100)), told(await take(there, 100))
        expected = [b"%d" % number for number in range(50)]
        assert [one for one in at_home if one[0] == "here/in/c"] == [("here/in/c", one, qos, False) for one in expected]
        topic = f"{name}/from/a/b"
        assert [one for one in away if one[0] == topic] == [(topic, one, qos, False) for one in expected]


@EVERY_VERSION
async def test_mosquitto_to_ours(tmp_path: Path, version: str) -> None:
    ours = Gateway(tmp_path)
    with ours.running("broker"):
        lines = ["connection b", f"address 127.0.0.1:{ours.port}", "remote_clientid m", "restart_timeout 1"]
        lines += [f"bridge_protocol_version {version}", "topic out/# out 2", "topic in/# in 2", "topic both/# both 1"]
        async with client_of(ours.url, "#", "$SYS/broker/connection/m/state") as here:
            peer = Mosquitto(tmp_path, lines)
            try:
                (up,) = told(await take(here, 1))
                assert (up[0], up[1]) == ("$SYS/broker/connection/m/state", b"1")
                async with client_of(peer.url, "#") as there:
                    for qos in (0, 1, 2):
                        await there.publish("out/a", b"%d" % qos, qos)
                    got = told(await take(here, 3))
                    assert got == [("out/a", b"%d" % qos, qos, False) for qos in (0, 1, 2)]
                    await take(there, 3)
                    for qos in (0, 1, 2):
                        await here.publish("in/a", b"%d" % qos, qos)
                    assert told(await take(there, 3)) == [("in/a", b"%d" % qos, qos, False) for qos in (0, 1, 2)]
                    await take(here, 3)
                    for client, other in ((here, there), (there, here)):  # nothing comes back
                        await client.publish("both/a", b"1", 1)
                        await client.publish("both/b", b"2", 1)
                        assert told(await take(client, 2)) == told(await take(other, 2))
                    await there.publish("out/retained", b"r", 1, retain=True)
                    await take(here, 1)
                async with client_of(ours.url, "out/retained") as late:
                    assert told(await take(late, 1)) == [("out/retained", b"r", 1, True)]
            finally:
                peer.kill()
            (down,) = told(await take(here, 1))
            assert (down[0], down[1]) == ("$SYS/broker/connection/m/state", b"0")


async def test_what_mosquitto_cannot_see_is_told_it_by_its_own_client(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Debian's mosquitto_sub hears, retained, whether our bridge is there; and that it went."""
    name = uuid.uuid4().hex[:12]
    lines = ["connection b", f"address 127.0.0.1:{mosquitto.port}", f"clientid {name}", "topic # out"]
    command = [program("mosquitto_sub"), "-p", str(mosquitto.port), "-W", "10", "-F", "%p %r"]
    topic = f"$SYS/broker/connection/{name}/state"
    async with bridged(tmp_path, *lines) as bridge:
        await connected(bridge)
        async with client_of(mosquitto.url, topic) as there:
            await take(there, 1)
        heard = await asyncio.to_thread(subprocess.run, [*command, "-C", "1", "-t", topic], capture_output=True)
        assert heard.stdout == b"1 1\n"
    heard = await asyncio.to_thread(subprocess.run, [*command, "-C", "1", "-t", topic], capture_output=True)
    assert heard.stdout == b"0 1\n"


async def test_properties_of_version_5_cross(mosquitto: Mosquitto, tmp_path: Path) -> None:
    from lockgate.client import Properties

    name = uuid.uuid4().hex[:12]
    lines = ["connection b", f"address 127.0.0.1:{mosquitto.port}", "bridge_protocol_version mqttv50", "try_private 0"]
    sent = Properties(
        content_type="text/plain",
        response_topic="r",
        correlation_data=b"c",
        user_properties=(("a", "b"), ("a", "c")),
        message_expiry_interval=100,
        payload_format_indicator=1,
    )
    async with (
        bridged(tmp_path, *lines, f"clientid {name}", f"topic {name} out 1") as bridge,
        client_of(mosquitto.url, name) as there,
        client_of(bridge.url) as here,
    ):
        await connected(bridge)
        await here.publish(name, b"x", 1, properties=sent)
        (message,) = await take(there, 1)
        got = message.properties
        assert got is not None
        assert got.message_expiry_interval in (98, 99, 100)
        got.message_expiry_interval = 100
        assert got == sent


async def test_a_password_and_a_certificate_are_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("server", "127.0.0.1")
    own_cert, own_key = authority.issue("bridge", common_name="bridge")
    passwords = tmp_path / "passwords"
    subprocess.run([program("mosquitto_passwd"), "-b", "-c", str(passwords), "u", "p"], check=True)
    port = free_port()
    peer = Mosquitto(
        tmp_path,
        [
            f"password_file {passwords}",
            f"listener {port} 127.0.0.1",
            f"certfile {certfile}",
            f"keyfile {keyfile}",
            f"cafile {authority.cafile}",
            "require_certificate true",
        ],
        anonymous=False,
    )
    lines = ["connection b", f"address 127.0.0.1:{port}", "topic t out 1", "restart_timeout 1", "username u"]
    tls = [f"bridge_cafile {authority.cafile}", f"bridge_certfile {own_cert}", f"bridge_keyfile {own_key}"]
    try:
        async with bridged(tmp_path, *lines, "password p", *tls) as bridge:
            await connected(bridge)
        async with bridged(tmp_path, *lines, "password wrong", *tls) as bridge:
            status = await bridge.until(lambda status: status["last_error"])
            assert "Connection Refused" in str(status["last_error"])
        async with bridged(tmp_path, *lines, "password p", tls[0]) as bridge:  # no certificate of its own
            await bridge.until(lambda status: status["last_error"])
        (tmp_path / "other").mkdir()
        other = Authority(tmp_path / "other")
        async with bridged(tmp_path, *lines, "password p", f"bridge_cafile {other.cafile}", *tls[1:]) as bridge:
            status = await bridge.until(lambda status: status["last_error"])
            assert "certificate verify failed" in str(status["last_error"])
    finally:
        peer.stop()


async def test_sighup_starts_and_ends_a_bridge(mosquitto: Mosquitto, tmp_path: Path) -> None:
    ours = Gateway(tmp_path)
    conf = tmp_path / "mosquitto.conf"
    plain = conf.read_text()
    name = uuid.uuid4().hex[:12]

    async def reload(text: str) -> None:
        conf.write_text(text)
        ours.signal("broker", signal.SIGHUP)

    with ours.running("broker"):
        async with client_of(mosquitto.url, f"$SYS/broker/connection/{name}/state") as there:
            bridge = f"connection b\naddress 127.0.0.1:{mosquitto.port}\nclientid {name}\ntopic # out\n"
            for text, state in ((plain + bridge, b"1"), (plain, b"0"), (plain + bridge, b"1")):
                await reload(text)
                assert [message.payload for message in await take(there, 1)] == [state]


# --- rings ------------------------------------------------------------------------------------------------------------


async def test_two_brokers_that_exchange_everything_do_so_once(mosquitto: Mosquitto, tmp_path: Path) -> None:
    for version in VERSIONS:
        name = uuid.uuid4().hex[:12]
        lines = ["connection b", f"address 127.0.0.1:{mosquitto.port}", f"bridge_protocol_version {version}"]
        async with (
            bridged(tmp_path, *lines, f"clientid {name}", f"topic {name}/# both 1") as bridge,
            client_of(bridge.url, f"{name}/#") as here,
            client_of(mosquitto.url, f"{name}/#") as there,
        ):
            await connected(bridge)
            await here.publish(f"{name}/1", b"", 1)
            assert [one.topic for one in await take(there, 1)] == [f"{name}/1"]
            await there.publish(f"{name}/2", b"", 1)
            await there.publish(f"{name}/3", b"", 1)
            assert [one.topic for one in await take(there, 2)] == [f"{name}/2", f"{name}/3"]
            assert [one.topic for one in await take(here, 3)] == [f"{name}/1", f"{name}/2", f"{name}/3"]


@pytest.mark.parametrize("count", [2, 3])
async def test_a_ring_of_brokers_comes_to_rest_in_version_5(tmp_path: Path, count: int) -> None:
    """Each connects to the next one, and everything crosses both ways: without a mark it would go round for ever."""
    ports = [free_port() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        brokers: list[Bridged] = []
        for place in range(count):
            folder = tmp_path / str(place)
            folder.mkdir()
            lines = ["connection b", f"address 127.0.0.1:{ports[(place + 1) % count]}", f"clientid ring{place}"]
            lines += ["bridge_protocol_version mqttv50", "topic # both 1", "restart_timeout 1"]
            brokers.append(await stack.enter_async_context(bridged(folder, *lines, port=ports[place])))
        for broker in brokers:
            await connected(broker)
        clients = [await stack.enter_async_context(client_of(one.url, "t", "end")) for one in brokers]
        await clients[0].publish("t", b"round", 1)
        for client in clients[1:]:
            (message,) = await take(client, 1)
            assert message.payload == b"round"
        before = -1
        async with asyncio.timeout(SECONDS):
            while before != (before := sum(int(str(one.status()["sent"])) for one in brokers)):
                await asyncio.sleep(0.3)  # as long as it still goes round, the sum grows
        assert before <= 2 * count
