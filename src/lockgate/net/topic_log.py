"""`log_dest topic`: lines of the log as messages below `$SYS/broker/log/`, for whoever subscribes to them."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from lockgate.broker import routing
from lockgate.broker.ports import NEVER, Message
from lockgate.telemetry import logs

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

_LEVELS: Final = ((logging.ERROR, "E"), (logging.WARNING, "W"), (logging.INFO, "N"), (logging.NOTSET, "D"))
_NAMES: Final = {logs.subscribe.name: "M/subscribe", logs.unsubscribe.name: "M/unsubscribe"}
_MOST_WAITING: Final = 1000  # lines; what is told faster than it is taken is left out


class TopicLog(logging.Handler):
    """Gathers lines, from whatever thread, and publishes them in a turn of their own: QoS 2, not retained."""

    def __init__(self, service: BrokerService) -> None:
        super().__init__()
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._lines: list[tuple[str, str]] = []
        self._lock_lines = threading.Lock()
        self._publishing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; one that publishing a line gave rise to is for the other places alone."""
        if self._publishing or self._loop.is_closed():
            return
        letter = _NAMES.get(record.name) or next(letter for level, letter in _LEVELS if record.levelno >= level)
        with self._lock_lines:
            first = not self._lines
            if len(self._lines) < _MOST_WAITING:
                self._lines.append((letter, self.format(record)))
        if first:
            self._loop.call_soon_threadsafe(self._publish)

    def _publish(self) -> None:
        with self._lock_lines:
            lines, self._lines = self._lines, []
        service = self._service
        now = service.clock()
        self._publishing = True
        try:
            for letter, line in lines:
                topic = f"$SYS/broker/log/{letter}"
                routing.publish(service.broker, Message(topic, line.encode(), 2, False, None, NEVER, ""), now)
            service.flush()
        finally:
            self._publishing = False
