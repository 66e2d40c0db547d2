"""The oracle of the fault tests finds each kind of violation, and accuses nobody who keeps to the specification."""

from __future__ import annotations

import pytest

from tests.support import oracle as kinds
from tests.support.oracle import Note, Oracle, Span


class Scene:
    """One publisher and one subscriber of `t`; each step takes a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.oracle = Oracle()
        self.span = Span("t", self._tick())
        self.oracle.span("sub", self.span)
        self.span.granted = self._tick()

    def _tick(self) -> float:
        self.now += 1
        return self.now

    def sent(self, seq: int, qos: int = 1, topic: str = "t", clears: bool = False) -> Note:
        note = Note("pub", topic, seq, qos, clears, self._tick())
        self.oracle.sent(self.now, note, seq, "PUBLISH")
        return note

    def acknowledged(self, *notes: Note) -> None:
        for note in notes:
            self.oracle.acknowledged(self._tick(), note, note.seq, "PUBACK")

    def got(self, *sequences: int, qos: int = 1) -> None:
        for seq in sequences:
            self.oracle.delivered(self._tick(), "sub", "pub", "t", seq, qos, seq, False)

    def found(self) -> dict[str, int]:
        self.oracle.settle()
        return dict(self.oracle.counts)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_reached_everybody_is_no_violation(scene: Scene) -> None:
    notes = [scene.sent(1), scene.sent(2), scene.sent(3)]
    scene.got(1, 2, 3, 1, 2)  # again after the connection was lost, at QoS 1
    scene.acknowledged(*notes)
    assert scene.found() == {}
    assert scene.oracle.report() == ""


def test_what_was_not_acknowledged_may_be_lost(scene: Scene) -> None:
    scene.sent(1)
    assert scene.found() == {}


def test_what_was_acknowledged_may_not(scene: Scene) -> None:
    scene.acknowledged(scene.sent(1))
    assert scene.found() == {kinds.LOST: 1}
    assert "sub never got pub t #1 (QoS 1)" in scene.oracle.report()


def test_a_loss_is_told_with_what_each_side_saw(scene: Scene) -> None:
    scene.oracle.round = 3
    scene.oracle.lived(scene.now, "sub", "connected")
    scene.oracle.happened(scene.now, "kill -9")
    scene.acknowledged(scene.sent(7))
    scene.oracle.settle()
    report = scene.oracle.report()
    for said in ("round   3 pub: PUBLISH [7]", "round   3 pub: PUBACK [7]", "round 3: connected", "round 3: kill -9"):
        assert said in report


def test_a_subscription_counts_from_its_suback(scene: Scene) -> None:
    scene.span.granted = None
    scene.acknowledged(scene.sent(1))
    scene.span.granted = scene.now
    assert scene.found() == {}


def test_a_second_delivery_at_qos_2(scene: Scene) -> None:
    scene.acknowledged(scene.sent(1, qos=2))
    scene.got(1, 1, qos=2)
    assert scene.found() == {kinds.REPEATED: 1}


def test_a_second_delivery_at_qos_2_long_after_the_first(scene: Scene) -> None:
    scene.acknowledged(scene.sent(1, qos=2))
    scene.got(1, qos=2)
    assert scene.found() == {}
    scene.got(1, qos=2)
    assert scene.found() == {kinds.REPEATED: 1}


def test_a_message_that_nobody_sent(scene: Scene) -> None:
    scene.got(5)
    assert scene.found() == {kinds.INVENTED: 1}


def test_first_deliveries_out_of_order(scene: Scene) -> None:
    scene.acknowledged(scene.sent(1), scene.sent(2))
    scene.got(2, 1)
    assert scene.found() == {kinds.DISORDERED: 1}


def test_what_may_have_been_refused_and_is_sent_again_comes_late(scene: Scene) -> None:
    first, second, other = scene.sent(1), scene.sent(2), scene.sent(3)
    scene.oracle.refused(scene.now, other, 3, "PUBACK 0x97")
    scene.got(2)
    scene.oracle.sent(scene.now, first, 1, "PUBLISH again")
    first.refusable = True
    scene.got(1)
    scene.acknowledged(first, second)
    assert scene.found() == {}


@pytest.mark.parametrize("lacks", ["version 5", "a second PUBLISH", "any refusal"])
def test_what_was_not_refused_keeps_its_order(scene: Scene, lacks: str) -> None:
    first, second, other = scene.sent(1), scene.sent(2), scene.sent(3)
    if lacks != "any refusal":
        scene.oracle.refused(scene.now, other, 3, "PUBACK 0x97")
    scene.got(2)
    if lacks != "a second PUBLISH":
        scene.oracle.sent(scene.now, first, 1, "PUBLISH again")
    first.refusable = lacks != "version 5"
    scene.got(1, *([] if lacks != "any refusal" else [3]))
    scene.acknowledged(first, second)
    assert scene.oracle.counts[kinds.DISORDERED] == 1


def test_what_was_sent_before_the_subscription_has_no_order(scene: Scene) -> None:
    """The first passed by before the subscription was there, the second after; then both are sent again."""
    scene.span.granted = None
    first, second = scene.sent(1), scene.sent(2)
    scene.span.granted = scene.now
    scene.got(2, 1, 2)
    scene.acknowledged(first, second)
    assert scene.found() == {}


def test_a_message_published_after_unsuback(scene: Scene) -> None:
    scene.span.leaving = scene.span.gone = scene.now
    scene.acknowledged(scene.sent(1))
    scene.got(1)
    assert scene.found() == {kinds.UNASKED: 1}


def test_a_message_published_before_unsuback_may_come_later_or_never(scene: Scene) -> None:
    notes = [scene.sent(1), scene.sent(2)]
    scene.span.leaving = scene.span.gone = scene.now
    scene.got(1)
    scene.acknowledged(*notes)
    assert scene.found() == {}


def test_a_lost_session_is_told_once(scene: Scene) -> None:
    scene.acknowledged(scene.sent(1), scene.sent(2))
    scene.oracle.session_lost(scene.now, "sub", "t")
    assert scene.found() == {kinds.SESSION_LOST: 1}


def test_a_retained_message_older_than_acknowledged(scene: Scene) -> None:
    topic = "retained/1"
    scene.acknowledged(scene.sent(1, topic=topic), scene.sent(2, topic=topic))
    scene.sent(3, topic=topic)
    floor = scene.oracle.retained_floors()[topic]
    for seq in (2, 3):
        scene.oracle.check_retained("reader", topic, floor, seq)
    assert scene.found() == {}
    scene.oracle.check_retained("reader", topic, floor, 1)
    scene.oracle.check_retained("reader", topic, floor, None)
    assert scene.found() == {kinds.RETAINED: 2}


def test_a_retained_message_that_was_cleared_does_not_come_back(scene: Scene) -> None:
    topic = "retained/1"
    scene.acknowledged(scene.sent(1, topic=topic), scene.sent(2, topic=topic, clears=True))
    floor = scene.oracle.retained_floors()[topic]
    scene.oracle.check_retained("reader", topic, floor, None)
    assert scene.found() == {}
    scene.oracle.check_retained("reader", topic, floor, 1)
    assert scene.found() == {kinds.RETAINED: 1}
