"""What a configuration asks for outside of itself: libraries that are extras, and secrets in files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lockgate.config.errors import ConfigError


def library(module: str, extra: str, section: str) -> Any:
    """Import a library for `section`, as `sinks.cloud`. Raises ConfigError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"needs the library {module.partition('.')[0]} ({error})",
            key=section,
            accepted=f"pip install 'lockgate[{extra}]'",
        ) from None


def first_line(path: Path) -> str:
    """The secret in a file. Raises ConfigError, which does not repeat it."""
    try:
        line = path.read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not valid UTF-8"
        raise ConfigError(f"cannot be read: {problem}", path=path, accepted="a file with the secret") from None
    if not line:
        raise ConfigError("has no first line", path=path, accepted="a file with the secret")
    return line
