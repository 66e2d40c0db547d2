"""The secret in a file: its first line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lockgate.config.errors import ConfigError

_LONGEST: Final = 1 << 16
_ACCEPTED: Final = "a file with the secret"


def first_line(path: Path) -> bytes:
    """Give the secret. Raises ConfigError, which does not repeat it, for a file that is not there or begins empty."""
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path, accepted=_ACCEPTED) from None
    if not line:
        raise ConfigError("has no first line", path=path, accepted=_ACCEPTED)
    return line


def first_line_text(path: Path) -> str:
    """The same as text. Raises ConfigError where it is not UTF-8, or holds what is no text."""
    try:
        line = first_line(path).decode()
    except UnicodeDecodeError:
        raise ConfigError("is not valid UTF-8", path=path, accepted=_ACCEPTED) from None
    if not line.isprintable():
        raise ConfigError("has control characters in its first line", path=path, accepted=_ACCEPTED)
    return line
