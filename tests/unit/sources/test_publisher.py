"""How a source takes leave of a broker."""

from __future__ import annotations

import asyncio

import pytest

from lockgate.config.model import ConnectionConfig, ModbusSourceConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import Disconnect, PubAck, Publish
from lockgate.sources.publisher import OFFLINE, Publisher
from tests.support.bridged import Remote


@pytest.mark.parametrize(
    ("mute", "goodbye"), [(False, reason_codes.SUCCESS), (True, reason_codes.DISCONNECT_WITH_WILL_MESSAGE)]
)
async def test_the_will_says_that_a_source_is_gone_where_it_could_not_itself(mute: bool, goodbye: int) -> None:
    async with Remote() as broker, asyncio.timeout(20):
        connection = ConnectionConfig(url=f"mqtt://127.0.0.1:{broker.port}", client_id="m")
        serving = asyncio.create_task(Publisher(ModbusSourceConfig(name="meters", connection=connection)).serve())
        link = await broker.accept()
        link.send(PubAck((await link.expect(Publish)).packet_id))
        serving.cancel()
        offline = await link.expect(Publish)
        assert offline.payload == OFFLINE
        if not mute:
            link.send(PubAck(offline.packet_id))
        assert (await link.expect(Disconnect)).reason_code == goodbye
        link.cut()
        with pytest.raises(asyncio.CancelledError):
            await serving
