"""Password hashes: the three forms, and what damage does to them."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.access import hashes
from lockgate.access.hashes import ALGORITHMS, Algorithm, Argon2id, Pbkdf2, Sha512

# Written by Debian's mosquitto_passwd 2.0.11 for the password "secret"
DEBIAN = (
    "$6$WpEvOD2gsSpEVUOM$VjPe+X0fSamJSdqj4iqMSbrVMuEC+y5OxafHSBaIjxT7i/t1zpRTkyD4WPP867t4m6+o2tvXc6ISgdxnFb1bSw==",
    "$7$101$tvzRf2onQcow26Z1$lGCQwDitziNzTmJoiRXKVaFdO57PYEf6Qq5ykLtn71e2+uEzsXBPBedX+HnUP9QZrkx/0BjhHeMk4ROL3LktFQ==",
)
ARGON2ID = (
    "$argon2id$v=19$m=64,t=1,p=1$MTIzNDU2Nzg5MDEy$"
    "X1jIXFhix91hW2nQz12zO5gXzIFUsptYqxdWbIfxmPOy7G5qa3SK0a83hHDJWMEAcGswqx7QpSxJRwFlxmrn6g"
)


@pytest.mark.parametrize("text", [*DEBIAN, ARGON2ID])
def test_hashes_of_other_programs_are_read(text: str) -> None:
    known = hashes.parse(text)
    assert known.verify(b"secret")
    assert not known.verify(b"Secret")
    assert not known.verify(b"")
    assert str(known) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_made_is_read_back(algorithm: Algorithm) -> None:
    made = hashes.make(b"p\xc3\xa4ss", algorithm)
    again = hashes.parse(str(made))
    assert again == made
    assert again.verify(b"p\xc3\xa4ss")
    assert not again.verify(b"pass")
    assert hashes.make(b"p\xc3\xa4ss", algorithm) != made, "each hash has its own salt"


def test_argon2id_is_the_default_with_mosquittos_parameters() -> None:
    assert str(hashes.make(b"x")).startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert str(hashes.make(b"x", rounds=2)).startswith("$argon2id$v=19$m=47104,t=2,p=1$")


def test_rounds_of_pbkdf2() -> None:
    made = hashes.make(b"x", "sha512-pbkdf2")
    assert isinstance(made, Pbkdf2)
    assert made.rounds == 1000
    assert str(hashes.make(b"x", "sha512-pbkdf2", 7)).startswith("$7$7$")


HALF = base64.b64encode(b"h" * 32).decode()
WHOLE = base64.b64encode(b"h" * 64).decode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is missing"),
        ("secret", "is not a password hash"),
        ("$5$c2FsdA==$" + WHOLE, "is not a password hash"),
        ("$6$c2FsdA==", "is not a password hash"),
        ("$6$$" + WHOLE, "is not a password hash"),
        ("$6$c2Fsd$" + WHOLE, "has a part that is not base64"),
        ("$6$c2FsdA==$" + HALF, "has 32 bytes of hash, must be 64"),
        ("$7$c2FsdA==$" + WHOLE, "is not a password hash"),
        ("$7$0$c2FsdA==$" + WHOLE, "has 0 rounds"),
        ("$7$9999999999$c2FsdA==$" + WHOLE, "has 9999999999 rounds"),
        ("$7$10000001$c2FsdA==$" + WHOLE, "must be 1 to 10000000"),
        (ARGON2ID.replace("m=64,", "m=1048577,"), "asks for 1048577 KiB"),
        (ARGON2ID.replace("t=1,", "t=262145,"), "must be at most 262144"),
        (ARGON2ID.replace("m=64,t=1", "m=0,t=1"), "damaged"),
        ("$7$-1$c2FsdA==$" + WHOLE, "is not a password hash"),
        ("$argon2id$", "is a damaged Argon2id hash"),
        (ARGON2ID.replace("m=64", "m=x"), "is a damaged Argon2id hash"),
        (ARGON2ID[:-3] + "!!!", "is a damaged Argon2id hash"),
        (ARGON2ID.replace("id", "i"), "is not a password hash"),
    ],
)
def test_a_damaged_hash_says_what_is_wrong_and_not_what_it_is(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        hashes.parse(text)
    assert WHOLE not in str(caught.value)


@pytest.mark.parametrize("text", [*DEBIAN, ARGON2ID])
def test_nobodys_hash_is_as_dear_and_fits_nothing(text: str) -> None:
    known = hashes.parse(text)
    nobody = hashes.like(known)
    assert hashes.parse(str(nobody)) == nobody
    assert not nobody.verify(b"secret")
    if isinstance(known, Pbkdf2):
        assert isinstance(nobody, Pbkdf2)
        assert nobody.rounds == known.rounds
    elif isinstance(known, Argon2id):
        assert str(nobody).split("$")[:4] == text.split("$")[:4]
        assert len(str(nobody)) == len(text)
    else:
        assert isinstance(nobody, Sha512)


def test_a_hash_that_needs_more_memory_than_there_is_refuses_the_login(caplog: pytest.LogCaptureFixture) -> None:
    assert not Argon2id(ARGON2ID.replace("m=64", "m=4294967295")).verify(b"secret")
    assert "cannot be computed" in caplog.text


@given(st.text())
def test_any_text_is_a_hash_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(hashes.parse(text)) == text


@pytest.mark.parametrize("algorithm", ["argon2id", "sha512-pbkdf2"])
def test_a_password_that_was_right_is_known_again(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    made, other = hashes.make(b"right", algorithm), hashes.make(b"left", algorithm)
    hashed: list[bytes] = []
    dear = type(made)._fits  # type: ignore[attr-defined]

    def fits(self: object, password: bytes) -> bool:
        hashed.append(password)
        return bool(dear(self, password))

    monkeypatch.setattr(type(made), "_fits", fits)
    assert [made.verify(word) for word in (b"right", b"right", b"wrong", b"wrong", b"right")] == [
        True, True, False, False, True
    ]  # fmt: skip
    assert hashed == [b"right", b"wrong", b"wrong"]
    assert not other.verify(b"right")
    monkeypatch.setattr(hashes, "_MOST_REMEMBERED", 1)
    assert other.verify(b"left")
    assert made.verify(b"right")
    assert made.verify(b"right")
    assert not hashes.parse(str(hashes.like(made))).verify(b"right")
