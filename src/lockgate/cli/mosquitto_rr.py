"""`mosquitto_rr`: publish a request and print the response."""

from __future__ import annotations

import copy
import time

from lockgate.cli.mosquitto_format import Printer
from lockgate.cli.mosquitto_options import RR, Done, Options, UsageError, parse, report
from lockgate.cli.mosquitto_wire import (
    Wire,
    complain,
    end_quietly_on_a_closed_pipe,
    listen,
    put,
)
from lockgate.mqtt.packets import V5, Publish, SubAck, SubscriptionRequest
from lockgate.mqtt.properties import Properties


def main(words: list[str]) -> int:
    """Exit status 0 with a response, 27 without one in time, the CONNACK's code when refused, else the error's."""
    end_quietly_on_a_closed_pipe()
    try:
        options = parse(RR, words)
        if options.version == V5 and (given := options.of("publish")) is not None and given.response_topic is not None:
            raise UsageError("Error in PUBLISH properties: Duplicate response topic.", hint=False)
        program = _Requester(options)
    except Done:
        return 1
    except UsageError as error:
        return report(RR, error)
    return listen(program, options.timeout, quiet=options.quiet)


class _Requester(Wire):
    def __init__(self, options: Options) -> None:
        super().__init__(
            options.endpoint(),
            options.connect_packet(),
            debug=options.debug,
            quiet=options.quiet,
            in_flight=options.max_inflight,
            disconnect_properties=options.of("disconnect"),
        )
        self._options = options
        self._printer = Printer(options.format, verbose=options.verbose, eol=options.eol, pretty=options.pretty)
        self._asked_at: float | None = None

    def connected(self) -> None:
        options = self._options
        request = SubscriptionRequest(
            options.response_topic or "", options.qos, False, options.retain_as_published, options.retain_handling
        )
        self.subscribe([request], options.of("subscribe"))

    def subscribed(self, packet: SubAck) -> None:
        if packet.reason_codes[0] >= 0x80:
            if not self._options.quiet:
                complain("All subscription requests were denied.")
            self.disconnect()
            return
        options = self._options
        given: Properties | None = options.of("publish")
        properties = copy.copy(given) if given is not None else Properties()
        properties.response_topic = options.response_topic
        self._asked_at = time.monotonic()
        self.publish(options.topic or "", options.message or b"", options.qos, options.retain, properties)

    def received(self, message: Publish) -> None:
        if self._asked_at is None or (self._options.no_retain and message.retain):
            return
        if self._options.latency:
            print(f"Latency: {(time.monotonic() - self._asked_at) * 1000:.3f} ms", flush=True)
        if not put(self._printer.shown(message, quiet=self._options.quiet)):
            self.status = 1
        self._asked_at = None
        self.disconnect()
