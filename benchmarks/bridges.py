"""What a bridge carries and costs: messages to a remote broker, ours and theirs as the one that bridges."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from benchmarks import brokers
from benchmarks.machine import describe
from lockgate.client import Client
from lockgate.config.model import ConnectionConfig

MESSAGES = 20_000
_TURN = 200  # messages on their way at once
_BRIDGE = """\
connection bench
address 127.0.0.1:{port}
topic # out {qos}
remote_clientid bench
restart_timeout 1
"""


def main(messages: int = MESSAGES) -> None:
    """Print a line for each broker and QoS; the remote broker is mosquitto where it is installed."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    print(describe())
    print(f"{'bridging':<16}{'QoS':>4}{'messages/s':>14}{'CPU µs a message':>20}")
    for program in [*brokers.both(), *brokers.without_nagle()]:
        for qos in (0, 1, 2):
            with brokers.running(brokers.mosquitto() or brokers.lockgate()) as remote:
                lines = _BRIDGE.format(port=remote.port, qos=qos)
                with brokers.running(program.saying(program.name, lines)) as local:
                    rate, cost = asyncio.run(_carry(local, remote, qos, messages))
            print(f"{program.name:<16}{qos:>4}{rate:>14,.0f}{cost * 1e6:>20.1f}", flush=True)


async def _carry(local: brokers.Running, remote: brokers.Running, qos: int, messages: int) -> tuple[float, float]:
    """Give messages a second from publisher to subscriber, and processor seconds for each in the bridging broker."""
    async with _client(local) as sender, _client(remote) as receiver, asyncio.timeout(15):
        await receiver.subscribe([("device/#", qos), ("$SYS/broker/connection/bench/state", 1)])
        arriving = receiver.messages()
        async for _message in arriving:  # the bridge is there
            break
        used, started = local.cpu_seconds(), time.perf_counter()
        for _turn in range(messages // _TURN):
            await asyncio.gather(*(sender.publish("device/1", b"x" * 64, qos) for _number in range(_TURN)))
            left = _TURN
            async for _message in arriving:
                left -= 1
                if not left:
                    break
        return messages / (time.perf_counter() - started), (local.cpu_seconds() - used) / messages


def _client(broker: brokers.Running) -> Client:
    connection = ConnectionConfig(url=f"mqtt://127.0.0.1:{broker.port}", client_id="bench-load")
    return Client(connection, clean_start=True, send_maximum=20)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
