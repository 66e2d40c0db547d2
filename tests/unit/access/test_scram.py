"""SCRAM-SHA-256: the vector of RFC 7677, a client of another hand, and everything a peer can send instead."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import scramp
from hypothesis import given
from hypothesis import strategies as st

from lockgate.access.scram import (
    METHOD,
    ScramAuthenticator,
    ScramFileError,
    Verifier,
    read_users,
    saslprep,
    write_user,
)
from lockgate.mqtt import reason_codes

CONTINUE = reason_codes.CONTINUE_AUTHENTICATION
REFUSED = reason_codes.NOT_AUTHORIZED
PENCIL = Verifier.of_password("pencil", 4096, base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
# RFC 7677 §3
CLIENT_NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FIRST = f"n,,n=user,r={CLIENT_NONCE}".encode()
SERVER_FIRST = f"r={CLIENT_NONCE}{SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()
WITHOUT_PROOF = f"c=biws,r={CLIENT_NONCE}{SERVER_NONCE}"
PROOF = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
FINAL = f"{WITHOUT_PROOF},p={PROOF}".encode()
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def authenticator(**users: Verifier) -> ScramAuthenticator:
    return ScramAuthenticator(users, lambda: SERVER_NONCE)


def test_the_vector_of_the_rfc() -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    first = exchange.step(FIRST)
    assert (first.reason_code, first.data) == (CONTINUE, SERVER_FIRST)
    final = exchange.step(FINAL)
    assert (final.reason_code, final.data, final.username) == (reason_codes.SUCCESS, SERVER_FINAL, "user")


def test_other_methods_are_not_offered() -> None:
    assert authenticator(user=PENCIL).begin("SCRAM-SHA-1") is None
    assert authenticator(user=PENCIL).begin("scram-sha-256") is None


def test_a_method_alone_is_answered_by_a_question() -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    asked = exchange.step(b"")
    assert (asked.reason_code, asked.data) == (CONTINUE, b"")
    assert exchange.step(FIRST).data == SERVER_FIRST


@pytest.mark.parametrize("username", ["user", "a=b,c", "Ä-ſ"])
@pytest.mark.parametrize("right", [True, False])
def test_a_client_of_another_hand(username: str, right: bool) -> None:
    password = "pässword ,=1"
    server = ScramAuthenticator({saslprep(username): Verifier.of_password(password, 4096)})
    client = scramp.ScramClient([METHOD], username, password if right else "wrong")
    exchange = server.begin(METHOD)
    assert exchange is not None
    client.set_server_first(exchange.step(client.get_client_first().encode()).data.decode())
    answer = exchange.step(client.get_client_final().encode())
    if right:
        assert answer.reason_code == reason_codes.SUCCESS
        assert answer.username == saslprep(username)
        client.set_server_final(answer.data.decode())
    else:
        assert answer.reason_code == REFUSED
        assert answer.data == b""


def test_an_unknown_user_sees_what_a_known_one_sees_until_the_end() -> None:
    server = authenticator(user=PENCIL)
    seen = []
    for _ in range(2):
        exchange = server.begin(METHOD)
        assert exchange is not None
        answer = exchange.step(FIRST.replace(b"user", b"nobody"))
        assert answer.reason_code == CONTINUE
        seen.append(answer.data)
        assert exchange.step(FINAL).reason_code == REFUSED
    assert seen[0] == seen[1]
    assert f"i={PENCIL.iterations}".encode() in seen[0]  # as a known one


@pytest.mark.parametrize(
    "message",
    [
        b"n", b"n,", b"n,,", b"n,,n=user", b"n,,r=abc,n=user", b"p=tls-unique,,n=user,r=abc", b"x,,n=user,r=abc",
        b"n,,m=ext,n=user,r=abc", b"n,,n=,r=abc", b"n,,n=us=er,r=abc", b"n,,n=user,r=", b"n,,n=user,r=a b",
        b"n,a=other,n=user,r=abc", b"n,user,n=user,r=abc", b"\xff\xfe", b"n,,n=\x00,r=abc", b"x" * 5000,
    ],
)  # fmt: skip
def test_a_first_message_that_is_none_is_refused(message: bytes) -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    assert exchange.step(message).reason_code == REFUSED


@pytest.mark.parametrize(
    "message",
    [
        b"", b"p=", WITHOUT_PROOF.encode(), FINAL.replace(b"biws", b"eSws"), FINAL.replace(b"biws", b"!"),
        FINAL.replace(b"r=rO", b"r=rP"), FINAL.replace(b"dHz", b"dHy"), FINAL[:-5], FINAL + b"A",
        f"{WITHOUT_PROOF},p=".encode(), f"{WITHOUT_PROOF},x=1,p={PROOF}".encode(), b"\xff", b"y" * 5000,
    ],
)  # fmt: skip
def test_a_final_message_that_is_wrong_is_refused(message: bytes) -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    exchange.step(FIRST)
    assert exchange.step(message).reason_code == REFUSED


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_no_bytes_let_anybody_in(messages: list[bytes]) -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    for message in messages:
        assert exchange.step(message).reason_code in (CONTINUE, REFUSED)


def test_who_may_act_for_himself_may_say_so() -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    assert exchange.step(b"n,a=user,n=user,r=abc").reason_code == CONTINUE


@pytest.mark.parametrize(
    ("text", "prepared"), [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX")]
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared  # the examples of RFC 4013 §3


@pytest.mark.parametrize("text", ["\x07", "\u0627\u0031", "\u0627a\u0627", "\ue000"])
def test_saslprep_forbids(text: str) -> None:
    with pytest.raises(ValueError, match="U\\+|direction|right to left"):
        saslprep(text)


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_verifier_is_read_as_it_was_written() -> None:
    assert Verifier.parse(str(PENCIL)) == PENCIL


def test_users_are_read_with_comments_and_colons_in_names() -> None:
    assert read_users(f"# users\n\nuser:{PENCIL}\na:b:{PENCIL}\n") == {"user": PENCIL, "a:b": PENCIL}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("user\n", 1, "USER:"),
        ("\nuser:plain\n", 2, "USER:"),
        (f":{PENCIL}\n", 1, "USER:"),
        (f"user:{PENCIL}\nuser:{PENCIL}\n", 2, "twice"),
        (f"user:{PENCIL}x!\n", 1, "no verifier"),
        ("user:SCRAM-SHA-256$4095:AAAA$AAAA:AAAA\n", 1, "at least 4096"),
        ("user:SCRAM-SHA-256$4096:AAAA$AAAA:AAAA\n", 1, "32 bytes"),
        ("user:SCRAM-SHA-256$4096:A$AAAA:AAAA\n", 1, "base64"),
    ],
)
def test_a_bad_line_is_named(text: str, line: int, problem: str) -> None:
    with pytest.raises(ScramFileError, match=problem) as raised:
        read_users(text)
    assert raised.value.line == line


def test_users_are_added_changed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "users"
    other = Verifier.of_password("other", 4096)
    assert not write_user(file, "user", PENCIL)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not write_user(file, "second", PENCIL)
    assert write_user(file, "user", other)
    assert read_users(file.read_text()) == {"user": other, "second": PENCIL}
    assert write_user(file, "user", None)
    assert not write_user(file, "user", None)
    assert read_users(file.read_text()) == {"second": PENCIL}


def test_a_name_that_takes_long_to_prepare_is_refused_at_once() -> None:
    exchange = authenticator(user=PENCIL).begin(METHOD)
    assert exchange is not None
    step = exchange.step(b"n,,n=" + b"x" * 256 + b",r=abc")
    assert step.reason_code == REFUSED
    assert "255" in step.detail


def test_an_unknown_user_has_the_iterations_and_the_length_of_salt_of_the_others() -> None:
    unknown, real = authenticator(user=Verifier.of_password("pencil", 5000, b"12345678")).verifier("nobody")
    assert not real
    assert (unknown.iterations, len(unknown.salt)) == (5000, 8)
