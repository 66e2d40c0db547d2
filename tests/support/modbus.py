"""Modbus devices: pymodbus's own server, here or as a process of its own, and one that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pymodbus.framer import FramerType
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


def meter(unit: int = 1, action: Any = None) -> SimDevice:
    """A meter: numbers of every type in its holding registers, a hole from 40 to 49."""
    holding = [
        SimData(0, values=[2301, 65535, 0x0102], datatype=DataType.REGISTERS),
        SimData(3, values=230.1, datatype=DataType.FLOAT32),
        SimData(5, values=-70_000, datatype=DataType.INT32),
        SimData(7, values=4_000_000_000, datatype=DataType.UINT32),
        SimData(9, values=-(2**40), datatype=DataType.INT64),
        SimData(13, values=1.5e200, datatype=DataType.FLOAT64),
        SimData(17, values="meter-7", datatype=DataType.STRING),
        SimData(21, values=[0] * 19, datatype=DataType.REGISTERS),
        SimData(40, count=10, datatype=DataType.INVALID),
        SimData(50, values=[7], datatype=DataType.REGISTERS),
    ]
    bits = [SimData(0, values=[True, False, True] + [False] * 13, datatype=DataType.BITS)]
    inputs = [SimData(0, values=[11, 12, 13, 14], datatype=DataType.REGISTERS)]
    return SimDevice(unit, simdata=(bits, bits, holding, inputs), action=action)


@contextlib.asynccontextmanager
async def modbus_server(port: int, *devices: SimDevice, framer: FramerType = FramerType.SOCKET) -> AsyncIterator[Any]:
    """Serve devices on a port of the loopback."""
    server: Any = ModbusTcpServer(list(devices or (meter(),)), address=("127.0.0.1", port), framer=framer)
    await server.serve_forever(background=True)
    try:
        yield server
    finally:
        await server.shutdown()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def misbehaving(talk: Talk) -> AsyncIterator[int]:
    """A TCP server that does `talk` with each connection; gives its port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request(reader: asyncio.StreamReader) -> tuple[int, int, int, int, int]:
    """Read a request: transaction, unit, function, address, count."""
    transaction, _, _, unit = struct.unpack(">HHHB", await reader.readexactly(7))
    function, address, count = struct.unpack(">BHH", await reader.readexactly(5))
    return transaction, unit, function, address, count


def response(transaction: int, unit: int, function: int, *registers: int) -> bytes:
    body = struct.pack(f">BBB{len(registers)}H", unit, function, 2 * len(registers), *registers)
    return struct.pack(">HHH", transaction, 0, len(body)) + body


async def _serve(port: int) -> None:
    async with modbus_server(port):
        print("serving", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
