"""A bridge and a remote broker that does what the test says."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from lockgate.access import hashes
from lockgate.client import Client
from lockgate.config.model import ConnectionConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.bridged import SECONDS, Bridged, Link, Remote, bridged, read_bridges

QUIET = "notifications false"
QUICK = "restart_timeout 1"
V5_LINE = "bridge_protocol_version mqttv50"


def bridge_to(remote: Remote, *lines: str) -> list[str]:
    return ["connection b", f"address 127.0.0.1:{remote.port}", "clientid gw", QUICK, *lines]


def client_of(bridge: Bridged, client_id: str = "c") -> Client:
    return Client(ConnectionConfig(url=bridge.url, client_id=client_id), session_expiry_seconds=60)


async def one_message(client: Client) -> tuple[str, bytes, int, bool]:
    async with asyncio.timeout(SECONDS):
        async for message in client.messages():
            return message.topic, message.payload, message.qos, message.retain
    raise AssertionError


# --- CONNECT ----------------------------------------------------------------------------------------------------------


async def test_a_bridge_says_who_it_is_and_what_it_wants(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = ["username u", "password p", "topic x/# in 1", "topic y/# out 2 l/ r/", "keepalive_interval 77"]
        async with bridged(tmp_path, *bridge_to(remote, *lines)):
            link = await remote.accept()
            connect = link.connect
            assert (connect.client_id, connect.version, connect.bridge) == ("gw", V3_1_1, True)
            assert (connect.username, connect.password, connect.keep_alive) == ("u", b"p", 77)
            assert not connect.clean_start
            assert connect.will == Will("$SYS/broker/connection/gw/state", b"0", 1, True)
            told = await link.expect(Publish)
            assert (told.topic, told.payload, told.qos, told.retain) == (connect.will.topic, b"1", 1, True)
            link.send(PubAck(told.packet_id))
            link.send(Publish("x/1", b"hello", 1, packet_id=1))
            assert await link.expect(PubAck) == PubAck(1)
            assert link.subscribed == {"x/#": 1}
            assert link.unsubscribed == ["r/y/#"]


@pytest.mark.parametrize("session", ["cleansession false", "cleansession true"])
async def test_packets_are_numbered_as_by_mosquittos_bridges(session: str, tmp_path: Path) -> None:
    """One after the other from 1, the notification first, then a packet for each line, then messages."""
    lines = [session, "topic a/# in 1", "topic b/# out 1", "topic c/# both 2"]
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, *lines)) as bridge, client_of(bridge) as here:
        link = await remote.accept()
        told = await link.expect(Publish)
        link.send(PubAck(told.packet_id))
        await bridge.until(lambda status: status["state"] == "connected")
        await here.publish("b/1", b"x", 1)
        message = await link.expect(Publish)
        assert (told.packet_id, link.packet_ids, message.packet_id) == (1, [2, 3, 4], 5)
        assert (list(link.subscribed), link.unsubscribed) == (["a/#", "c/#"], ["b/#"])


async def test_many_lines_are_asked_for_together(tmp_path: Path) -> None:
    lines = [QUIET, *(f"topic {number}/# in 1" for number in range(250)), "topic x out 1", "topic last in"]
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, *lines)) as bridge, client_of(bridge) as here:
        link = await remote.accept()
        await here.publish("x", b"", 1)
        await link.expect(Publish)
        assert len(link.packet_ids) == 5
        assert len(set(link.packet_ids)) == 5
        assert len(link.subscribed) == 251


async def test_a_remote_broker_that_never_answers_is_left(tmp_path: Path) -> None:
    """Its SUBACK is still to come when the Packet Identifiers have been round once."""
    async with Remote() as remote:
        lines = bridge_to(remote, QUIET, V5_LINE, "topic in in", "topic out out 1", "bridge_attempt_unsubscribe false")
        async with bridged(tmp_path, *lines) as bridge, client_of(bridge) as here:
            link = await remote.connection()
            link.grants = False
            link.send(ConnAck())
            publishing = [asyncio.create_task(here.publish("out", b"%d" % number, 1)) for number in range(1100)]
            ids: list[int] = []
            while (packet := await link.receive()) is not None:
                if isinstance(packet, Publish):
                    ids.append(packet.packet_id)
                    link.send(PubAck(packet.packet_id))
            assert link.packet_ids == [1]
            assert len(ids) > 1000
            assert ids == list(range(2, 2 + len(ids)))
            assert "has not answered our SUBSCRIBE 1" in str(bridge.status()["last_error"])
            link = await remote.accept()
            assert (await link.expect(Publish)).payload == b"%d" % len(ids)  # nothing is left out
            await asyncio.gather(*publishing)


@pytest.mark.parametrize(
    ("lines", "version", "is_bridge"),
    [
        (["bridge_protocol_version mqttv31"], V3_1, True),
        (["try_private false"], V3_1_1, False),
        ([V5_LINE], V5, False),
    ],
)
async def test_versions(tmp_path: Path, lines: list[str], version: int, is_bridge: bool) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in", QUIET, *lines)):
        link = await remote.connection()
        assert (link.connect.version, link.connect.bridge) == (version, is_bridge)
        assert link.connect.will is None


async def test_version_5_says_its_limits(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = [V5_LINE, "bridge_receive_maximum 7", "bridge_session_expiry_interval 60", "bridge_max_topic_alias 3"]
        async with bridged(tmp_path, *bridge_to(remote, "topic # both", QUIET, *lines)):
            link = await remote.accept()
            properties = link.connect.properties
            assert properties is not None
            assert properties.receive_maximum == 7
            assert properties.session_expiry_interval == 60
            assert properties.topic_alias_maximum == 3
            assert properties.maximum_packet_size == 2_000_000
            link.send(Publish("t", b"1", 0, properties=Properties(topic_alias=3)))
            link.send(Publish("", b"2", 1, packet_id=5, properties=Properties(topic_alias=3)))
            assert (await link.expect(PubAck)).packet_id == 5
            assert link.options == {"#": (True, True)}


async def test_a_session_is_kept_without_an_interval_unless_it_is_clean(tmp_path: Path) -> None:
    for line, interval in (("cleansession false", 0xFFFFFFFF), ("cleansession true", None)):
        async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in", QUIET, V5_LINE, line)):
            properties = (await remote.connection()).connect.properties
            assert properties is not None
            assert properties.session_expiry_interval == interval


# --- a remote broker that says no -------------------------------------------------------------------------------------


async def test_a_broker_of_version_3_is_spoken_to_in_version_3(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in", QUIET, V5_LINE)):
        link = await remote.connection()
        assert link.connect.version == V5
        link.send_bytes(bytes((0x20, 2, 0, 1)))
        for _ in range(2):  # and it stays so
            link = await remote.accept()
            assert link.connect.version == V3_1_1
            link.cut()


async def test_a_broker_that_knows_no_bridges_gets_a_plain_client(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in", QUIET)):
        link = await remote.connection()
        assert link.connect.bridge
        link.send(ConnAck(1))
        link = await remote.connection()
        assert (link.connect.bridge, link.connect.version) == (False, V3_1_1)


async def test_a_broker_without_retain_gets_none(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 1", V5_LINE)) as bridge:
        link = await remote.connection()
        link.send(ConnAck(reason_codes.RETAIN_NOT_SUPPORTED))
        link = await remote.accept(ConnAck(properties=Properties(retain_available=0)))
        assert link.connect.will is not None
        assert not link.connect.will.retain
        assert not (await link.expect(Publish)).retain
        async with client_of(bridge) as client:
            await client.publish("t", b"x", 1, retain=True)
        assert not (await link.expect(Publish)).retain


async def test_a_broker_with_less_qos_gets_less(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", V5_LINE)):
        for qos in (1, 0):
            link = await remote.connection()
            assert link.connect.will is not None
            assert link.connect.will.qos == qos
            link.send(ConnAck(reason_codes.QOS_NOT_SUPPORTED))
        link = await remote.connection()
        link.send(ConnAck(reason_codes.QOS_NOT_SUPPORTED))


async def test_a_broker_that_disconnects_for_what_it_does_not_take_gets_it_otherwise(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", V5_LINE, QUIET)) as bridge:
        link = await remote.accept()
        async with client_of(bridge) as client:
            await client.publish("t", b"x", 2, retain=True)
        for code in (reason_codes.RETAIN_NOT_SUPPORTED, reason_codes.QOS_NOT_SUPPORTED):
            packet = await link.expect(Publish)
            link.send(Disconnect(code))
            link = await remote.accept(ConnAck(session_present=True))
        packet = await link.expect(Publish)
        assert (packet.payload, packet.qos, packet.retain) == (b"x", 1, False)
        link.send(PubAck(packet.packet_id))
        await bridge.until(lambda status: status["queued"] == 0)


@pytest.mark.parametrize("maximum", [0, 1])
@pytest.mark.parametrize("qos", [1, 2])
async def test_messages_are_sent_at_the_qos_there_is(tmp_path: Path, maximum: int, qos: int) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", V5_LINE, QUIET)) as bridge:
        link = await remote.accept(ConnAck(properties=Properties(maximum_qos=maximum)))
        async with client_of(bridge) as client:
            for number in range(30):  # more than one window
                await client.publish("t", b"%d" % number, qos)
        for number in range(30):
            packet = await link.expect(Publish)
            assert (packet.payload, packet.qos) == (b"%d" % number, maximum)
            if maximum:
                link.send(PubAck(packet.packet_id))
        assert await bridge.until(lambda status: status["queued"] == 0)


async def test_a_refusal_is_told_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = bridge_to(Remote(), "topic # in", QUIET, "username u", "password secret-word")
    async with Remote() as remote:
        lines[1] = f"address 127.0.0.1:{remote.port}"
        async with bridged(tmp_path, *lines) as bridge:
            link = await remote.connection()
            link.send(ConnAck(5))
            status = await bridge.until(lambda status: status["last_error"])
            assert "Connection Refused" in str(status["last_error"])
            await remote.accept()
            await bridge.until(lambda status: status["state"] == "connected")
    assert "Connection Refused: the server refused the connection: 5" in caplog.text
    assert "secret-word" not in caplog.text
    assert "secret-word" not in repr(read_bridges(tmp_path, *lines))


async def test_a_refused_message_is_counted_and_a_busy_broker_asked_again(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 1", V5_LINE, QUIET)) as bridge:
        link = await remote.accept()
        async with client_of(bridge) as client:
            await client.publish("t", b"refused", 1)
            packet = await link.expect(Publish)
            link.send(PubAck(packet.packet_id, reason_codes.NOT_AUTHORIZED))
            await client.publish("t", b"kept", 1)
        packet = await link.expect(Publish)
        assert packet.payload == b"kept"
        link.send(PubAck(packet.packet_id, reason_codes.QUOTA_EXCEEDED))
        await link.closed()
        link = await remote.accept(ConnAck(session_present=True))
        packet = await link.expect(Publish)
        assert packet.payload == b"kept"
        link.send(PubAck(packet.packet_id))
        status = await bridge.until(lambda status: status["queued"] == 0)
        dropped = status["dropped"]
        assert isinstance(dropped, dict)
        assert dropped["refused"] == 1


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [1, 2])
async def test_no_more_is_in_flight_than_the_remote_broker_takes(tmp_path: Path, qos: int) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", V5_LINE, QUIET)) as bridge:
        link = await remote.accept(ConnAck(properties=Properties(receive_maximum=2)))
        async with client_of(bridge) as client:
            await asyncio.gather(*(client.publish("t", b"%d" % number, qos) for number in range(20)))
        open_ids: list[int] = []
        for number in range(20):
            packet = await link.expect(Publish)
            assert packet.payload == b"%d" % number
            open_ids.append(packet.packet_id)
            assert len(open_ids) <= 2
            if len(open_ids) == 2 or number == 19:
                for packet_id in open_ids:
                    if qos == 1:
                        link.send(PubAck(packet_id))
                    else:
                        link.send(PubRec(packet_id))
                        assert await link.expect(PubRel) == PubRel(packet_id)
                        if packet_id == open_ids[-1]:
                            for one in open_ids:
                                link.send(PubComp(one))
                open_ids.clear()


async def test_a_message_too_large_is_counted_and_the_next_one_goes(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = ["topic # out 2", QUIET, "bridge_max_packet_size 100"]
        async with bridged(tmp_path, *bridge_to(remote, *lines)) as bridge:
            link = await remote.accept()
            async with client_of(bridge) as client:
                for qos in (0, 1, 2):
                    await client.publish("t", b"x" * 101, qos)
                await client.publish("t", b"small", 2)
            assert (await link.expect(Publish)).payload == b"small"
            dropped = bridge.status()["dropped"]
            assert isinstance(dropped, dict)
            assert dropped["too_large"] == 3
            assert (await bridge.until(lambda status: status["queued"] == 1))["sent"] == 1


async def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    async with Remote() as remote:
        await remote.refuse()
        lines = ["max_queued_messages 5", *bridge_to(remote, "topic # out 1", QUIET)]
        async with bridged(tmp_path, *lines) as bridge:
            async with client_of(bridge) as client:
                for number in range(8):
                    await client.publish("t", b"%d" % number, 1)
            status = bridge.status()
            assert status["queued"] == 5
            dropped = status["dropped"]
            assert isinstance(dropped, dict)
            assert dropped["queue"] == 3
            await remote.listen()
            link = await remote.accept()
            assert [(await link.expect(Publish)).payload for _ in range(5)] == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_remote_broker_that_does_not_read_fills_no_memory(tmp_path: Path, qos: int) -> None:
    count, payload = 400, b"x" * 100_000
    lines = ["max_queued_messages 0", *bridge_to(Remote(), "topic # out 1", QUIET, V5_LINE)]
    async with Remote() as remote:
        lines[2] = f"address 127.0.0.1:{remote.port}"
        async with bridged(tmp_path, *lines) as bridge, client_of(bridge) as client:
            link = await remote.accept()
            await bridge.until(lambda status: status["state"] == "connected")
            for _ in range(count):
                await client.publish("t", payload, qos)
            if not qos:
                await client.publish("u", b"behind them", 1)
            sent = bridge.status()["sent"]
            assert isinstance(sent, int)
            assert sent * len(payload) < 20_000_000  # of 40 MB; most of it lies in the buffers of the sockets
            if qos:
                for _ in range(count):
                    link.send(PubAck((await link.expect(Publish)).packet_id))
                await bridge.until(lambda status: status["queued"] == 0)
            else:
                assert bridge.broker.statistics.dropped_slow


# --- what outlives a connection ---------------------------------------------------------------------------------------


async def test_qos_2_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", QUIET)) as bridge:
        link = await remote.accept()
        async with client_of(bridge) as client:
            for payload in (b"published", b"received", b"released"):
                await client.publish("t", payload, 2)
        ids = {}
        for _ in range(3):
            packet = await link.expect(Publish)
            ids[packet.payload] = packet.packet_id
        link.send(PubRec(ids[b"released"]))
        assert await link.expect(PubRel) == PubRel(ids[b"released"])
        link.cut()
        link = await remote.accept(ConnAck(session_present=True))
        assert await link.expect(PubRel) == PubRel(ids[b"released"])
        for payload in (b"published", b"received"):
            packet = await link.expect(Publish)
            assert (packet.payload, packet.packet_id, packet.dup) == (payload, ids[payload], True)
            link.send(PubRec(packet.packet_id))
        for payload in (b"published", b"received"):
            assert await link.expect(PubRel) == PubRel(ids[payload])
        link.send(*(PubComp(packet_id) for packet_id in ids.values()))
        await bridge.until(lambda status: status["queued"] == 0)


async def test_a_remote_broker_that_lost_its_session_gets_everything_anew(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 2", QUIET)) as bridge:
        link = await remote.accept()
        async with client_of(bridge) as client:
            for payload in (b"1", b"2"):
                await client.publish("t", payload, 2)
        ids = [(await link.expect(Publish)).packet_id for _ in range(2)]
        link.send(*(PubRec(packet_id) for packet_id in ids))
        assert [await link.expect(PubRel) for _ in range(2)] == [PubRel(packet_id) for packet_id in ids]
        link.cut()
        link = await remote.accept(ConnAck(session_present=False))
        for payload in (b"1", b"2"):
            packet = await link.expect(Publish)
            assert (packet.payload, packet.dup) == (payload, False)


async def test_a_message_of_the_remote_broker_comes_once_over_a_cut(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in 2", QUIET)) as bridge:  # noqa: SIM117
        async with client_of(bridge) as client:
            await client.subscribe([("#", 2)])
            link = await remote.accept()
            link.send(Publish("t", b"once", 2, packet_id=3))
            assert await link.expect(PubRec) == PubRec(3)
            link.cut()
            link = await remote.accept(ConnAck(session_present=True))
            link.send(Publish("t", b"once", 2, dup=True, packet_id=3))
            assert await link.expect(PubRec) == PubRec(3)
            link.send(PubRel(3))
            assert await link.expect(PubComp) == PubComp(3)
            link.send(PubRel(3))
            assert (await link.expect(PubComp)).packet_id == 3
            link.send(Publish("t", b"next", 0))
            assert await one_message(client) == ("t", b"once", 2, False)
            assert (await one_message(client))[1] == b"next"


async def test_with_local_cleansession_nothing_is_queued(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = ["topic # out 1", QUIET, "local_cleansession true"]
        async with bridged(tmp_path, *bridge_to(remote, *lines)) as bridge:
            link = await remote.accept()
            await bridge.until(lambda status: status["state"] == "connected")
            link.cut()
            await bridge.until(lambda status: status["state"] == "waiting")
            async with client_of(bridge) as client:
                await client.publish("t", b"away", 1)
                link = await remote.accept()
                await bridge.until(lambda status: status["state"] == "connected")
                await client.publish("t", b"there", 1)
            assert (await link.expect(Publish)).payload == b"there"


async def test_retained_messages_and_their_flag_cross(tmp_path: Path) -> None:
    for line, kept in (("bridge_outgoing_retain true", True), ("bridge_outgoing_retain false", False)):
        async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # both 1", QUIET, line)) as bridge:  # noqa: SIM117
            async with client_of(bridge) as client:
                await client.publish("before", b"1", 1, retain=True)
                link = await remote.accept()
                packets = [await link.expect(Publish)]
                await client.publish("during", b"2", 1, retain=True)
                packets.append(await link.expect(Publish))
                if packets[1].topic == "before":  # it was queued, and is retained
                    packets.append(await link.expect(Publish))
                assert [packet.retain for packet in packets][-1] is kept
                link.send(Publish("theirs", b"3", 1, True, packet_id=1))
                assert (await link.expect(PubAck)).packet_id == 1
                await client.subscribe([("theirs", 1)])
                assert await one_message(client) == ("theirs", b"3", 1, True)


async def test_what_is_retained_goes_again_only_where_it_may_be_missing(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 1", QUIET)) as bridge:

        async def heard(present: bool, *retained: str) -> Link:
            """Give the connection on which these retained messages came, and no other."""
            link = await remote.accept(ConnAck(session_present=present))
            await bridge.until(lambda status: status["state"] == "connected")
            await client.publish("end", b"", 1)
            found = []
            while True:
                packet = await link.expect(Publish)
                if packet.qos:
                    link.send(PubAck(packet.packet_id))
                if packet.topic == "end":
                    break
                found.append(packet.topic)
            assert sorted(found) == sorted(retained)
            return link

        async with client_of(bridge) as client:
            await client.publish("kept", b"1", 1, retain=True)
            link = await remote.accept()
            for _ in range(2):  # it waited, and is retained
                packet = await link.expect(Publish)
                link.send(PubAck(packet.packet_id))
            await bridge.until(lambda status: status["queued"] == 0)
            link.cut()
            await bridge.until(lambda status: status["state"] == "waiting")
            await client.publish("late", b"2", 0, retain=True)
            link = await heard(True, "late")
            link.cut()
            link = await heard(False, "kept", "late")


# --- start types ------------------------------------------------------------------------------------------------------


async def test_a_lazy_bridge_connects_when_enough_waits_and_goes_when_it_is_quiet(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = ["topic # out 1", QUIET, "start_type lazy", "threshold 4", "idle_timeout 1"]
        async with bridged(tmp_path, *bridge_to(remote, *lines)) as bridge:
            await bridge.until(lambda status: status["state"] == "idle")
            async with client_of(bridge) as client:
                for qos in (0, 0, 1, 1):
                    await client.publish("t", b"%d" % qos, qos)
            link = await remote.accept()
            assert sorted([(await link.expect(Publish)).payload for _ in range(4)]) == [b"0", b"0", b"1", b"1"]
            await link.closed()
            await bridge.until(lambda status: status["state"] == "idle")


async def test_a_bridge_that_starts_once_stays_away(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in", QUIET, "start_type once")) as one:
        link = await remote.accept()
        await one.until(lambda status: status["state"] == "connected")
        link.cut()
        await one.until(lambda status: status["state"] == "stopped")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_robin", ["true", "false"])
async def test_the_next_address_is_tried_at_once(tmp_path: Path, round_robin: str) -> None:
    async with Remote() as first, Remote() as second:
        await first.refuse()
        lines = ["connection b", f"address 127.0.0.1:{first.port} 127.0.0.1:{second.port}", "topic # in", QUIET, QUICK]
        async with bridged(tmp_path, *lines, f"round_robin {round_robin}") as bridge:
            link = await second.accept()
            await bridge.until(lambda status: status["address"] == f"127.0.0.1:{second.port}")
            await bridge.until(lambda status: status["state"] == "connected")
            await first.listen()
            link.cut()
            await (second if round_robin == "true" else first).accept()


async def test_a_bridge_returns_to_its_first_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.bridge.bridge._PROBE_SECONDS", 0.01)
    async with Remote() as first, Remote() as second:
        await first.refuse()
        lines = ["connection b", f"address 127.0.0.1:{first.port} 127.0.0.1:{second.port}", "topic # in", QUIET, QUICK]
        async with bridged(tmp_path, *lines) as bridge:
            link = await second.accept()
            await bridge.until(lambda status: status["state"] == "connected")
            await first.listen()
            assert isinstance(await link.receive(), Disconnect)
            probe = asyncio.create_task(first.accept())
            while True:  # the probe itself is a connection that says nothing
                try:
                    await probe
                    break
                except AssertionError:
                    probe = asyncio.create_task(first.accept())
            await bridge.until(lambda status: status["address"] == f"127.0.0.1:{first.port}")


async def test_the_socket_is_as_it_was_asked_for(tmp_path: Path) -> None:
    from lockgate.bridge.remote import open_socket

    async with Remote() as remote:
        lines = ["bridge_bind_address 127.0.0.2", "bridge_tcp_keepalive 11 3 4", "bridge_tcp_user_timeout 5000"]
        (config,) = read_bridges(tmp_path, *bridge_to(remote, "topic # in", *lines))
        sock = await open_socket(config, "127.0.0.1", remote.port)
        try:
            assert sock.getsockname()[0] == "127.0.0.2"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [11, 3, 4, 5000]
        finally:
            sock.close()


# --- notifications and reload -----------------------------------------------------------------------------------------


async def test_the_state_is_told_here_and_there(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # in")) as bridge:  # noqa: SIM117
        async with client_of(bridge) as client:
            await client.subscribe([("$SYS/broker/connection/gw/state", 1)])
            assert (await one_message(client))[1] == b"0"
            link = await remote.accept()
            assert (await one_message(client))[1] == b"1"
            assert (await link.expect(Publish)).payload == b"1"
            link.cut()
            assert (await one_message(client))[1] == b"0"


async def test_local_only_and_a_topic_of_ones_own(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = ["topic # both", "notifications_local_only true", "notification_topic bridge/state"]
        async with bridged(tmp_path, *bridge_to(remote, *lines)) as bridge, client_of(bridge) as client:
            await client.subscribe([("bridge/state", 1)])
            assert (await one_message(client))[1] == b"0"
            link = await remote.accept()
            assert link.connect.will is None
            assert (await one_message(client))[1] == b"1"
            await client.publish("t", b"first", 0)
            assert (await link.expect(Publish)).payload == b"first"  # of the state nothing was sent


async def test_reload_starts_ends_and_changes(tmp_path: Path) -> None:
    async with Remote() as one, Remote() as two:
        lines = bridge_to(one, "topic a/# in", QUIET)
        async with bridged(tmp_path, *lines) as bridge:
            link = await one.accept()
            await bridge.until(lambda status: status["state"] == "connected")
            other = ["connection c", f"address 127.0.0.1:{two.port}", "topic # out 1", QUIET]
            changed = [*lines, "topic b/# in", "bridge_reload_type immediate"]
            bridge.bridges.reload(read_bridges(tmp_path, *changed, *other))
            await two.accept()
            assert isinstance(await link.receive(), Disconnect)
            link = await one.accept()
            link.send(Publish("b/1", b"x", 1, packet_id=1))
            await link.expect(PubAck)
            assert set(link.subscribed) == {"a/#", "b/#"}
            bridge.bridges.reload(read_bridges(tmp_path, *other))
            assert isinstance(await link.receive(), Disconnect)
            async with asyncio.timeout(SECONDS):
                while "local.gw" in bridge.broker.sessions:
                    await asyncio.sleep(0.005)
            assert list(bridge.bridges.status()) == ["c"]


async def test_a_lazy_reload_waits_for_the_next_connection(tmp_path: Path) -> None:
    async with Remote() as remote:
        lines = bridge_to(remote, "topic a/# in 1", QUIET)
        async with bridged(tmp_path, *lines) as bridge:
            link = await remote.accept()
            await bridge.until(lambda status: status["state"] == "connected")
            bridge.bridges.reload(read_bridges(tmp_path, *lines, "topic b/# in 1"))
            link.send(Publish("a/1", b"x", 1, packet_id=1))
            await link.expect(PubAck)
            link.cut()
            link = await remote.accept()
            link.send(Publish("b/1", b"x", 1, packet_id=1))
            await link.expect(PubAck)


# --- the rest ---------------------------------------------------------------------------------------------------------


async def test_nobody_else_gets_the_session_of_a_bridge(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # out 1", QUIET)) as bridge:
        await remote.accept()
        intruder = client_of(bridge, "local.gw")
        with pytest.raises(Exception, match="not authorized"):
            await intruder.connect(retry=False)
        await bridge.until(lambda status: status["state"] == "connected")


async def test_a_message_that_comes_back_is_dropped_in_version_5(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic # both 1", QUIET, V5_LINE)) as bridge:
        link = await remote.accept()
        async with client_of(bridge) as client:
            await client.publish("t", b"round", 1)
            packet = await link.expect(Publish)
            link.send(PubAck(packet.packet_id))
            await client.publish("t", b"round", 1, properties=packet.properties)  # another broker brings it back
            link.send(Publish("t", b"in", 1, packet_id=8))
            assert (await link.expect(PubAck)).packet_id == 8
            await client.subscribe([("t", 1)])
            link.send(Publish("t", b"in", 1, packet_id=9))
            assert (await link.expect(PubAck)).packet_id == 9
            async for message in client.messages():
                link.send(Publish("t", b"in", 1, packet_id=10, properties=message.properties))
                break
            assert (await link.expect(PubAck)).packet_id == 10
            status = await bridge.until(lambda status: status["received"] == 3)
        dropped = status["dropped"]
        assert isinstance(dropped, dict)
        assert dropped["looped"] == 2
        assert status["sent"] == 1


async def test_a_topic_nobody_asked_for_is_acknowledged_and_counted(tmp_path: Path) -> None:
    async with Remote() as remote, bridged(tmp_path, *bridge_to(remote, "topic a/# in 2", QUIET)) as bridge:
        link = await remote.accept()
        link.send(Publish("b", b"x", 1, packet_id=1), Publish("b", b"x", 2, packet_id=2))
        assert await link.expect(PubAck) == PubAck(1)
        assert await link.expect(PubRec) == PubRec(2)
        link.send(PubRel(2))
        assert await link.expect(PubComp) == PubComp(2)
        dropped = bridge.status()["dropped"]
        assert isinstance(dropped, dict)
        assert dropped["unmapped"] == 2


# --- our own authorities ----------------------------------------------------------------------------------------------


async def test_rules_for_clients_are_not_for_a_bridge(tmp_path: Path) -> None:
    """Not even for one that was stored by an earlier process, or when the rules change while it is away."""
    acl_file = tmp_path / "acl"
    acl_file.write_text("topic write #\n")  # nobody may read anything
    lines = [f"acl_file {acl_file}"]
    async with Remote() as remote, bridged(tmp_path, *lines, *bridge_to(remote, "topic # both 1", QUIET)) as bridge:
        link = await remote.accept()
        await bridge.until(lambda status: status["state"] == "connected")
        link.cut()
        await bridge.until(lambda status: status["state"] == "waiting")
        bridge.broker.rules_changed()
        async with client_of(bridge) as client:
            await client.publish("t", b"x", 1)
        link = await remote.accept(ConnAck(session_present=True))
        assert (await link.expect(Publish)).payload == b"x"


@pytest.mark.parametrize(("password", "good"), [("p", True), ("wrong", False)])
async def test_a_local_user_is_looked_at(tmp_path: Path, password: str, good: bool) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"u:{hashes.make(b'p', 'sha512-pbkdf2', 1)}\n")
    passwords.chmod(0o600)
    own = [f"password_file {passwords}", "allow_anonymous true"]
    lines = ["topic # in 1", QUIET, "local_username u", f"local_password {password}"]
    async with Remote() as remote, bridged(tmp_path, *own, *bridge_to(remote, *lines)) as bridge:
        link = await remote.accept()
        if good:
            await bridge.until(lambda status: status["state"] == "connected")
            link.send(Publish("t", b"x", 1, packet_id=1))
            assert await link.expect(PubAck) == PubAck(1)
            assert bridge.broker.sessions["local.gw"].username == "u"
        else:
            status = await bridge.until(lambda status: "our own broker" in str(status["last_error"]))
            assert "wrong" not in str(status)
            await link.closed()
