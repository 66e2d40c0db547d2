"""The ACL file: its grammar, and its decisions against a judge written from the manual."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.access.acl_file import AclFile, parse
from lockgate.access.authority import Chain, Verdict
from lockgate.config.errors import ConfigError
from lockgate.mqtt.topics import matches
from tests.support.strategies import small_names

PATH = Path("acl")


def acl(text: str) -> Chain:
    return Chain([AclFile(*parse(text, PATH))], allow_anonymous=True)


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    return str(caught.value).splitlines()


def test_an_empty_file_denies_all() -> None:
    for text in ("", "# nothing\n\n", "user anna\n"):
        empty = acl(text)
        assert not empty.may_publish("c", None, "t")
        assert not empty.may_receive("c", "anna", "t")
        assert empty.may_subscribe("c", "anna", "t"), "subscriptions are granted, deliveries are not"
        assert empty.may_unsubscribe("c", "anna", "t")


def test_whose_rules_are_whose() -> None:
    rules = acl("topic anon\nuser anna\ntopic read hers\npattern all/%u\nuser bert\ntopic his\nuser anna\ntopic also")
    assert rules.may_publish("c", None, "anon")
    assert not rules.may_publish("c", "anna", "anon")
    assert rules.may_receive("c", "anna", "hers")
    assert not rules.may_publish("c", "anna", "hers")
    assert rules.may_publish("c", "anna", "also")
    assert not rules.may_receive("c", "bert", "hers")
    assert rules.may_publish("c", "bert", "his")
    assert rules.may_publish("c", "somebody", "all/somebody"), "a user the file does not name has the patterns"
    assert not rules.may_publish("c", None, "all/somebody")
    assert not rules.may_publish("c", "", "anon"), "an empty user name is a name"


def test_a_deny_goes_before_whatever_else_matches() -> None:
    rules = acl("user anna\ntopic #\ntopic deny a/b\npattern readwrite a/b\npattern deny x/%c\n")
    assert rules.may_publish("c", "anna", "a/c")
    assert not rules.may_publish("c", "anna", "a/b"), "the patterns are not asked any more"
    assert rules.may_publish("c", "anna", "x/c"), "the user's own rules decide before the patterns"
    assert rules.may_publish("c", "bert", "a/b")


def test_topics_with_a_dollar_need_a_rule_with_a_dollar() -> None:
    rules = acl("topic #\ntopic +/b\ntopic $x/#\ntopic readwrite $SYS/#")
    assert rules.may_publish("c", None, "a")
    assert rules.may_publish("c", None, "$x/y")
    assert not rules.may_receive("c", None, "$y/b")
    assert rules.may_receive("c", None, "$SYS/broker/uptime")
    assert not rules.may_publish("c", None, "$SYS/broker/uptime"), "nobody writes there"
    assert rules.may_publish("c", None, "$SYS/broker/connection/home/state")


@pytest.mark.parametrize(("client_id", "username"), [("a+", "u"), ("#", "u"), ("c", "a#b"), ("c", "+")])
def test_names_with_wildcards_are_refused_where_there_are_patterns(client_id: str, username: str) -> None:
    assert not acl("pattern #").may_publish(client_id, username, "t")
    assert acl(f"user {username}\ntopic t").may_publish(client_id, username, "t")


def test_percent_c_and_u_are_whole_levels() -> None:
    rules = acl("pattern home/%u/%c\npattern part%c/x\ntopic own/%c")
    assert rules.may_publish("c", "u", "home/u/c")
    assert not rules.may_publish("c", None, "home/u/c")
    assert not rules.may_publish("c", "u", "home/c/u")
    assert not rules.may_publish("c", None, "own/c"), "in a topic line they mean nothing"
    assert rules.may_publish("c", None, "own/%c")


def test_filters_may_hold_spaces_and_look_like_an_access() -> None:
    rules = acl("topic  read   a b  c  \r\ntopic read\n  topic write x\n")
    assert rules.may_receive("c", None, "a b  c")
    assert not rules.may_publish("c", None, "a b  c")
    assert rules.may_publish("c", None, "read")
    assert rules.may_publish("c", None, "x")


def test_every_mistake_is_named_with_its_line() -> None:
    found = mistakes("topic ok\ntopci a\ntopic reed a b\nuser\ntopic read a#\n # no comment\ntopic\ttab\npattern\n")
    assert [line.split(" (accepted")[0] for line in found] == [
        "acl:2: 'topci' is not a rule. Did you mean topic?",
        "acl:3: 'reed' is no access. Did you mean read?",
        "acl:4: a user line without a name",
        "acl:5: Topic Filter 'a#': # must be the whole last level",
        "acl:6: '#' is not a rule.",
        "acl:7: 'topic\\ttab' is not a rule. Did you mean topic?",
        "acl:8: a pattern line without a filter",
    ]
    assert "topic read|write|readwrite|deny FILTER" in found[1]


def test_a_pattern_that_is_none_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse("pattern a/%c\npattern read b\n", PATH)
    assert [record.getMessage()[:6] for record in caplog.records] == ["acl:2:"]


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "acl"
    path.write_text("topic a\n")
    assert AclFile.load(path).may_publish("c", None, "a") is Verdict.ALLOW
    path.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=f"{path}:1: 'nonsense'"):
        AclFile.load(path)


# --- against a judge that is as slow and as plain as the manual ------------------------------------------------------

NAMES = ("a", "b", "c", "a/b")
LEVELS = ("a", "b", "$s", "", "+", "%c", "%u")
filters = st.tuples(st.lists(st.sampled_from(LEVELS), max_size=3), st.sampled_from([["#"], []])).map(
    lambda parts: "/".join(parts[0] + parts[1])
).filter(lambda text: bool(text.strip()))  # fmt: skip
lines = st.one_of(
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["topic", "pattern"]),
        st.sampled_from(["read", "write", "readwrite", "deny"]),
        filters,
    ),
    st.builds("user {}".format, st.sampled_from(NAMES)),
)


def judge(text: list[str], client_id: str, username: str | None, topic: str, wanted: str) -> bool:
    """Decide by the manual: the user's own list, then the patterns; in each a deny first, then any rule that covers."""
    own: list[tuple[str, str]] = []
    patterns: list[tuple[str, str]] = []
    user: str | None = None
    for line in text:
        word, *rest = line.split(" ", 2)
        if word == "user":
            user = rest[0]
        elif word == "topic" and user == username:
            own.append((rest[0], rest[1]))
        elif word == "pattern" and (username is not None or "%u" not in rest[1]):
            filled = "/".join({"%c": client_id, "%u": username or ""}.get(one, one) for one in rest[1].split("/"))
            patterns.append((rest[0], filled))
    for rules in (own, patterns):
        says = [access for access, topic_filter in rules if matches(topic_filter, topic)]
        if "deny" in says:
            return False
        if wanted in says or "readwrite" in says:
            return True
    return False


@given(st.lists(lines, max_size=12), st.sampled_from(NAMES), st.sampled_from([None, *NAMES]), small_names)
def test_the_decisions_are_the_manuals(text: list[str], client_id: str, username: str | None, topic: str) -> None:
    rules = acl("\n".join(text))
    assert rules.may_publish(client_id, username, topic) == judge(text, client_id, username, topic, "write")
    assert rules.may_receive(client_id, username, topic) == judge(text, client_id, username, topic, "read")
