"""What is played on both brokers. A scenario's name is its function's; the docstring says what it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.interop.scenarios.scene import Filter, Kind, Scene, Will

Play = Callable[[Scene], None]


@dataclass(frozen=True)
class Scenario:
    """One row: `version` is the lowest it needs, `needs` what some clients lack, `slow` if it lets time pass."""

    name: str
    shows: str
    play: Play
    version: int
    needs: frozenset[str]
    slow: bool

    def suits(self, kind: Kind) -> bool:
        """Whether a client can play it."""
        return kind.version >= self.version and not self.needs & kind.lacks


SCENARIOS: list[Scenario] = []


def scenario(version: int = 3, needs: tuple[str, ...] = (), slow: bool = False) -> Callable[[Play], Play]:
    """Enter a function into the list."""

    def enter(play: Play) -> Play:
        SCENARIOS.append(
            Scenario(play.__name__, (play.__doc__ or "").rstrip("."), play, version, frozenset(needs), slow)
        )
        return play

    return enter


# --- connections and Sessions ---------------------------------------------------------------------------------------


@scenario()
def a_clean_session_leaves_nothing(s: Scene) -> None:
    """A clean Session ends with its connection."""
    first = s.connect("c")
    first.subscribe("t", qos=1)
    first.disconnect()
    s.connect("pub").publish("t", qos=1)
    again = s.connect("c", clean=False)
    again.barrier()


@scenario()
def a_session_is_resumed_and_ended(s: Scene) -> None:
    """Session Present, Subscriptions that survive, and their end by a clean start."""
    s.durable("c").disconnect()
    first = s.durable("c")
    first.subscribe("t", qos=1)
    first.disconnect()
    second = s.durable("c")
    s.connect("pub").publish("t", "seen", qos=1)
    s.settle()
    second.disconnect()
    third = s.connect("c", clean=True)
    s.connect("pub2").publish("t", "unseen", qos=1)
    s.settle()
    third.disconnect()


@scenario(version=5, slow=True)
def a_session_expires(s: Scene) -> None:
    """The Session Expiry Interval counts from the end of the connection."""
    first = s.durable("c", expiry=1)
    first.subscribe("t", qos=1)
    first.disconnect()
    s.pass_time(3.0)
    s.durable("c")


@scenario(version=5, needs=("disconnect properties",))
def disconnect_changes_the_expiry(s: Scene) -> None:
    """DISCONNECT with a Session Expiry Interval of 0 ends the Session."""
    first = s.durable("c")
    first.subscribe("t", qos=1)
    first.disconnect(session_expiry_interval=0)
    s.durable("c")


@scenario(version=4, needs=("empty client id",))
def an_empty_client_id_is_replaced(s: Scene) -> None:
    """A Server invents a Client Identifier."""
    client = s.connect("c", client_id="")
    client.subscribe("t")
    s.connect("pub").publish("t")


@scenario()
def a_takeover_ends_the_former_connection(s: Scene) -> None:
    """The second connection of a Client Identifier ends the first."""
    first = s.connect("c")
    first.subscribe("t", qos=1)
    second = s.connect("c")
    first.expect_closed()
    second.subscribe("t", qos=1)
    s.connect("pub").publish("t", qos=1)


@scenario()
def a_takeover_keeps_the_session(s: Scene) -> None:
    """A durable Session goes over to the new connection."""
    first = s.durable("c")
    first.subscribe("t", qos=1)
    second = s.durable("c")
    first.expect_closed()
    s.connect("pub").publish("t", qos=1)
    second.expect(1)


@scenario(slow=True)
def a_quiet_client_stays_by_its_pings(s: Scene) -> None:
    """A Keep Alive of two seconds, and a client that sends nothing but PINGREQ."""
    client = s.connect("c", keep_alive=2)
    client.subscribe("t")
    s.pass_time(4.5)
    s.connect("pub").publish("t")


# --- Wills --------------------------------------------------------------------------------------------------------


@scenario()
def a_will_is_sent_when_a_connection_breaks(s: Scene) -> None:
    """A Will at each QoS after the connection broke."""
    watcher = s.connect("w")
    watcher.subscribe("will/#", qos=2)
    for qos in (0, 1, 2):
        s.connect(f"c{qos}", will=Will(topic=f"will/{qos}", qos=qos)).drop()
        watcher.expect(1)


@scenario()
def a_will_is_not_sent_after_disconnect(s: Scene) -> None:
    """DISCONNECT takes the Will back."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    s.connect("c", will=Will(topic="will", qos=1)).disconnect()
    s.connect("c").barrier()


@scenario()
def a_retained_will_stays(s: Scene) -> None:
    """A Will with RETAIN is found by later subscribers."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    s.connect("c", will=Will(topic="will", qos=1, retain=True)).drop()
    watcher.expect(1)
    late = s.connect("late")
    late.subscribe("will", qos=1)
    late.expect(1)


@scenario()
def a_takeover_sends_the_will(s: Scene) -> None:
    """The Will of a connection that is taken over."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    first = s.connect("c", will=Will(topic="will", qos=1))
    s.connect("c")
    first.expect_closed()
    watcher.expect(1)


@scenario(version=5, needs=("disconnect reason",))
def disconnect_may_ask_for_the_will(s: Scene) -> None:
    """DISCONNECT with 0x04 sends the Will."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    s.connect("c", will=Will(topic="will", qos=1)).disconnect(0x04)
    watcher.expect(1)


@scenario(version=5, slow=True)
def a_will_waits_for_its_delay(s: Scene) -> None:
    """The Will Delay Interval passes before the Will is sent."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    s.connect("c", will=Will(topic="will", qos=1, delay=2), session_expiry_interval=100).drop()
    s.settle()
    watcher.expect(1)


@scenario(version=5, slow=True)
def a_client_that_returns_keeps_its_will(s: Scene) -> None:
    """A client that is back within the Will Delay Interval has no Will sent."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    s.connect("c", will=Will(topic="will", qos=1, delay=1), session_expiry_interval=100).drop()
    s.connect("c", clean=False, session_expiry_interval=100)
    s.pass_time(2.5)


@scenario(version=5, needs=("will properties",))
def a_will_has_properties(s: Scene) -> None:
    """What describes a Will arrives with it."""
    watcher = s.connect("w")
    watcher.subscribe("will", qos=1)
    told = {"content_type": "text/plain", "user_properties": (("k", "v"),), "message_expiry_interval": 60}
    s.connect("c", will=Will(topic="will", qos=1, properties=dict(told))).drop()
    watcher.expect(1)


# --- QoS ------------------------------------------------------------------------------------------------------------


@scenario()
def every_qos_meets_every_qos(s: Scene) -> None:
    """A message arrives at the lower of the two QoS."""
    for wanted in (0, 1, 2):
        s.connect(f"s{wanted}").subscribe("t/#", qos=wanted)
    publisher = s.connect("pub")
    for qos in (0, 1, 2):
        publisher.publish(f"t/{qos}", f"at {qos}", qos=qos)


@scenario()
def many_messages_arrive_in_order(s: Scene) -> None:
    """More messages than either side may have in flight, in their order."""
    subscriber = s.connect("s")
    subscriber.subscribe("t/+", qos=2)
    publisher = s.connect("pub")
    for number in range(60):
        publisher.publish(f"t/{number % 3}", str(number), qos=number % 3)
    subscriber.expect(60)


@scenario()
def a_queue_waits_for_its_client(s: Scene) -> None:
    """QoS 1 and 2 wait for an absent client, QoS 0 does not."""
    first = s.durable("c")
    first.subscribe("t/#", qos=2)
    first.disconnect()
    publisher = s.connect("pub")
    for number in range(12):
        publisher.publish(f"t/{number % 3}", str(number), qos=number % 3)
    s.durable("c").expect(8)


@scenario()
def nobody_listens(s: Scene) -> None:
    """Version 5 tells the publisher."""
    publisher = s.connect("pub")
    for qos in (0, 1, 2):
        publisher.publish("t", qos=qos)
        publisher.publish("r", qos=qos, retain=True)


@scenario()
def a_client_gets_what_it_publishes(s: Scene) -> None:
    """Without No Local a publisher is a subscriber like any other."""
    client = s.connect("c")
    client.subscribe("t", qos=2)
    for qos in (0, 1, 2):
        client.publish("t", f"own {qos}", qos=qos)


@scenario()
def a_large_payload_passes(s: Scene) -> None:
    """One MiB, and none at all."""
    subscriber = s.connect("s")
    subscriber.subscribe("t", qos=1)
    publisher = s.connect("pub")
    publisher.publish("t", bytes(range(256)) * 4096, qos=1)
    publisher.publish("t", b"", qos=1)
    subscriber.expect(2)


@scenario()
def topics_are_unicode(s: Scene) -> None:
    """Topics beyond ASCII, empty levels, blanks, and letter case."""
    subscriber = s.connect("s")
    subscriber.subscribe("ü/#", "//x", "a b", "T", "𝄞/+", qos=1)
    publisher = s.connect("pub")
    for topic in ("ü/é", "//x", "a b", "T", "t", "𝄞/€", "𝄞"):
        publisher.publish(topic, topic, qos=1)


@scenario()
def topics_may_be_deep(s: Scene) -> None:
    """A hundred levels."""
    deep = "/".join("l" * 100)
    s.connect("exact").subscribe(deep, qos=1)
    s.connect("below").subscribe("l/#", qos=1)
    s.connect("pub").publish(deep, qos=1)


# --- Subscriptions ----------------------------------------------------------------------------------------------


@scenario()
def wildcards_match(s: Scene) -> None:
    """One level, many levels, and the parent of many."""
    for name, topic_filter in (
        ("one", "a/+"),
        ("many", "a/#"),
        ("both", "+/+/#"),
        ("inner", "a/+/c"),
        ("end", "a/b/c/#"),
    ):
        s.connect(name).subscribe(topic_filter)
    publisher = s.connect("pub")
    for topic in ("a", "a/b", "a/b/c", "a//c", "b/c", "a/b/c/d", "/a"):
        publisher.publish(topic, topic)


@scenario()
def wildcards_do_not_reach_dollar_topics(s: Scene) -> None:
    """`#` and `+` at the front leave topics that begin with $ alone."""
    own = f"!$own/{s.kind.name}"
    for name, topic_filter in (("plus", f"!+/{s.kind.name}/d"), ("exact", f"{own}/d"), ("below", f"{own}/#")):
        s.connect(name).subscribe(topic_filter, qos=1)
    s.connect("pub").publish(f"{own}/d", qos=1)


@scenario()
def overlapping_subscriptions(s: Scene) -> None:
    """What a client gets whose filters overlap."""
    subscriber = s.connect("s")
    subscriber.subscribe("a/#", qos=0)
    subscriber.subscribe("a/+", qos=1)
    subscriber.subscribe("a/b", qos=2)
    s.connect("pub").publish("a/b", qos=2)


@scenario()
def a_subscription_is_replaced(s: Scene) -> None:
    """The same filter again changes the QoS and brings retained messages anew."""
    publisher = s.connect("pub")
    publisher.publish("t", "kept", qos=1, retain=True)
    subscriber = s.connect("s")
    subscriber.subscribe("t", qos=0)
    s.settle()
    subscriber.subscribe("t", qos=1)
    s.settle()
    publisher.publish("t", "live", qos=1)


@scenario()
def many_filters_in_one_subscribe(s: Scene) -> None:
    """One code for each filter, in order."""
    subscriber = s.connect("s")
    subscriber.subscribe(
        Filter(topic_filter="a", qos=2), Filter(topic_filter="b", qos=0), Filter(topic_filter="c/#", qos=1)
    )
    publisher = s.connect("pub")
    for topic in ("a", "b", "c/d"):
        publisher.publish(topic, qos=2)


@scenario()
def unsubscribe_ends_the_flow(s: Scene) -> None:
    """UNSUBACK, also for what was never subscribed."""
    subscriber = s.connect("s")
    subscriber.subscribe("a", "b", qos=1)
    publisher = s.connect("pub")
    publisher.publish("a", "1", qos=1)
    s.settle()
    subscriber.unsubscribe("a", "never")
    publisher.publish("a", "2", qos=1)
    publisher.publish("b", "3", qos=1)


@scenario(version=5)
def no_local(s: Scene) -> None:
    """A client does not get its own messages, others do."""
    client = s.connect("c")
    client.subscribe(Filter(topic_filter="t", qos=1, no_local=True))
    other = s.connect("o")
    other.subscribe("t", qos=1)
    client.publish("t", "from c", qos=1)
    other.publish("t", "from o", qos=1)


@scenario(version=5)
def retain_as_published(s: Scene) -> None:
    """RETAIN is kept where it was asked for."""
    for flag in (False, True):
        s.connect(f"s{int(flag)}").subscribe(Filter(topic_filter="t", qos=1, retain_as_published=flag))
    publisher = s.connect("pub")
    publisher.publish("t", "retained", qos=1, retain=True)
    publisher.publish("t", "not", qos=1)


@scenario(version=5)
def retain_handling(s: Scene) -> None:
    """Retained messages always, for new Subscriptions, or never."""
    s.connect("pub").publish("t", "kept", qos=1, retain=True)
    for handling in (0, 1, 2):
        subscriber = s.connect(f"s{handling}")
        for _ in range(2):
            subscriber.subscribe(Filter(topic_filter="t", qos=1, retain_handling=handling))
            s.settle()


@scenario(version=5)
def subscription_identifiers(s: Scene) -> None:
    """Messages carry the identifiers of the Subscriptions they match."""
    subscriber = s.connect("s")
    subscriber.subscribe("a/#", qos=1, identifier=1)
    subscriber.subscribe("a/+", qos=1, identifier=268_435_455)
    subscriber.subscribe("b", qos=1, identifier=7)
    subscriber.subscribe("c", qos=1)
    publisher = s.connect("pub")
    for topic in ("a/b", "b", "c"):
        publisher.publish(topic, qos=1)


@scenario(version=5)
def a_retained_message_has_the_identifier(s: Scene) -> None:
    """So do retained messages."""
    s.connect("pub").publish("t", qos=1, retain=True)
    subscriber = s.connect("s")
    subscriber.subscribe("t", qos=1, identifier=9)
    subscriber.expect(1)


@scenario(version=4)
def a_shared_subscription_has_one_receiver(s: Scene) -> None:
    """Members of a group share the messages; others get them all."""
    for name in ("m1", "m2"):
        s.connect(name).subscribe("$share/g/t", qos=1)
    s.connect("other").subscribe("t", qos=1)
    publisher = s.connect("pub")
    for number in range(4):
        publisher.publish("t", str(number), qos=1)


@scenario(version=4)
def a_shared_subscription_outlives_a_member(s: Scene) -> None:
    """When a member leaves, the rest go on; two groups each get a copy."""
    first = s.connect("m1")
    first.subscribe("$share/g/t/#", qos=1)
    s.connect("m2").subscribe("$share/g/t/#", qos=1)
    s.connect("m3").subscribe("$share/h/t/+", qos=1)
    first.disconnect()
    publisher = s.connect("pub")  # once this one is let in, the other is known to be gone
    for number in range(3):
        publisher.publish("t/x", str(number), qos=1)


@scenario(version=4)
def a_shared_subscription_gets_no_retained_messages(s: Scene) -> None:
    """Retained messages are for plain Subscriptions."""
    s.connect("pub").publish("t", "kept", qos=1, retain=True)
    member = s.connect("m")
    member.subscribe("$share/g/t", qos=1)
    s.settle()
    member.unsubscribe("$share/g/t")


# --- retained messages --------------------------------------------------------------------------------------------


@scenario()
def a_retained_message_is_kept_replaced_and_cleared(s: Scene) -> None:
    """The last value of a topic, until an empty one."""
    publisher = s.connect("pub")
    watcher = s.connect("w")
    watcher.subscribe("t", qos=1)
    for number, payload in enumerate(("first", "second", "", "third")):
        publisher.publish("t", payload, qos=1, retain=True)
        s.connect(f"s{number}").subscribe("t", qos=1)
        s.settle()


@scenario()
def retained_messages_meet_wildcards(s: Scene) -> None:
    """All that match, each at the lower QoS."""
    publisher = s.connect("pub")
    for qos, topic in enumerate(("a", "a/b", "a/b/c")):
        publisher.publish(topic, topic, qos=qos, retain=True)
    for name, topic_filter in (("many", "a/#"), ("one", "a/+"), ("all", "#")):
        s.connect(name).subscribe(topic_filter, qos=1)


@scenario()
def a_message_without_retain_leaves_the_retained_one(s: Scene) -> None:
    """RETAIN 0 does not touch what is retained."""
    publisher = s.connect("pub")
    publisher.publish("t", "kept", qos=1, retain=True)
    publisher.publish("t", "passing", qos=1)
    publisher.publish("t", "", qos=1)
    s.connect("s").subscribe("t", qos=1)


@scenario()
def a_retained_message_waits_in_a_queue(s: Scene) -> None:
    """For an absent client a retained message is one like others."""
    first = s.durable("c")
    first.subscribe("t", qos=1)
    first.disconnect()
    publisher = s.connect("pub")
    publisher.publish("t", "1", qos=1, retain=True)
    publisher.publish("t", "", qos=1, retain=True)
    s.durable("c").expect(2)


# --- version 5: what a message carries ------------------------------------------------------------------------------


@scenario(version=5)
def a_message_keeps_its_properties(s: Scene) -> None:
    """Content Type, Response Topic, Correlation Data, format, and User Properties in their order."""
    subscriber = s.connect("s")
    subscriber.subscribe("t", qos=2)
    publisher = s.connect("pub")
    for qos in (0, 1, 2):
        publisher.publish(
            "t",
            "text",
            qos=qos,
            content_type="text/plain",
            response_topic="answers/here",
            correlation_data=b"\x00\x01\xff",
            payload_format_indicator=1,
            user_properties=(("k", "1"), ("k", "2"), ("ü", "")),
        )
    subscriber.expect(3)


@scenario(version=5)
def a_retained_message_keeps_its_properties(s: Scene) -> None:
    """They are retained with it."""
    s.connect("pub").publish("t", qos=1, retain=True, content_type="c", user_properties=(("k", "v"),))
    s.connect("s").subscribe("t", qos=1)


@scenario(version=5)
def a_message_tells_what_is_left_of_its_life(s: Scene) -> None:
    """The Message Expiry Interval is passed on, less the time it waited."""
    s.connect("s").subscribe("t", qos=1)
    publisher = s.connect("pub")
    publisher.publish("t", "live", qos=1, message_expiry_interval=60)
    publisher.publish("t", "kept", qos=1, retain=True, message_expiry_interval=600)
    s.connect("late").subscribe("t", qos=1)


@scenario(version=5, slow=True)
def messages_expire(s: Scene) -> None:
    """In a queue, and among the retained ones."""
    first = s.durable("c")
    first.subscribe("q", qos=1)
    first.disconnect()
    publisher = s.connect("pub")
    publisher.publish("q", "short", qos=1, message_expiry_interval=1)
    publisher.publish("q", "long", qos=1, message_expiry_interval=600)
    publisher.publish("r", "short", qos=1, retain=True, message_expiry_interval=1)
    s.pass_time(2.5)
    s.durable("c").expect(1)
    s.connect("late").subscribe("r", qos=1)


@scenario(version=5)
def a_client_uses_topic_aliases(s: Scene) -> None:
    """Set up, used, and pointed elsewhere."""
    s.connect("s").subscribe("#", qos=1)
    publisher = s.connect("pub")
    publisher.publish("a", "1", qos=1, topic_alias=1)
    publisher.publish("", "2", qos=1, topic_alias=1)
    publisher.publish("b", "3", qos=1, topic_alias=1)
    publisher.publish("", "4", qos=0, topic_alias=1)


@scenario(version=5, needs=("aliases from the broker",))
def the_broker_uses_topic_aliases(s: Scene) -> None:
    """With a Topic Alias Maximum of its own a client may be sent aliases; the topics are right all the same."""
    subscriber = s.connect("s", topic_alias_maximum=2)
    subscriber.subscribe("#", qos=1)
    publisher = s.connect("pub")
    for number, topic in enumerate("abcabc"):
        publisher.publish(topic, str(number), qos=number % 2)
        subscriber.expect(1)


@scenario(version=5)
def a_message_beyond_the_maximum_packet_size_is_left_out(s: Scene) -> None:
    """The receiver's Maximum Packet Size holds for it alone."""
    s.connect("small", maximum_packet_size=150).subscribe("#", qos=1)
    s.connect("any").subscribe("#", qos=1)
    publisher = s.connect("pub")
    publisher.publish("t", "x" * 200, qos=1)
    publisher.publish("t", "fits", qos=1)


@scenario(version=5)
def the_receive_maximum_only_slows(s: Scene) -> None:
    """With room for one or two messages at a time all arrive in order."""
    for name, maximum in (("one", 1), ("two", 2)):
        s.connect(name, receive_maximum=maximum).subscribe("t", qos=2)
    publisher = s.connect("pub")
    for number in range(10):
        publisher.publish("t", str(number), qos=1 + number % 2)


@scenario(version=5)
def request_and_response(s: Scene) -> None:
    """A responder answers where it was asked to."""
    asker, responder = s.connect("asker"), s.connect("responder")
    asker.subscribe("answers", qos=1)
    responder.subscribe("questions", qos=1)
    asker.publish("questions", "?", qos=1, response_topic="answers", correlation_data=b"1")
    responder.expect(1)
    responder.publish("answers", "!", qos=1, correlation_data=b"1")
    asker.expect(1)


@scenario(version=4)
def nobody_writes_below_sys(s: Scene) -> None:
    """`$SYS` is the Server's own."""
    publisher = s.connect("pub")
    publisher.publish("!$SYS/broker/mine", qos=1)
    publisher.barrier()


# --- ways that end a connection -------------------------------------------------------------------------------------


@scenario(version=5, needs=("invalid aliases",))
def an_alias_beyond_the_maximum_ends_the_connection(s: Scene) -> None:
    """Topic Alias invalid."""
    publisher = s.connect("pub")
    publisher.publish("t", qos=0, topic_alias=60_000)
    publisher.expect_closed()


@scenario(version=5, needs=("invalid aliases",))
def an_unknown_alias_ends_the_connection(s: Scene) -> None:
    """An alias that was never set up."""
    publisher = s.connect("pub")
    publisher.publish("", qos=0, topic_alias=3)
    publisher.expect_closed()
