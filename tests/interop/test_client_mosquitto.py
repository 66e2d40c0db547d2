"""Our client and Debian's mosquitto."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from lockgate.client import Client, ConnectionRefused, Message, PublishRefused
from lockgate.config.model import ConnectionConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import SubscriptionRequest, Will
from lockgate.mqtt.properties import Properties
from tests.support.peers import Mosquitto, free_port, program

pytestmark = pytest.mark.peers
Version = Literal["3.1.1", "5"]
VERSIONS: tuple[Version, ...] = ("3.1.1", "5")
BOTH = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    peer = Mosquitto(tmp_path_factory.mktemp("mosquitto"), ["max_queued_messages 0"])
    yield peer
    peer.stop()


def to(peer: Mosquitto, version: Version, client_id: str | None = None, url: str | None = None) -> ConnectionConfig:
    return ConnectionConfig(url=url or peer.url, client_id=client_id or uuid.uuid4().hex, version=version)


async def take(client: Client, count: int, seconds: float = 10.0) -> list[Message]:
    taken: list[Message] = []
    async with asyncio.timeout(seconds):
        async for message in client.messages():
            taken.append(message)
            if len(taken) == count:
                break
    return taken


@BOTH
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_come_back_whole_and_in_order(mosquitto: Mosquitto, version: Version, qos: int) -> None:
    topic = uuid.uuid4().hex
    payloads = [b"%d" % number + b"x" * number for number in range(300)]
    async with Client(to(mosquitto, version)) as client:
        assert await client.subscribe([(f"{topic}/+", qos)]) == [qos]
        await asyncio.gather(*(client.publish(f"{topic}/a", payload, qos) for payload in payloads))
        got = await take(client, len(payloads))
    assert [message.payload for message in got] == payloads
    assert {(message.qos, message.topic, message.duplicate) for message in got} == {(qos, f"{topic}/a", False)}


@BOTH
async def test_a_large_message_passes(mosquitto: Mosquitto, version: Version) -> None:
    topic, payload = uuid.uuid4().hex, os.urandom(3_000_000)
    async with Client(to(mosquitto, version)) as client:
        await client.subscribe([(topic, 1)])
        await client.publish(topic, payload, 1)
        assert (await take(client, 1))[0].payload == payload


@BOTH
async def test_mosquittos_own_clients_hear_and_are_heard(mosquitto: Mosquitto, version: Version) -> None:
    topic = uuid.uuid4().hex
    flag = {"3.1.1": "mqttv311", "5": "mqttv5"}[version]
    async with Client(to(mosquitto, version)) as client:
        await client.subscribe([(f"{topic}/to-us", 2)])
        arguments = ["-h", "127.0.0.1", "-p", str(mosquitto.port), "-V", flag, "-q", "2"]
        subscriber = subprocess.Popen(
            [program("mosquitto_sub"), *arguments, "-t", f"{topic}/#", "-C", "2", "-W", "10"], stdout=subprocess.PIPE
        )
        await asyncio.to_thread(
            subprocess.run,
            [program("mosquitto_pub"), *arguments, "-t", f"{topic}/to-us", "-m", "hello", "-r"],
            check=True,
            timeout=10,
        )
        assert (await take(client, 1))[0].payload == b"hello"
        await client.publish(f"{topic}/to-them", b"good day", 2, retain=True)
        output, _ = await asyncio.to_thread(subscriber.communicate, timeout=10)
        assert sorted(output.split(b"\n")[:2]) == [b"good day", b"hello"]


async def test_v5_properties_travel(mosquitto: Mosquitto) -> None:
    topic = uuid.uuid4().hex
    properties = Properties(
        content_type="application/json",
        response_topic="answer",
        correlation_data=b"\x00\x01",
        payload_format_indicator=1,
        user_properties=(("lockgate-id", "gateway/1"), ("lockgate-id", "again")),
    )
    async with Client(to(mosquitto, "5")) as client:
        await client.subscribe([SubscriptionRequest(topic, 1)], Properties(subscription_identifiers=(7,)))
        await client.publish(topic, b"{}", 1, properties=properties)
        (message,) = await take(client, 1)
    assert message.properties is not None
    assert message.properties.subscription_identifiers == (7,)
    message.properties.subscription_identifiers = ()
    assert message.properties == properties


@BOTH
async def test_retained_messages_and_unsubscribe(mosquitto: Mosquitto, version: Version) -> None:
    topic = uuid.uuid4().hex
    async with Client(to(mosquitto, version)) as client:
        await client.publish(topic, b"kept", 1, retain=True)
        await client.subscribe([(topic, 1)])
        (message,) = await take(client, 1)
        assert (message.payload, message.retain) == (b"kept", True)
        codes = await client.unsubscribe([topic])
        assert codes == ([0] if version == "5" else [])
        await client.publish(topic, b"unheard", 1)
        await client.subscribe([(f"{topic}/other", 1)])
        await client.publish(f"{topic}/other", b"heard", 1)
        assert [message.payload for message in await take(client, 1)] == [b"heard"]


@BOTH
async def test_a_will_is_published_when_the_connection_breaks(mosquitto: Mosquitto, version: Version) -> None:
    topic = uuid.uuid4().hex
    async with Client(to(mosquitto, version)) as watcher:
        await watcher.subscribe([(topic, 1)])
        dying = Client(to(mosquitto, version), will=Will(topic, b"gone", 1))
        await dying.connect()
        assert dying._connection is not None
        dying._connection.abort("the test pulls the plug")
        assert (await take(watcher, 1))[0].payload == b"gone"
        await dying.disconnect()


@BOTH
async def test_the_session_keeps_messages_while_we_are_away(mosquitto: Mosquitto, version: Version) -> None:
    topic, client_id = uuid.uuid4().hex, uuid.uuid4().hex
    client = Client(to(mosquitto, version, client_id), session_expiry_seconds=60)
    await client.connect()
    assert not client.session_present
    await client.subscribe([(topic, 1)])
    await client.disconnect()
    async with Client(to(mosquitto, version)) as other:
        await other.publish(topic, b"while away", 1)
    async with Client(to(mosquitto, version, client_id), session_expiry_seconds=60) as client:
        assert client.session_present
        assert (await take(client, 1))[0].payload == b"while away"
    async with Client(to(mosquitto, version, client_id), clean_start=True) as client:
        assert not client.session_present


@BOTH
@pytest.mark.parametrize("qos", [1, 2])
async def test_unacknowledged_messages_come_again_with_dup(mosquitto: Mosquitto, version: Version, qos: int) -> None:
    topic, client_id = uuid.uuid4().hex, uuid.uuid4().hex
    first = Client(to(mosquitto, version, client_id), session_expiry_seconds=60, manual_ack=True)
    await first.connect()
    await first.subscribe([(topic, qos)])
    await first.publish(topic, b"one", qos)
    await first.publish(topic, b"two", qos)
    one, two = await take(first, 2)
    first.acknowledge(two)  # must wait for `one`: acknowledgements leave in the order of arrival
    await first.publish(topic + "/other", b"", qos)  # a round trip
    await first.disconnect()
    async with Client(to(mosquitto, version, client_id), session_expiry_seconds=60, manual_ack=True) as second:
        again = await take(second, 2)
        assert [(m.payload, m.duplicate, m.packet_id) for m in again] == [
            (b"one", True, one.packet_id),
            (b"two", True, two.packet_id),
        ]
        for message in again:
            second.acknowledge(message)
        await second.publish(topic + "/other", b"", qos)
    async with Client(to(mosquitto, version, client_id), session_expiry_seconds=60, manual_ack=True) as third:
        await third.publish(topic, b"three", qos)
        assert [m.payload for m in await take(third, 1)] == [b"three"]


async def test_v5_an_assigned_client_identifier_is_kept(mosquitto: Mosquitto) -> None:
    async with Client(ConnectionConfig(url=mosquitto.url, version="5"), clean_start=True) as client:
        assert client.client_id


@BOTH
async def test_bad_credentials_are_told_at_once(tmp_path: Path, version: Version) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run([program("mosquitto_passwd"), "-b", "-c", str(passwords), "ann", "se:cr@t"], check=True)
    peer = Mosquitto(tmp_path, [f"password_file {passwords}"], anonymous=False)
    try:
        good = f"mqtt://ann:se%3Acr%40t@127.0.0.1:{peer.port}"
        async with Client(to(peer, version, url=good)) as client:
            assert client.connected
        with pytest.raises(ConnectionRefused) as refused:
            await Client(to(peer, version, url=good.replace("se%3A", "x"))).connect()
        assert refused.value.permanent
        assert refused.value.reason_code == {"3.1.1": 5, "5": reason_codes.NOT_AUTHORIZED}[version]
    finally:
        peer.stop()


async def test_a_connection_that_nobody_takes_fails_at_once_without_retry() -> None:
    with pytest.raises(ConnectionRefusedError):
        await Client(ConnectionConfig(url=f"mqtt://127.0.0.1:{free_port()}", client_id="c")).connect(retry=False)


async def test_v5_what_the_server_forbids_is_said_clearly(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite open/#\n")
    peer = Mosquitto(tmp_path, ["max_qos 1", "retain_available false", "max_packet_size 1000", f"acl_file {acl}"])
    try:
        async with Client(to(peer, "5")) as client:
            for qos, retain, payload, code in (
                (2, False, b"", reason_codes.QOS_NOT_SUPPORTED),
                (1, True, b"", reason_codes.RETAIN_NOT_SUPPORTED),
                (1, False, b"x" * 1000, reason_codes.PACKET_TOO_LARGE),
                (0, False, b"x" * 1000, reason_codes.PACKET_TOO_LARGE),
            ):
                with pytest.raises(PublishRefused) as refused:
                    await client.publish("open/a", payload, qos, retain)
                assert refused.value.reason_code == code
            with pytest.raises(PublishRefused) as refused:
                await client.publish("closed/a", b"", 1)
            assert refused.value.reason_code == reason_codes.NOT_AUTHORIZED
            assert await client.publish("open/nobody", b"", 1) == reason_codes.NO_MATCHING_SUBSCRIBERS
            assert client.connected
    finally:
        peer.stop()


async def test_v5_publish_waits_for_the_servers_receive_maximum(tmp_path: Path) -> None:
    peer = Mosquitto(tmp_path, ["max_inflight_messages 3"])
    try:
        async with Client(to(peer, "5")) as client:
            assert client.connack is not None
            assert client.connack.properties is not None
            assert client.connack.properties.receive_maximum == 3
            await client.subscribe([("t", 2)])
            await asyncio.gather(*(client.publish("t", b"%d" % n, 2) for n in range(100)))
            assert [m.payload for m in await take(client, 100)] == [b"%d" % n for n in range(100)]
    finally:
        peer.stop()


async def test_v5_a_backlog_beyond_our_receive_maximum_gets_through(tmp_path: Path) -> None:
    """Each PUBACK makes Mosquitto 2.0.11 send up to Receive Maximum of what is queued, however much is in flight."""
    peer = Mosquitto(tmp_path, ["max_queued_messages 0"])
    try:
        kept = to(peer, "5", "kept")
        async with Client(kept, clean_start=True, session_expiry_seconds=600) as client:
            await client.subscribe([("t", 1)])
        async with Client(to(peer, "5")) as publisher:
            await asyncio.gather(*(publisher.publish("t", b"%d" % n, 1) for n in range(200)))
        async with Client(
            kept, clean_start=False, session_expiry_seconds=600, receive_maximum=10, queue_maximum=500, manual_ack=True
        ) as client:
            taken = await take(client, 10)
            client.acknowledge(taken[0])
            taken += await take(client, 5)  # one was acknowledged, and still more than one came
            for message in taken[1:]:
                client.acknowledge(message)
            while len(taken) < 200:
                taken += await take(client, 1)
                client.acknowledge(taken[-1])
            assert {message.connection for message in taken} == {1}
        assert [message.payload for message in taken] == [b"%d" % n for n in range(200)]
    finally:
        peer.stop()
