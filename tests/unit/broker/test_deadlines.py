"""Deadlines come in order, and those that lost their meaning do not gather."""

from __future__ import annotations

from lockgate.broker.deadlines import CONNECTION, SESSION, WILL, Deadlines
from lockgate.mqtt.packets import V5, Connect, Disconnect, Will
from lockgate.mqtt.properties import Properties
from tests.support.server import Server


def test_what_is_due_comes_in_the_order_of_time() -> None:
    deadlines = Deadlines(lambda at, kind, subject: True)
    for at in (3.0, 1.0, 2.0):
        deadlines.add(at, SESSION, str(at))
    assert deadlines.next() == 1.0
    assert deadlines.due(2.5) == [(1.0, SESSION, "1.0"), (2.0, SESSION, "2.0")]


def test_only_what_still_means_something_is_kept() -> None:
    asked = 0

    def is_live(at: float, kind: int, subject: str) -> bool:
        nonlocal asked
        asked += 1
        return kind == WILL

    deadlines = Deadlines(is_live)
    for number in range(20_000):
        deadlines.add(float(number), WILL if number % 10 == 0 else CONNECTION, str(number))
        assert len(deadlines) <= max(512, 2 * (number // 10 + 1))
    assert asked < 2 * 20_000  # sweeping costs each entry a look or two
    kept = [due[0] for due in deadlines.due(1e9) if due[1] == WILL]
    assert kept == [float(number) for number in range(0, 20_000, 10)]


def test_a_client_that_comes_and_goes_leaves_no_deadlines_behind() -> None:
    server = Server()
    own = Properties(session_expiry_interval=1_000_000)
    will = Will("w", b"", properties=Properties(will_delay_interval=500_000))
    for number in range(2000):
        server.now += 0.001
        peer = server.peer()
        peer.send(Connect("c", V5, False, 65_535, will=will, properties=own))
        if number % 2:
            peer.send(Disconnect())
        else:
            peer.lose()
    assert len(server.broker.deadlines) <= 1024
    server.advance(2_000_000)
    assert (len(server.broker.deadlines), server.broker.sessions) == (0, {})


def everything(at: float, kind: int, subject: str) -> bool:
    return True


def test_what_is_due_comes_by_time_and_then_in_the_order_in_which_it_was_noted() -> None:
    deadlines = Deadlines(everything)
    for at, subject in ((5.0, "a"), (3.0, "b"), (5.0, "c"), (4.0, "d"), (5.0, "0")):
        deadlines.add(at, WILL, subject)
    assert deadlines.next() == 3.0
    assert deadlines.due(2.9) == []
    assert deadlines.due(5.0) == [
        (3.0, WILL, "b"),
        (4.0, WILL, "d"),
        (5.0, WILL, "a"),
        (5.0, WILL, "c"),
        (5.0, WILL, "0"),
    ]
    assert deadlines.next() is None


def test_whoever_has_set_a_timer_hears_that_it_is_too_late() -> None:
    deadlines = Deadlines(everything)
    assert not deadlines.moved
    for at, moved in ((5.0, True), (6.0, False), (5.0, False), (4.0, True)):
        deadlines.moved = False
        deadlines.add(at, WILL, "")
        assert deadlines.moved is moved


def test_the_order_holds_whatever_was_swept_out() -> None:
    deadlines = Deadlines(lambda at, kind, subject: int(at) % 3 != 0)
    times = [float(number * 7919 % 4001) for number in range(4001)]
    for at in times:
        deadlines.add(at, WILL, "")
    seen = [due[0] for due in deadlines.due(1e9)]
    assert seen == sorted(seen)
    assert {at for at in times if int(at) % 3} <= set(seen)
