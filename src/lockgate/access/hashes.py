"""Password hashes in the forms Mosquitto reads: `$6$` SHA-512, `$7$` PBKDF2-HMAC-SHA-512, `$argon2id$`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

log = logging.getLogger(__name__)

Algorithm = Literal["argon2id", "sha512-pbkdf2", "sha512"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("argon2id", "sha512-pbkdf2", "sha512")
ACCEPTED: Final = "$argon2id$…, $7$ROUNDS$SALT$HASH or $6$SALT$HASH, as mosquitto_passwd writes them"

# Mosquitto's parameters of Argon2id: passes, memory in KiB, lanes
_ARGON2_TIME: Final = 1
_ARGON2_MEMORY: Final = 47_104
_ARGON2_LANES: Final = 1
ROUNDS: Final = 1000  # of PBKDF2, as Mosquitto 2.1 writes; who wants a strong hash takes Argon2id
# Beyond these a hash is a slip of the pen: all logins would wait for one, or the machine for memory.
MAXIMUM_ROUNDS: Final = 10_000_000
_MAXIMUM_MEMORY: Final = 1_048_576  # KiB
_MAXIMUM_WORK: Final = 16 * _MAXIMUM_MEMORY  # KiB, of all passes of Argon2id
MAXIMUM_PASSES: Final = _MAXIMUM_WORK // _ARGON2_MEMORY  # of those made here
_SALT_BYTES: Final = 12  # Mosquitto 2.0 reads no other length
_HASH_BYTES: Final = 64

_MOST_REMEMBERED: Final = 10_000

_PARTS: Final = re.compile(r"\$(?:6|7\$([0-9]{1,10}))\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")


class PasswordHash(Protocol):
    """A password nobody can read. `str()` gives the form that `parse` reads."""

    def verify(self, password: bytes) -> bool:
        """Say whether this is the password; takes as long as the hash was made to take, but for one that just was."""
        ...


class _Remembered:
    """Passwords that were right, as digests under a key that never leaves this process.

    A hash that takes 50 ms makes a thousand devices that come back at once wait for a minute; a password that was right
    stays so as long as it is compared with the same hash. The one not asked for longest gives way.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._digests: dict[bytes, None] = {}

    def verify(self, hashed: str, password: bytes, verify: Callable[[], bool]) -> bool:
        """Say whether it is the password, and ask `verify` only if that is not known to be so."""
        digest = hashlib.blake2b(hashed.encode() + b"\0" + password, key=self._key, digest_size=32).digest()
        if digest in self._digests:
            del self._digests[digest]
        elif not verify():
            return False
        self._digests[digest] = None
        if len(self._digests) > _MOST_REMEMBERED:
            del self._digests[next(iter(self._digests))]
        return True


_remembered = _Remembered()


@dataclass(frozen=True, slots=True)
class Sha512:
    """SHA-512 over password and salt, once: quick to guess, for what Mosquitto 1.6 wrote."""

    salt: bytes
    digest: bytes

    def verify(self, password: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha512(password + self.salt).digest(), self.digest)

    def __str__(self) -> str:
        return f"$6${_base64(self.salt)}${_base64(self.digest)}"


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """PBKDF2-HMAC-SHA-512."""

    rounds: int
    salt: bytes
    digest: bytes

    def verify(self, password: bytes) -> bool:
        return _remembered.verify(str(self), password, lambda: self._fits(password))

    def _fits(self, password: bytes) -> bool:
        return hmac.compare_digest(hashlib.pbkdf2_hmac("sha512", password, self.salt, self.rounds), self.digest)

    def __str__(self) -> str:
        return f"$7${self.rounds}${_base64(self.salt)}${_base64(self.digest)}"


@dataclass(frozen=True, slots=True)
class Argon2id:
    """Argon2id in its usual text form."""

    text: str

    def verify(self, password: bytes) -> bool:
        return _remembered.verify(self.text, password, lambda: self._fits(password))

    def _fits(self, password: bytes) -> bool:
        from argon2.exceptions import VerificationError, VerifyMismatchError
        from argon2.low_level import Type, verify_secret

        try:
            return verify_secret(self.text.encode(), password, Type.ID)
        except VerifyMismatchError:
            return False
        except VerificationError as error:  # no memory for it, say: the login is refused, not the broker stopped
            log.error("an Argon2id hash cannot be computed: %s", error)
            return False

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> PasswordHash:
    """Read a hash; raises ValueError that says what is wrong with it, without showing it."""
    if text.startswith("$argon2id$"):
        return _parse_argon2id(text)
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError("is not a password hash" if text else "is missing")
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in match.group(2, 3))
    except binascii.Error:
        raise ValueError("has a part that is not base64") from None
    if len(digest) != _HASH_BYTES:
        raise ValueError(f"has {len(digest)} bytes of hash, must be {_HASH_BYTES}")
    if match[1] is None:
        return Sha512(salt, digest)
    rounds = int(match[1])
    if not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise ValueError(f"has {rounds} rounds, must be 1 to {MAXIMUM_ROUNDS}")
    return Pbkdf2(rounds, salt, digest)


def make(password: bytes, algorithm: Algorithm = "argon2id", rounds: int | None = None) -> PasswordHash:
    """Hash a password with a new salt.

    `rounds` are those of PBKDF2 (default 1000) or the passes of Argon2id (default 1); SHA-512 has none.
    """
    salt = os.urandom(_SALT_BYTES)
    if algorithm == "sha512":
        return Sha512(salt, hashlib.sha512(password + salt).digest())
    if algorithm == "sha512-pbkdf2":
        rounds = rounds if rounds is not None else ROUNDS
        return Pbkdf2(rounds, salt, hashlib.pbkdf2_hmac("sha512", password, salt, rounds))
    from argon2.low_level import Type, hash_secret

    passes = rounds if rounds is not None else _ARGON2_TIME
    return Argon2id(
        hash_secret(password, os.urandom(16), passes, _ARGON2_MEMORY, _ARGON2_LANES, _HASH_BYTES, Type.ID).decode()
    )


def like(model: PasswordHash | None) -> PasswordHash:
    """Give a hash that no password fits and that takes as long to verify as `model`."""
    if isinstance(model, Sha512):
        return Sha512(os.urandom(len(model.salt)), os.urandom(_HASH_BYTES))
    if isinstance(model, Pbkdf2):
        return Pbkdf2(model.rounds, os.urandom(len(model.salt)), os.urandom(_HASH_BYTES))
    if isinstance(model, Argon2id):
        *head, salt, digest = model.text.split("$")
        return Argon2id("$".join((*head, _unpadded(len(salt)), _unpadded(len(digest)))))
    return Sha512(os.urandom(_SALT_BYTES), os.urandom(_HASH_BYTES))


def _parse_argon2id(text: str) -> Argon2id:
    from argon2 import extract_parameters
    from argon2.exceptions import InvalidHashError

    try:
        asked = extract_parameters(text)
        if not (asked.time_cost and asked.parallelism and asked.memory_cost >= 8 * asked.parallelism):  # RFC 9106 §3.1
            raise ValueError
        *_head, salt, digest = text.split("$")
        for part in (salt, digest):
            base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
    except (InvalidHashError, ValueError):  # binascii.Error is a ValueError
        raise ValueError("is a damaged Argon2id hash: $argon2id$v=19$m=…,t=…,p=…$SALT$HASH is expected") from None
    if asked.memory_cost > _MAXIMUM_MEMORY:
        raise ValueError(f"asks for {asked.memory_cost} KiB of memory (m), must be at most {_MAXIMUM_MEMORY}")
    if asked.memory_cost * asked.time_cost > _MAXIMUM_WORK:
        raise ValueError(f"asks for {asked.time_cost} passes (t), must be at most {_MAXIMUM_WORK // asked.memory_cost}")
    return Argon2id(text)


def _unpadded(characters: int) -> str:
    """Give random base64 of so many characters that decodes: what the last one holds beyond whole bytes is 0."""
    return base64.b64encode(os.urandom(characters * 3 // 4)).decode().rstrip("=")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
