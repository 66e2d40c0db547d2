"""One connection to a Modbus device, or to the gateway that several stand behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from lockgate.config.libraries import library
from lockgate.sources.registers import BITS, Block

# What an exception code says (Modbus Application Protocol 1.1b3, section 7)
EXCEPTIONS: Final = {
    1: "illegal function", 2: "illegal data address", 3: "illegal data value", 4: "server device failure",
    5: "acknowledge", 6: "server device busy", 8: "memory parity error", 10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}  # fmt: skip
ILLEGAL_ADDRESS: Final = (2, 3)  # what devices say of a request that covers an address they have not
NOBODY_THERE: Final = (10, 11)

_FUNCTIONS: Final = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
_CLOSE: Final = "the connection was lost"


class Unreachable(Exception):
    """The device does not answer, or not to what it was asked."""


class Answered(Exception):
    """The device answered with an exception; `code` says which."""

    def __init__(self, block: Block, code: int) -> None:
        super().__init__(f"{block}: exception {code}, {EXCEPTIONS.get(code, 'unknown')}")
        self.code = code


class Link:
    """Asks one question at a time, in the order of the calls. A connection that fails is made anew by the next one."""

    def __init__(self, address: tuple[str, int], framing: str, source: str) -> None:
        """Raises ConfigError where pymodbus is missing."""
        section = f"sources.{source}"
        self._client_class = library("pymodbus.client", "modbus", section).AsyncModbusTcpClient
        self._error: type[Exception] = library("pymodbus.exceptions", "modbus", section).ModbusException
        framers = library("pymodbus.framer", "modbus", section).FramerType
        self._framer = framers.RTU if framing == "rtu" else framers.SOCKET
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # we say what is wrong, once
        self._host, self._port = address
        self._client: Any = None
        self._turn = asyncio.Lock()

    async def read(self, unit: int, block: Block, timeout: float) -> Sequence[int]:
        """Give the registers or bits of a block; `timeout` counts from our turn. Raises Unreachable or Answered."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    await self._connect(timeout)
                    response = await self._ask(unit, block)
            except BaseException as error:  # an answer that is late must not be taken for the next one
                self.close()
                if isinstance(error, TimeoutError):
                    raise Unreachable(f"no answer within {timeout:g} seconds") from None
                if isinstance(error, self._error | OSError):
                    raise Unreachable(_CLOSE if "asyncio.exceptions" in str(error) else str(error)) from None
                raise
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # wait_for of Python 3.11, in pymodbus, may swallow it
                raise asyncio.CancelledError
            return self._checked(block, response)

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()

    async def _connect(self, timeout: float) -> None:
        if self._client is not None and self._client.connected:
            return
        self.close()
        # Its own timeouts never come: ours do, and it must not ask again behind our back.
        client = self._client_class(
            self._host, port=self._port, framer=self._framer, timeout=timeout + 60, retries=0, reconnect_delay=0
        )
        self._client = client
        if not await client.connect():
            raise Unreachable(f"{self._host} port {self._port} cannot be reached")

    async def _ask(self, unit: int, block: Block) -> Any:
        client = self._client
        ask = {
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
        }[block.table]
        return await ask(block.address, count=block.count, device_id=unit)

    def _checked(self, block: Block, response: Any) -> Sequence[int]:
        code = getattr(response, "exception_code", 0)
        if response.isError() and code:
            if code in NOBODY_THERE:
                raise Unreachable(f"the gateway says {EXCEPTIONS[code]}")
            raise Answered(block, code)
        answer: Sequence[int] = response.bits if block.table in BITS else response.registers
        if response.function_code != _FUNCTIONS[block.table] or len(answer) < block.count:
            self.close()
            raise Unreachable(f"{block}: the answer is too short: {len(answer)} of {block.count}")
        return answer
