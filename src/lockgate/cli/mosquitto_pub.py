"""`mosquitto_pub`: publish a message, a file or the lines of standard input."""

from __future__ import annotations

import os
import sys
import time
from typing import Final

from lockgate.cli.mosquitto_options import PUB, Done, Options, UsageError, parse, report
from lockgate.cli.mosquitto_wire import Failure, Wire, complain, end_quietly_on_a_closed_pipe, reason_text
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_name

_READ_BYTES: Final = 65_536
_AHEAD: Final = 200  # messages read from standard input and not acknowledged; then the rest waits where it is


def main(words: list[str]) -> int:
    """Exit status 0 when everything left our hands, the CONNACK's code when refused, else the error's."""
    end_quietly_on_a_closed_pipe()
    quiet = "--quiet" in words
    try:
        options = parse(PUB, words)
        program = _Publisher(options)
    except Done:
        return 1
    except UsageError as error:
        return report(PUB, error)
    try:
        program.open()
        program.run()
    except Failure as failure:
        if not quiet:
            complain(failure.line)
        return program.status or failure.status
    except KeyboardInterrupt:
        program.leave()
        return 130
    return 0


class _Publisher(Wire):
    def __init__(self, options: Options) -> None:
        super().__init__(
            options.endpoint(),
            options.connect_packet(),
            debug=options.debug,
            quiet=options.quiet,
            reconnect=options.stdin_lines,
            in_flight=options.max_inflight,
            disconnect_properties=options.of("disconnect"),
        )
        self._options = options
        self._to_send = options.repeat
        self._properties = options.of("publish")
        self._rest = b""  # of standard input, of a line whose end has not come
        self._ended = False  # standard input
        self._begun = False

    def connected(self) -> None:
        if self._options.stdin_lines:
            self.watch(sys.stdin.fileno(), not self._ended)
        elif not self._begun:
            self._next()
        self._begun = True

    def published(self, packet_id: int, reason_code: int) -> None:
        if reason_code >= 0x80 and not self._quiet:
            complain(f"Warning: Publish {packet_id} failed: {reason_text(reason_code)}.")
        if self._options.stdin_lines:
            self.watch(sys.stdin.fileno(), not self._ended and self.unsent < _AHEAD)
            self._end_if_done()
        elif self._to_send == 0:
            self.disconnect()
        elif self._options.repeat_delay:
            self.alarm = time.monotonic() + self._options.repeat_delay
        elif self._options.qos:
            self._next()

    def alarmed(self) -> None:
        self._next()

    def _next(self) -> None:
        """Publish the message once more; at QoS 0 as often as it is wanted, unless there is a delay."""
        while self._to_send:
            self._to_send -= 1
            if not self._send_one(self._options.message or b""):
                self.disconnect()
                return
            if self._options.qos or self._options.repeat_delay:
                return

    def _send_one(self, payload: bytes) -> bool:
        topic = self._options.topic or ""
        try:
            check_topic_name(topic)
        except MqttError:
            if self._properties is None or self._properties.topic_alias is None or topic:
                if not self._quiet:
                    complain("Error: Invalid input. Does your topic contain '+' or '#'?")
                return False
        self.publish(topic, payload, self._options.qos, self._options.retain, self._properties)
        return True

    def readable(self, descriptor: int) -> None:
        data = os.read(descriptor, _READ_BYTES)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self._ended = True
            self.watch(descriptor, False)
            if self._rest:
                lines.append(self._rest)
                self._rest = b""
        for line in lines:
            if not self._send_one(line):
                self._ended = True
                self.watch(descriptor, False)
                self.disconnect()
                return
        if not self._ended:
            self.watch(descriptor, self.unsent < _AHEAD)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended and not self.unsent:
            self.disconnect()
