"""Log lines in Mosquitto's format, to the places a LogConfig names."""

from __future__ import annotations

import logging
import sys
import time
from logging.handlers import SysLogHandler

from lockgate.config.errors import ConfigError
from lockgate.config.model import LogConfig

# Loggers of two of Mosquitto's log types, which have no level of their own
subscribe = logging.getLogger("lockgate.subscribe")
unsubscribe = logging.getLogger("lockgate.unsubscribe")

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "notice": logging.INFO, "information": logging.INFO}
_PREFIXES = {"ERROR": "Error: ", "CRITICAL": "Error: ", "WARNING": "Warning: "}


class MosquittoFormatter(logging.Formatter):
    """`1700000000: Warning: text`, as programs that read Mosquitto's log expect it."""

    def __init__(self, config: LogConfig) -> None:
        super().__init__("%(message)s")
        self._timestamp = config.timestamp
        self._timestamp_format = config.timestamp_format

    def format(self, record: logging.LogRecord) -> str:
        return self._time(record) + _PREFIXES.get(record.levelname, "") + super().format(record)

    def _time(self, record: logging.LogRecord) -> str:
        if not self._timestamp:
            return ""
        if self._timestamp_format is None:
            return f"{int(record.created)}: "
        return time.strftime(self._timestamp_format, time.localtime(record.created)) + ": "


class _TypeFilter(logging.Filter):
    """Lets through the levels that `log_type` names; they need not be neighbours."""

    def __init__(self, config: LogConfig) -> None:
        super().__init__()
        self._levels = {_LEVELS[name] for name in config.types if name in _LEVELS}
        self._debug = "debug" in config.types
        self._named = {subscribe.name: "subscribe" in config.types, unsubscribe.name: "unsubscribe" in config.types}
        self.lowest = logging.DEBUG if self._debug else min(self._levels, default=logging.CRITICAL + 1)

    def filter(self, record: logging.LogRecord) -> bool:
        wanted = self._named.get(record.name)
        if wanted is not None:
            return wanted
        if record.levelno < logging.INFO:
            return self._debug
        return min(record.levelno, logging.ERROR) // 10 * 10 in self._levels


class Places:
    """Where a LogConfig sends lines, opened and not in use yet."""

    def __init__(self, config: LogConfig) -> None:
        """Raises ConfigError for a destination that cannot be opened."""
        self._config = config
        places = [one for one in config.destinations if one not in ("none", "topic")]  # the broker sees to its topics
        self._handlers = [_handler(destination, config) for destination in places]

    def use(self) -> None:
        """Send all log lines of this process here, to what was added, and nowhere else."""
        formatter, types = MosquittoFormatter(self._config), _TypeFilter(self._config)
        for handler in self._handlers:
            if not isinstance(handler, SysLogHandler):  # syslog has a time of its own
                handler.setFormatter(formatter)
            handler.addFilter(types)
        root = logging.getLogger()
        before = [handler for handler in root.handlers if handler not in _added]
        for handler in self._handlers or [logging.NullHandler()]:
            root.addHandler(handler)
        for handler in before:  # after that: a line of another thread is told twice rather than lost
            root.removeHandler(handler)
            handler.close()
        # A line nobody wants is not even made: at three for each client that comes and goes that was a quarter of its
        # cost.
        root.setLevel(types.lowest)
        for logger, name in ((subscribe, "subscribe"), (unsubscribe, "unsubscribe")):
            logger.setLevel(logging.INFO if name in self._config.types else logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(logging.INFO)
        logging.captureWarnings(True)

    def close(self) -> None:
        """Close what will not be used."""
        for handler in self._handlers:
            handler.close()


_added: list[logging.Handler] = []


def configure(config: LogConfig) -> None:
    """Send all log lines of this process where `config` says.

    Raises ConfigError for a destination that cannot be opened. Called again, it replaces what was there.
    """
    Places(config).use()


def add(handler: logging.Handler, config: LogConfig) -> None:
    """Send log lines to one more place, until `remove`."""
    handler.setFormatter(MosquittoFormatter(config))
    handler.addFilter(_TypeFilter(config))
    logging.getLogger().addHandler(handler)
    _added.append(handler)


def remove(handler: logging.Handler) -> None:
    """Take back what was added."""
    logging.getLogger().removeHandler(handler)
    if handler in _added:
        _added.remove(handler)
    handler.close()


def _handler(destination: str, config: LogConfig) -> logging.Handler:
    kind, _, argument = destination.partition(" ")
    try:
        match kind:
            case "stdout":
                return logging.StreamHandler(sys.stdout)
            case "stderr":
                return logging.StreamHandler(sys.stderr)
            case "file":
                return logging.FileHandler(argument, encoding="utf-8")
            case "syslog":
                facility = "daemon" if config.facility is None else f"local{config.facility}"
                handler = SysLogHandler("/dev/log", SysLogHandler.facility_names[facility])
                handler.ident = "lockgate: "
                return handler
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or error})"
        raise ConfigError(f"{destination} {problem}", key="log_dest") from error
    raise ConfigError(
        f"{destination!r} is no place for a log", key="log_dest", accepted="stdout, stderr, syslog, file, none"
    )
