"""How a source takes leave of a broker."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from lockgate.config.model import ConnectionConfig, ModbusSourceConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, ConnAck, Connect, Disconnect, PubAck, Publish
from lockgate.sources.publisher import OFFLINE, Publisher


class SlowBroker:
    """Acknowledges what says `online`, and `offline` unless it is `mute`; keeps how the client left."""

    def __init__(self, mute: bool) -> None:
        self.goodbye: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.online = asyncio.Event()
        self._mute = mute

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder(V5)
        with contextlib.closing(writer):
            while data := await reader.read(4096):
                decoder.feed(data)
                while (packet := decoder.next_packet()) is not None:
                    if isinstance(packet, Connect):
                        writer.write(encode(ConnAck(), V5))
                    elif isinstance(packet, Publish) and not (self._mute and packet.payload == OFFLINE):
                        writer.write(encode(PubAck(packet.packet_id), V5))
                        self.online.set()
                    elif isinstance(packet, Disconnect):
                        self.goodbye.set_result(packet.reason_code)


@pytest.mark.parametrize(
    ("mute", "goodbye"), [(False, reason_codes.SUCCESS), (True, reason_codes.DISCONNECT_WITH_WILL_MESSAGE)]
)
async def test_the_will_says_that_a_source_is_gone_where_it_could_not_itself(mute: bool, goodbye: int) -> None:
    broker = SlowBroker(mute)
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0) as server, asyncio.timeout(20):
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        publisher = Publisher(ModbusSourceConfig(name="meters", connection=ConnectionConfig(url=url, client_id="m")))
        serving = asyncio.create_task(publisher.serve())
        await broker.online.wait()
        serving.cancel()
        assert await broker.goodbye == goodbye
        with pytest.raises(asyncio.CancelledError):
            await serving
