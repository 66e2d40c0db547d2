"""What one client may do: the answers of an Authority, remembered until its rules change (DESIGN §3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from lockgate.broker.memory import Memory
from lockgate.broker.ports import Authority, text_bytes

if TYPE_CHECKING:
    from lockgate.broker.session import Subscription

_REMEMBERED: Final = 32  # topics, in each direction
_CHARACTERS: Final = 256  # longer topics are asked about each time
_ANSWER_BYTES: Final = 100


@final
class Permissions:
    """A client as an Authority knows it, for as long as its Session has this user."""

    __slots__ = ("_held_bytes", "_memory", "_publish", "_receive", "authority", "client_id", "username")

    def __init__(self, authority: Authority, client_id: str, username: str | None, memory: Memory) -> None:
        self.authority = authority
        self.client_id = client_id
        self.username = username
        self._memory = memory
        self._publish: dict[str, bool] = {}
        self._receive: dict[str, bool] = {}
        self._held_bytes = 0

    def may_publish(self, topic: str) -> bool:
        """Whether the client may publish to a topic."""
        answer = self._publish.get(topic)
        if answer is None:
            answer = self.authority.may_publish(self.client_id, self.username, topic)
            self._remember(self._publish, topic, answer)
        return answer

    def may_receive(self, topic: str) -> bool:
        """Whether the client may be sent a message of a topic, for who is asked for each message."""
        answer = self._receive.get(topic)
        if answer is None:
            answer = self.looks_receivable(topic)
            self._remember(self._receive, topic, answer)
        return answer

    def looks_receivable(self, topic: str) -> bool:
        """Like `may_receive`, for who remembers the answer, or will not ask again."""
        return self.authority.may_receive(self.client_id, self.username, topic)

    def may_keep(self, subscription: Subscription) -> bool:
        """Whether a Subscription still stands; that of a client that is here was looked at when it was made."""
        return subscription.session.connection is not None or self.may_subscribe(subscription.topic_filter)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the client may subscribe to a filter, which stands without its `$share/NAME/`."""
        return self.authority.may_subscribe(self.client_id, self.username, topic_filter)

    def may_unsubscribe(self, topic_filter: str) -> bool:
        """Whether the client may end a Subscription."""
        return self.authority.may_unsubscribe(self.client_id, self.username, topic_filter)

    def forget(self) -> None:
        """Forget all answers: the rules have changed, or the Session ends."""
        self._publish.clear()
        self._receive.clear()
        self._memory.used -= self._held_bytes
        self._held_bytes = 0

    def _remember(self, answers: dict[str, bool], topic: str, answer: bool) -> None:
        if len(topic) > _CHARACTERS:
            return
        if len(answers) >= _REMEMBERED:
            self.forget()
        answers[topic] = answer
        size = _ANSWER_BYTES + text_bytes(topic)
        self._held_bytes += size
        self._memory.used += size
