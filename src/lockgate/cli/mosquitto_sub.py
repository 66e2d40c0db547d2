"""`mosquitto_sub`: subscribe and print what comes."""

from __future__ import annotations

import random
import time

from lockgate.cli.mosquitto_format import Printer
from lockgate.cli.mosquitto_options import SUB, Done, Options, UsageError, parse, report
from lockgate.cli.mosquitto_wire import (
    INTERRUPTED,
    Wire,
    complain,
    end_quietly_on_a_closed_pipe,
    listen,
    put,
)
from lockgate.mqtt.packets import Publish, SubAck, SubscriptionRequest
from lockgate.mqtt.topics import matches


def main(words: list[str]) -> int:
    """Exit status 0 at the end asked for, 27 at the timeout, the CONNACK's code when refused, else the error's."""
    end_quietly_on_a_closed_pipe()
    try:
        options = parse(SUB, words)
        program = _Subscriber(options)
    except Done:
        return 1
    except UsageError as error:
        return report(SUB, error)
    return listen(program, options.timeout, quiet=options.quiet, unconnected=INTERRUPTED)


class _Subscriber(Wire):
    def __init__(self, options: Options) -> None:
        super().__init__(
            options.endpoint(),
            options.connect_packet(),
            debug=options.debug,
            quiet=options.quiet,
            reconnect=True,
            in_flight=options.max_inflight,
            disconnect_properties=options.of("disconnect"),
        )
        self._options = options
        self._printer = Printer(options.format, verbose=options.verbose, eol=options.eol, pretty=options.pretty)
        self._wanted = True  # messages
        self._counted = 0
        self._clearing: set[int] = set()  # the retained messages we remove
        self._rate = 0
        self._rows: dict[str, int] = {}  # topics of --watch

    def connected(self) -> None:
        options = self._options
        requests = [
            SubscriptionRequest(topic_filter, options.qos, False, options.retain_as_published, self._retain_handling())
            for topic_filter in options.topics
        ]
        self.subscribe(requests, options.of("subscribe"))
        if options.unsubscribe:
            self.unsubscribe(options.unsubscribe, options.of("unsubscribe"))
        if options.message_rate:
            self.alarm = time.monotonic() + 1.0

    def _retain_handling(self) -> int:
        return 2 if self._options.no_retain and not self._options.remove_retained else self._options.retain_handling

    def subscribed(self, packet: SubAck) -> None:
        if self._debug:
            codes = ", ".join(map(str, packet.reason_codes))
            print(f"Subscribed (mid: {packet.packet_id}): {codes}", flush=True)
        if all(code >= 0x80 for code in packet.reason_codes):
            if not self._quiet:
                complain("All subscription requests were denied.")
            self.disconnect()
        elif self._options.exit_after_subscribe:
            self.disconnect()

    def received(self, message: Publish) -> None:
        if not self._wanted:
            return
        options = self._options
        if options.retained_only and not message.retain:
            self._end()
            return
        if any(matches(topic_filter, message.topic) for topic_filter in options.filter_out):
            return
        if options.remove_retained and message.retain:
            self._clearing.add(self.publish(message.topic, b"", 1, True))
        if (options.no_retain and message.retain) or random.random() * 100.0 >= options.random_filter:
            return
        self._show(message)
        self._counted += 1
        if self._counted == options.count:
            self._end()

    def published(self, packet_id: int, reason_code: int) -> None:
        self._clearing.discard(packet_id)
        if not self._wanted and not self._clearing:
            self.disconnect()

    def alarmed(self) -> None:
        print(self._rate, flush=True)
        self._rate = 0
        self.alarm = time.monotonic() + 1.0

    def _end(self) -> None:
        """Want no more; but what was to be removed has to be."""
        self._wanted = False
        if not self._clearing:
            self.disconnect()

    def _show(self, message: Publish) -> None:
        if self._options.message_rate:
            self._rate += 1
            return
        text = self._printer.shown(message, quiet=self._quiet)
        if self._options.watch:
            row = self._rows.setdefault(message.topic, len(self._rows) + 1)
            # clear the screen once; then to the row, clear it, print without the line's end
            text = (
                (b"\x1b[2J" if row == 1 and self._counted == 0 else b"")
                + b"\x1b[%d;1H\x1b[2K" % row
                + text.rstrip(b"\n")
            )
        if not put(text):
            self.status = 1
            self._wanted = False
            self.disconnect()
