"""The word of several authorities."""

from __future__ import annotations

import itertools

import pytest

from lockgate.access.authority import Authority, Chain, Verdict

ALLOW, DENY, DEFER, IGNORE = Verdict.ALLOW, Verdict.DENY, Verdict.DEFER, Verdict.IGNORE


class Says:
    """An authority that says one thing to everything, and counts how often it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> Verdict:
        return self.may_publish(client_id, username, "")

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict:
        self.asked += 1
        return self.verdict

    may_receive = may_subscribe = may_unsubscribe = may_publish

    def credential(self, username: str) -> object:
        return None


@pytest.mark.parametrize("verdicts", list(itertools.product(Verdict, repeat=3)))
def test_the_first_that_allows_or_denies_decides_and_all_deferred_is_refused(verdicts: tuple[Verdict, ...]) -> None:
    chain = Chain([Says(verdict) for verdict in verdicts], allow_anonymous=False)
    decided = [verdict for verdict in verdicts if verdict in (ALLOW, DENY)]
    expected = decided[0] is ALLOW if decided else DEFER not in verdicts
    assert chain.may_publish("c", "u", "t") is expected
    assert chain.may_receive("c", "u", "t") is expected
    assert chain.may_subscribe("c", "u", "t") is expected
    assert chain.may_unsubscribe("c", "u", "t") is expected
    assert chain.login("c", "u", b"p") is (bool(decided) and decided[0] is ALLOW)


def test_who_comes_after_a_decision_is_not_asked() -> None:
    last = Says(ALLOW)
    assert not Chain([Says(DEFER), Says(DENY), last], allow_anonymous=True).login("c", "u", b"p")
    assert last.asked == 0


def test_without_authorities_every_topic_is_open() -> None:
    chain = Chain(allow_anonymous=False)
    assert chain.may_publish("c", None, "t")
    assert chain.may_receive("c", None, "t")


LOGINS: list[tuple[list[Verdict], bool, str | None, bool]] = [
    # authorities, allow_anonymous, user name → let in
    ([], True, None, True),
    ([], True, "u", True),  # nobody would know the name
    ([], False, None, False),
    ([], False, "u", False),
    ([IGNORE], True, "u", True),  # an ACL file alone
    ([DEFER], True, "u", False),  # a password file that does not know the name
    ([DEFER], True, None, True),
    ([DEFER], False, None, False),
    ([DENY], True, None, False),
    ([ALLOW], False, None, True),
]


@pytest.mark.parametrize(("verdicts", "allow_anonymous", "username", "expected"), LOGINS)
def test_anonymous_clients(
    verdicts: list[Verdict], allow_anonymous: bool, username: str | None, expected: bool
) -> None:
    authorities: list[Authority] = [Says(verdict) for verdict in verdicts]
    assert Chain(authorities, allow_anonymous=allow_anonymous).login("c", username, None) is expected


@pytest.mark.parametrize(("verdict", "expected"), [(ALLOW, True), (DENY, False), (DEFER, True), (IGNORE, True)])
def test_a_certificate_is_a_login_unless_an_authority_refuses_its_user(verdict: Verdict, expected: bool) -> None:
    chain = Chain([Says(verdict)], allow_anonymous=False)
    assert chain.login("c", "u", None, by_certificate=True) is expected
