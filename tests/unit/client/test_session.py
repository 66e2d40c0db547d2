"""The client's Session against a server played by hand: packets in, packets out."""

from __future__ import annotations

import pytest

from lockgate.client.errors import ClientError, ConnectionLost, PublishRefused, SubscribeRefused
from lockgate.client.message import Message
from lockgate.client.session import Session
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.errors import ProtocolError
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Packet,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.mqtt.properties import Properties

Outcome = list[int] | ClientError


class Ends:
    """A Session, what it gave out, what became of what it was asked."""

    def __init__(self, version: int = V5, **options: int) -> None:
        self.version = version
        self.messages: list[Message] = []
        self.outcomes: dict[str, Outcome] = {}
        self.session = Session(version, self.messages.append, **options)

    def connect(self, present: bool = False, **properties: int) -> list[Packet]:
        self.session.connected(ConnAck(0, present, Properties(**properties) if properties else None))  # type: ignore[arg-type]
        return self.sent()

    def publish(self, name: str, qos: int) -> None:
        self.session.publish(name, b"", qos, False, None, lambda outcome: self.outcomes.update({name: outcome}))

    def receive(self, *packets: Packet) -> list[Packet]:
        for packet in packets:
            self.session.receive(packet)
        return self.sent()

    def sent(self) -> list[Packet]:
        decoder = Decoder(self.version)
        decoder.feed(self.session.take_output())
        packets: list[Packet] = []
        while (packet := decoder.next_packet()) is not None:
            packets.append(packet)
        return packets


def test_unacknowledged_publishes_are_sent_again_with_dup_in_order_when_the_session_is_present() -> None:
    ends = Ends()
    ends.connect()
    for name, qos in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        ends.publish(name, qos)
    ends.sent()
    assert ends.receive(PubRec(2)) == [PubRel(2)]
    ends.session.disconnected()
    assert ends.connect(present=True) == [
        PubRel(2),
        Publish("a", qos=1, dup=True, packet_id=1),
        Publish("c", qos=1, dup=True, packet_id=3),
        Publish("d", qos=2, dup=True, packet_id=4),
    ]
    ends.receive(PubComp(2), PubAck(1), PubAck(3), PubRec(4), PubComp(4))
    assert ends.outcomes == {"a": [0], "b": [0], "c": [0], "d": [0]}
    assert ends.session.unacknowledged == 0


def test_without_the_session_they_are_sent_anew_after_the_subscriptions() -> None:
    ends = Ends()
    ends.connect()
    request = SubscriptionRequest("t/#", 2)
    ends.session.subscribe([request], None, lambda outcome: None)
    ends.sent()
    ends.receive(SubAck(1, [2]))
    ends.publish("a", 1)
    ends.publish("b", 2)
    ends.sent()
    ends.receive(PubRec(3))
    ends.session.disconnected()
    assert ends.connect() == [
        Subscribe(4, [request]),
        Publish("b", qos=2, packet_id=3),
        Publish("a", qos=1, packet_id=2),
    ]


def test_the_servers_receive_maximum_is_kept_over_a_reconnect_too() -> None:
    ends = Ends()
    ends.connect(receive_maximum=2)
    for name in "abc":
        ends.publish(name, 1)
    assert [packet.packet_id for packet in ends.sent() if isinstance(packet, Publish)] == [1, 2]
    ends.session.disconnected()
    assert ends.connect(present=True, receive_maximum=1) == [Publish("a", qos=1, dup=True, packet_id=1)]
    assert ends.receive(PubAck(1)) == [Publish("b", qos=1, dup=True, packet_id=2)]
    assert ends.receive(PubAck(2)) == [Publish("c", qos=1, packet_id=3)]


def test_what_waited_and_is_abandoned_is_not_sent() -> None:
    ends = Ends()
    outgoing = ends.session.publish("a", b"", 1, False, None, lambda outcome: None)
    assert outgoing is not None
    ends.session.abandon(outgoing)
    assert ends.connect() == []


def test_acknowledgements_leave_in_the_order_of_arrival() -> None:
    ends = Ends()
    ends.connect()
    ends.receive(Publish("a", qos=1, packet_id=7), Publish("b", qos=2, packet_id=8), Publish("c", qos=1, packet_id=9))
    a, b, c = ends.messages
    ends.session.acknowledge(c)
    ends.session.acknowledge(b)
    assert ends.sent() == []
    ends.session.acknowledge(a)
    assert ends.sent() == [PubAck(7), PubRec(8), PubAck(9)]
    assert ends.receive(PubRel(8)) == [PubComp(8)]


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("acknowledged_meanwhile", [False, True])
def test_what_the_user_still_holds_is_not_given_out_twice(qos: int, acknowledged_meanwhile: bool) -> None:
    ends = Ends(V3_1_1)
    ends.connect()
    ends.receive(Publish("a", b"x", qos=qos, packet_id=7))
    (message,) = ends.messages
    ends.session.disconnected()
    if acknowledged_meanwhile:
        ends.session.acknowledge(message)
    assert ends.connect(present=True) == []
    answer = ends.receive(Publish("a", b"x", qos=qos, dup=True, packet_id=7))
    if not acknowledged_meanwhile:
        assert answer == []
        ends.session.acknowledge(message)
        answer = ends.sent()
    assert answer == [PubAck(7) if qos == 1 else PubRec(7)]
    assert ends.messages == [message]


def test_an_old_acknowledgement_never_serves_another_message_with_its_identifier() -> None:
    ends = Ends()
    ends.connect()
    ends.receive(Publish("a", b"old", qos=1, packet_id=7))
    old = ends.messages[0]
    for present, dup in ((True, True), (True, False), (False, False)):
        ends.session.disconnected()
        ends.connect(present=present)
        ends.receive(Publish("a", b"new", qos=1, dup=dup, packet_id=7))
        ends.session.acknowledge(old)
        assert ends.sent() == []
    assert [message.payload for message in ends.messages] == [b"old", b"new", b"new", b"new"]
    assert [message.session for message in ends.messages] == [1, 1, 1, 2]


def test_qos_2_comes_once_when_the_pubrec_was_lost() -> None:
    ends = Ends()
    ends.connect()
    ends.receive(Publish("a", qos=2, packet_id=7))
    ends.session.acknowledge(ends.messages[0])
    ends.session.disconnected()
    ends.connect(present=True)
    assert ends.receive(Publish("a", qos=2, dup=True, packet_id=7)) == [PubRec(7)]
    assert ends.receive(PubRel(7)) == [PubComp(7)]
    assert len(ends.messages) == 1
    assert ends.receive(PubRel(7)) == [PubComp(7, reason_codes.PACKET_IDENTIFIER_NOT_FOUND)]


def test_v5_more_than_our_receive_maximum_is_complained_of_once_and_taken(caplog: pytest.LogCaptureFixture) -> None:
    """As Mosquitto 2.0.11 does behind a backlog; to end the connection would only make it send them all again."""
    ends = Ends(receive_maximum=1)
    ends.connect()
    for packet_id in (1, 2, 3):
        ends.receive(Publish("a", qos=1, packet_id=packet_id))
    assert [message.packet_id for message in ends.messages] == [1, 2, 3]
    assert caplog.messages == ["the server sends more than our Receive Maximum of 1"]


@pytest.mark.parametrize(
    ("packet", "reason_code"),
    [
        (Publish("a", properties=Properties(topic_alias=1)), reason_codes.TOPIC_ALIAS_INVALID),
        (Subscribe(1, [SubscriptionRequest("a")]), reason_codes.PROTOCOL_ERROR),
        (ConnAck(), reason_codes.PROTOCOL_ERROR),
    ],
)
def test_what_a_server_must_not_send(packet: Packet, reason_code: int) -> None:
    ends = Ends()
    ends.connect()
    with pytest.raises(ProtocolError) as raised:
        ends.receive(packet)
    assert raised.value.reason_code == reason_code


def test_refusals_reach_who_asked() -> None:
    ends = Ends()
    ends.connect()
    ends.publish("a", 2)
    ends.sent()
    ends.receive(PubRec(1, reason_codes.NOT_AUTHORIZED, Properties(reason_string="no")))
    refused = ends.outcomes["a"]
    assert isinstance(refused, PublishRefused)
    assert str(refused) == "0x87 not authorized: no"
    outcomes: list[Outcome] = []
    ends.session.subscribe([SubscriptionRequest("x"), SubscriptionRequest("y")], None, outcomes.append)
    ends.sent()
    ends.receive(SubAck(2, [0, 0x87]))
    assert isinstance(outcomes[0], SubscribeRefused)
    assert outcomes[0].refused == [("y", 0x87)]


def test_the_end_is_told_to_everyone_who_waits() -> None:
    ends = Ends()
    ends.publish("a", 1)
    ends.connect()
    ends.publish("b", 2)
    end = ConnectionLost("over")
    ends.session.close(end)
    assert ends.outcomes == {"a": end, "b": end}
