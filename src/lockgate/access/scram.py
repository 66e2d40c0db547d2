"""SCRAM-SHA-256 for enhanced authentication: the Server's side and its file of users (RFC 5802, RFC 7677).

The file holds one `user:SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY` per line, PostgreSQL's form of a verifier:
nobody can log in with what it says. Channel binding is not offered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lockgate import files
from lockgate.mqtt import reason_codes

METHOD: Final = "SCRAM-SHA-256"
ITERATIONS: Final = 60_000  # for new verifiers; the client pays for them, the broker does not
_LEAST_ITERATIONS: Final = 4096  # RFC 7677 §4
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 18
_MAXIMUM_MESSAGE: Final = 4096  # bytes; longer ones are nobody's login
_MAXIMUM_NAME: Final = 255  # characters; to prepare a longer one takes milliseconds, before anybody is known

_VERIFIER = re.compile(r"SCRAM-SHA-256\$([0-9]{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


class ScramFileError(ValueError):
    """A line of the file that cannot be used; `line` is its number."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True, slots=True)
class Verifier:
    """What the Server keeps of a password (RFC 5802 §3)."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    @classmethod
    def of_password(cls, password: str, iterations: int = ITERATIONS, salt: bytes | None = None) -> Verifier:
        """Make the verifier of a password; raises ValueError for one that SASLprep forbids."""
        salt = os.urandom(16) if salt is None else salt
        salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(iterations, salt, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read PostgreSQL's form; raises ValueError."""
        match = _VERIFIER.fullmatch(text)
        if match is None:
            raise ValueError("is no verifier: SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY")
        if int(match[1]) < _LEAST_ITERATIONS:
            raise ValueError(f"has {match[1]} iterations, at least {_LEAST_ITERATIONS} are accepted")
        try:
            salt, stored_key, server_key = (base64.b64decode(match[part], validate=True) for part in (2, 3, 4))
        except binascii.Error:
            raise ValueError("has a part that is not base64") from None
        if not salt or len(stored_key) != _KEY_BYTES or len(server_key) != _KEY_BYTES:
            raise ValueError(f"needs a salt and two keys of {_KEY_BYTES} bytes")
        return cls(int(match[1]), salt, stored_key, server_key)

    def __str__(self) -> str:
        salt, stored_key, server_key = (
            base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored_key}:{server_key}"


def read_users(text: str) -> dict[str, Verifier]:
    """Read a file of users; raises ScramFileError for its first bad line. Empty lines and lines with # are skipped."""
    users: dict[str, Verifier] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, verifier = line.strip().rpartition(f":{METHOD}$")
        if not colon or not user:
            raise ScramFileError(number, f"the line is not USER:{METHOD}$…")
        if user in users:
            raise ScramFileError(number, f"user {user!r} stands there twice")
        try:
            users[user] = Verifier.parse(f"{METHOD}${verifier}")
        except ValueError as error:
            raise ScramFileError(number, f"user {user!r}: what follows the name {error}") from None
    return users


@dataclass(frozen=True, slots=True)
class Step:
    """An answer to the client: go on, SUCCESS with the user's name, or a refusal; `detail` is for the log."""

    reason_code: int
    data: bytes = b""
    username: str = ""
    detail: str = ""


class ScramAuthenticator:
    """Knows the users of one file; an authority for the broker's enhanced authentication."""

    def __init__(self, users: Mapping[str, Verifier], new_nonce: Callable[[], str] | None = None) -> None:
        self.users = users
        self._new_nonce = new_nonce if new_nonce is not None else _nonce
        self._secret = os.urandom(32)

    def begin(self, method: str) -> ScramExchange | None:
        """Begin an exchange of SCRAM-SHA-256."""
        return ScramExchange(self, self._new_nonce()) if method == METHOD else None

    def credential(self, username: str) -> object:
        """Give what a user is known by; None: not known."""
        return self.users.get(username)

    def verifier(self, username: str) -> tuple[Verifier, bool]:
        """Give a user's verifier and whether it is real: an unknown user gets one that nothing fits.

        It stays the same for a name, so that nobody learns from it which names exist.
        """
        known = self.users.get(username)
        if known is not None:
            return known, True
        model = next(iter(self.users.values()), None)  # iterations and salts are alike where one program made the file
        iterations, size = (model.iterations, len(model.salt)) if model is not None else (ITERATIONS, 16)
        salt = _hmac(self._secret, username.encode())[:size]
        return Verifier(iterations, salt, _hmac(self._secret, salt), _hmac(self._secret, salt[::-1])), False


class ScramExchange:
    """One login: client-first, server-first, client-final, server-final (RFC 5802 §5)."""

    def __init__(self, authenticator: ScramAuthenticator, nonce: str) -> None:
        self._authenticator = authenticator
        self._nonce = nonce
        self._header = b""
        self._first = b""  # client-first-message-bare, then with server-first-message: two parts of AuthMessage
        self._username = ""
        self._verifier: Verifier | None = None
        self._real = False

    def step(self, data: bytes) -> Step:
        """Answer the client's message."""
        if not data and not self._first:
            return Step(reason_codes.CONTINUE_AUTHENTICATION)  # CONNECT named the method alone
        try:
            if len(data) > _MAXIMUM_MESSAGE:
                raise ValueError(f"a message of {len(data)} bytes, at most {_MAXIMUM_MESSAGE} are accepted")
            text = data.decode("utf-8")
            return self._answer_final(text) if self._verifier is not None else self._answer_first(text)
        except ValueError as error:  # UnicodeDecodeError too
            return Step(reason_codes.NOT_AUTHORIZED, detail=f"{METHOD}: {error}")

    def _answer_first(self, text: str) -> Step:
        flag, authorization, bare = _split(text, 2)
        if flag not in ("n", "y"):
            raise ValueError("channel binding is not offered")
        fields = bare.split(",")
        if fields[0].startswith("m="):
            raise ValueError("an extension that must be understood is not")
        if len(fields) < 2 or not fields[0].startswith("n=") or not fields[1].startswith("r="):
            raise ValueError("client-first-message is not n=USER,r=NONCE")
        client_nonce = fields[1][2:]
        if not client_nonce or not all(0x21 <= ord(character) <= 0x7E for character in client_nonce):
            raise ValueError("the nonce is not printable ASCII")
        if len(fields[0]) > 2 + _MAXIMUM_NAME:
            raise ValueError(f"a user name of more than {_MAXIMUM_NAME} characters")
        self._username = saslprep(_unescape(fields[0][2:]))
        if not self._username:
            raise ValueError("an empty user name")
        if authorization and (not authorization.startswith("a=") or _unescape(authorization[2:]) != self._username):
            raise ValueError("nobody may act for another user")
        self._verifier, self._real = self._authenticator.verifier(self._username)
        self._header = f"{flag},{authorization},".encode()
        self._nonce = client_nonce + self._nonce
        salt = base64.b64encode(self._verifier.salt).decode()
        answer = f"r={self._nonce},s={salt},i={self._verifier.iterations}".encode()
        self._first = bare.encode() + b"," + answer
        return Step(reason_codes.CONTINUE_AUTHENTICATION, answer)

    def _answer_final(self, text: str) -> Step:
        assert self._verifier is not None
        without_proof, comma, proof_field = text.rpartition(",")
        fields = without_proof.split(",")
        if not comma or not proof_field.startswith("p=") or len(fields) < 2 or not fields[0].startswith("c="):
            raise ValueError("client-final-message is not c=…,r=NONCE,p=PROOF")
        if _base64(fields[0][2:]) != self._header:
            raise ValueError("the channel binding is not that of the first message")
        if not fields[1].startswith("r=") or not hmac.compare_digest(fields[1][2:].encode(), self._nonce.encode()):
            raise ValueError("the nonce is not that of this exchange")
        proof = _base64(proof_field[2:])
        message = self._first + b"," + without_proof.encode()
        signature = _hmac(self._verifier.stored_key, message)
        client_key = bytes(one ^ other for one, other in zip(proof, signature, strict=False))
        fits = len(proof) == _KEY_BYTES and hmac.compare_digest(
            hashlib.sha256(client_key).digest(), self._verifier.stored_key
        )
        if not (fits and self._real):
            return Step(reason_codes.NOT_AUTHORIZED, detail=f"{METHOD}: wrong password, or no user {self._username!r}")
        answer = b"v=" + base64.b64encode(_hmac(self._verifier.server_key, message))
        return Step(reason_codes.SUCCESS, answer, self._username)


def saslprep(text: str) -> str:
    """Prepare a user name or a password (RFC 4013); raises ValueError for characters that it forbids."""
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_a1, stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3,
        stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7,
        stringprep.in_table_c8, stringprep.in_table_c9,
    )  # fmt: skip
    for character in prepared:
        if any(table(character) for table in forbidden):
            raise ValueError(f"the character U+{ord(character):04X} is not allowed")
    if any(map(stringprep.in_table_d1, prepared)):  # right to left: wholly, and nothing else (RFC 3454 §6)
        if any(map(stringprep.in_table_d2, prepared)):
            raise ValueError("it is written in both directions")
        if not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])):
            raise ValueError("it is written from right to left only in part")
    return prepared


def write_user(path: Path, username: str, verifier: Verifier | None) -> bool:
    """Set a user's line in a file, or with None remove it; say whether the user was there before.

    The file is replaced as a whole and belongs to its owner alone. Raises OSError, ScramFileError.
    """
    text = path.read_text("utf-8") if path.exists() else ""
    known = username in read_users(text)
    lines = [line for line in text.splitlines() if not line.startswith(f"{username}:{METHOD}$")]
    if verifier is not None:
        lines.append(f"{username}:{verifier}")
    files.replace(path, "".join(f"{line}\n" for line in lines).encode())
    return known


def _split(text: str, commas: int) -> list[str]:
    parts = text.split(",", commas)
    if len(parts) != commas + 1:
        raise ValueError("client-first-message has no GS2 header")
    return parts


def _unescape(name: str) -> str:
    if re.search(r"=(?!2C|3D)", name):
        raise ValueError("a user name with = that is not =2C or =3D")
    return name.replace("=2C", ",").replace("=3D", "=")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("a part that is not base64") from None


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _nonce() -> str:
    return secrets.token_urlsafe(_NONCE_BYTES)
