"""What a configuration asks for outside of itself: libraries that are extras, and secrets in files."""

from __future__ import annotations

import importlib
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
