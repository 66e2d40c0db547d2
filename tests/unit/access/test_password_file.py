"""The password file: what is read, who is let in, and how a line is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.access import hashes
from lockgate.access.authority import Chain, Verdict
from lockgate.access.hashes import PasswordHash
from lockgate.access.password_file import PasswordFile, check_username, parse, set_user
from lockgate.config.errors import ConfigError

PATH = Path("passwords")
HASH = str(hashes.make(b"secret", "sha512-pbkdf2", 1))


class Counting:
    """A hash that counts how often it is verified."""

    def __init__(self) -> None:
        self.verified = 0

    def verify(self, password: bytes) -> bool:
        self.verified += 1
        return password == b"secret"


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    return str(caught.value).splitlines()


def test_lines_that_are_read_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"# a comment: with a colon\r\n\r\nanna:{HASH}\r\nno colon\n bert :  {HASH} \nüml aut:{HASH}")
    path.chmod(0o600)
    assert sorted(PasswordFile.load(path).users) == ["anna", "bert", "üml aut"]


def test_every_mistake_is_named_with_its_line() -> None:
    found = mistakes(f"anna:{HASH}\nbert:\n:{HASH}\nanna:{HASH}\ncarl:secret\ndora:$6$x$y\n")
    assert [line.split(" (accepted")[0] for line in found] == [
        "passwords:2: what follows user 'bert' is missing",
        "passwords:3: the user name is missing",
        "passwords:4: user 'anna' stands there twice",
        "passwords:5: what follows user 'carl' is not a password hash",
        "passwords:6: what follows user 'dora' has a part that is not base64",
    ]
    assert "secret" not in "".join(found)
    assert "$argon2id$" in found[0]


def test_who_is_let_in() -> None:
    users = PasswordFile({"anna": hashes.parse(HASH)})
    assert users.login("c", "anna", b"secret") is Verdict.ALLOW
    assert users.login("c", "anna", b"wrong") is Verdict.DENY
    assert users.login("c", "anna", b"") is Verdict.DENY
    assert users.login("c", "anna", None) is Verdict.DENY, "a user name without a password"
    assert users.login("c", "bert", b"secret") is Verdict.DEFER
    assert users.login("c", None, None) is Verdict.IGNORE
    assert users.login("c", "anna", None, by_certificate=True) is Verdict.IGNORE
    for question in (users.may_publish, users.may_receive, users.may_subscribe, users.may_unsubscribe):
        assert question("c", "anna", "t") is Verdict.IGNORE


def test_a_file_without_users_lets_nobody_in_who_gives_a_name() -> None:
    chain = Chain([PasswordFile({})], allow_anonymous=True)
    assert not chain.login("c", "anna", b"secret")
    assert chain.login("c", None, None)


def test_an_unknown_user_costs_a_hash_of_the_usual_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PasswordHash | None] = []
    nobody = Counting()

    def like(model: PasswordHash | None) -> PasswordHash:
        asked.append(model)
        return nobody

    monkeypatch.setattr(hashes, "like", like)
    usual = hashes.parse(HASH)
    users = PasswordFile({"old": hashes.make(b"x", "sha512"), "anna": usual, "bert": usual})
    assert asked == [usual]
    assert users.login("c", "nobody", b"secret") is Verdict.DEFER, "even where the hash fits"
    assert nobody.verified == 1
    assert users.login("c", "anna", b"wrong") is Verdict.DENY
    assert nobody.verified == 1


def test_a_line_is_changed_in_its_place_and_others_stay() -> None:
    text = "# mine\n\nanna:old\nbert:old\n# anna:x\n"
    hashed = hashes.parse(HASH)
    assert set_user(text, "anna", hashed) == (f"# mine\n\nanna:{HASH}\nbert:old\n# anna:x\n", True)
    assert set_user(text, "carl", hashed) == (f"{text}carl:{HASH}\n", False)
    assert set_user(text, "bert", None) == ("# mine\n\nanna:old\n# anna:x\n", True)
    assert set_user("anna:x", "anna", None) == ("", True)
    assert set_user("anna:x\nanna:y\n", "anna", hashed) == (f"anna:{HASH}\n", True)


@pytest.mark.parametrize("name", ["", " a", "a ", "#a", "a:b", "a\nb", "a\x7f", "ä" * 32_768])
def test_names_that_cannot_stand_in_the_file(name: str) -> None:
    with pytest.raises(ValueError, match="a user name"):
        check_username(name)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 9), max_size=5))
def test_what_is_set_is_read_back(users: dict[str, int]) -> None:
    text = ""
    expected: dict[str, PasswordHash] = {}
    for name, rounds in users.items():
        hashed = hashes.make(b"x", "sha512-pbkdf2", rounds)
        try:
            text, _known = set_user(text, name, hashed)
        except ValueError:
            continue
        expected[name] = hashed
    assert parse(text, PATH) == expected
