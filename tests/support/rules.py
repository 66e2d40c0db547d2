"""An authority whose rules a test writes down, and changes."""

from __future__ import annotations

from lockgate.broker.limits import ListenerLimits
from lockgate.broker.ports import DENIED, LATER, PERMITTED
from lockgate.mqtt.topics import matches


class Rules:
    """Lets everybody do everything, except what was told to `deny`.

    `asked` notes each question: "publish", "receive", "subscribe" or "unsubscribe", with client id, user and topic.
    """

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()  # what and Topic Filter
        self.asked: list[tuple[str, str, str | None, str]] = []
        self.passwords: dict[str, bytes] = {}  # empty: nobody is asked for one
        self.later = False  # logins are answered by the test
        self.logins: list[tuple[int, str, str | None, bytes | None, bool]] = []

    def listener(self, **options: object) -> ListenerLimits:
        """A listener that asks this authority."""
        return ListenerLimits(authority=self, **options)  # type: ignore[arg-type]

    def deny(self, what: str, topic_filter: str) -> None:
        self.denied.add((what, topic_filter))

    def ask_login(
        self, number: int, client_id: str, username: str | None, password: bytes | None, certified: bool
    ) -> int:
        self.logins.append((number, client_id, username, password, certified))
        if self.later:
            return LATER
        known = self.passwords
        return PERMITTED if not known or (username is not None and known.get(username) == password) else DENIED

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        return self._allows("publish", client_id, username, topic)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool:
        return self._allows("receive", client_id, username, topic)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        return self._allows("subscribe", client_id, username, topic_filter)

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        return self._allows("unsubscribe", client_id, username, topic_filter)

    def _allows(self, what: str, client_id: str, username: str | None, topic: str) -> bool:
        self.asked.append((what, client_id, username, topic))
        return not any(kind == what and (topic == one or matches(one, topic)) for kind, one in self.denied)
