"""Sinks whose libraries are extras: one message for all of them where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from lockgate.config.errors import ConfigError


def library(module: str, extra: str, sink: str) -> Any:
    """Import a library. Raises ConfigError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"needs the library {module.partition('.')[0]} ({error})",
            key=f"sinks.{sink}",
            accepted=f"pip install 'lockgate[{extra}]'",
        ) from None
