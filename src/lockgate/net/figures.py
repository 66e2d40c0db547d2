"""The broker's figures, below `$SYS/broker/` and as Prometheus metrics: Mosquitto's names, and ours beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lockgate.mqtt.packets import TYPE_NAMES

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

Number = int | float

# Averages of what happened in a minute: the name below `load/`, and the total it is made of
_LOADS: Final = {
    "messages/received": "messages/received",
    "messages/sent": "messages/sent",
    "publish/received": "publish/messages/received",
    "publish/sent": "publish/messages/sent",
    "publish/dropped": "publish/messages/dropped",
    "bytes/received": "bytes/received",
    "bytes/sent": "bytes/sent",
    "sockets": "sockets",
    "connections": "connections",
}
_MINUTES: Final = (1, 5, 15)
# What goes up and down; everything else only grows.
_GAUGES: Final = frozenset(
    {
        "clients/total",
        "clients/connected",
        "clients/active",
        "clients/disconnected",
        "clients/inactive",
        "connections/socket/count",
        "messages/stored",
        "store/messages/count",
        "store/messages/bytes",
        "retained messages/count",
        "subscriptions/count",
        "shared_subscriptions/count",
        "packet/out/count",
        "packet/out/bytes",
        "heap/current",
        "store/sync_ms",
        "store/safe_rate",
        "store/failing",
    }
)
_STORE: Final = ("sync_ms", "safe_rate", "commits", "bytes_written", "failing")


class Figures:
    """Counts what the core does not: the most there was, and averages over time."""

    def __init__(self, service: BrokerService, now: float) -> None:
        self._service = service
        self._started_at = now
        self._most_connected = 0
        self._most_heap = 0
        self._averaged_at = now
        self._before: dict[str, Number] = {}
        self._averages: dict[tuple[str, int], float] = {(name, one): 0.0 for name in _LOADS for one in _MINUTES}

    def average(self, now: float) -> None:
        """Take what happened since the last call into the averages; times are those of the broker's clock."""
        numbers = self.numbers() | self._hidden()
        passed = now - self._averaged_at
        if passed > 0:
            self._averaged_at = now
            for name, total in _LOADS.items():
                rate = (numbers[total] - self._before.get(total, 0)) * 60.0 / passed
                for minutes in _MINUTES:
                    weight = math.exp(-passed / (60.0 * minutes))
                    self._averages[name, minutes] = rate + weight * (self._averages[name, minutes] - rate)
        self._before = numbers

    def _hidden(self) -> dict[str, Number]:
        """Totals that have an average and no figure of their own."""
        statistics = self._service.broker.statistics
        return {"sockets": statistics.connections_accepted, "connections": statistics.received[1]}

    def numbers(self) -> dict[str, Number]:
        """Give every figure that is a number, without the averages."""
        broker = self._service.broker
        totals = broker.statistics
        connected = len(broker.connections) - len(broker.pending)
        self._most_connected = max(self._most_connected, connected)
        self._most_heap = max(self._most_heap, broker.memory.used)
        away = sum(1 for session in broker.sessions.values() if session.connection is None)
        queued_bytes = sum(session.queued_bytes for session in broker.sessions.values())
        held = broker.queued_count + broker.retained.count
        figures: dict[str, Number] = {
            "clients/total": len(broker.sessions),
            "clients/connected": connected,
            "clients/active": connected,
            "clients/disconnected": away,
            "clients/inactive": away,
            "clients/maximum": self._most_connected,
            "clients/expired": totals.sessions_expired,
            "connections/socket/count": len(broker.connections),
            "messages/received": totals.packets_received,
            "messages/sent": totals.packets_sent,
            "messages/stored": held,
            "store/messages/count": held,
            "store/messages/bytes": queued_bytes + broker.retained.size_bytes,
            "retained messages/count": broker.retained.count,
            "subscriptions/count": broker.router.tree.count,
            "shared_subscriptions/count": broker.router.tree.shared_count,
            "publish/messages/received": totals.publish_received,
            "publish/messages/sent": totals.publish_sent,
            "publish/messages/dropped": totals.dropped,
            "publish/bytes/received": totals.publish_bytes_received,
            "publish/bytes/sent": totals.publish_bytes_sent,
            "bytes/received": totals.bytes_received,
            "bytes/sent": totals.bytes_sent,
            "packet/out/count": sum(len(one.output) for one in broker.connections.values()),
            "packet/out/bytes": sum(one.output_bytes for one in broker.connections.values()),
            "heap/current": broker.memory.used,
            "heap/maximum": self._most_heap,
        }
        for packet_type in range(1, 16):
            name = TYPE_NAMES[packet_type].lower()
            figures[f"mqtt/{name}/received"] = totals.received[packet_type]
            figures[f"mqtt/{name}/sent"] = totals.sent[packet_type]
        store = self._service.store_status()
        for name in _STORE:
            value = store.get(name)
            if isinstance(value, int | float):
                figures[f"store/{name}"] = int(value) if isinstance(value, bool) else value
        return figures

    def uptime(self) -> int:
        """Give seconds since the start."""
        return int(self._service.clock() - self._started_at)

    def topics(self, version: str) -> Mapping[str, str]:
        """Give every figure as text, by its topic below `$SYS/broker/`."""
        texts = {"version": f"mosquitto version {version}", "uptime": f"{self.uptime()} seconds"}
        texts |= {name: str(value) for name, value in self.numbers().items()}
        for (name, minutes), average in self._averages.items():
            texts[f"load/{name}/{minutes}min"] = f"{average:.2f}"
        return texts

    def tree(self, version: str) -> dict[str, Number | str]:
        """Give every figure by its whole topic, for JSON."""
        texts: dict[str, Number | str] = {"$SYS/broker/version": f"mosquitto version {version}"}
        texts["$SYS/broker/uptime"] = self.uptime()
        texts |= {f"$SYS/broker/{name}": value for name, value in self.numbers().items()}
        for (name, minutes), average in self._averages.items():
            texts[f"$SYS/broker/load/{name}/{minutes}min"] = round(average, 2)
        return texts

    def prometheus(self) -> str:
        """Give every number in the text format of Prometheus, under the names of the exporters for Mosquitto."""
        lines = [
            "# TYPE broker_uptime counter",
            f"broker_uptime {self.uptime()}",
        ]
        for topic, value in self.numbers().items():
            name = "broker_" + topic.replace("/", "_").replace(" ", "_")
            lines += [f"# TYPE {name} {'gauge' if topic in _GAUGES else 'counter'}", f"{name} {value}"]
        for load in _LOADS:
            name = "broker_load_" + load.replace("/", "_")
            lines.append(f"# TYPE {name} gauge")
            lines += [f'{name}{{interval="{one}min"}} {self._averages[load, one]:.2f}' for one in _MINUTES]
        statistics = self._service.broker.statistics
        lines.append("# TYPE broker_dropped counter")
        for reason, count in statistics.reasons().items():
            lines.append(f'broker_dropped{{reason="{reason}"}} {count}')
        return "\n".join(lines) + "\n"
