"""MQTT over WebSocket (§6)."""

from __future__ import annotations

from lockgate.mqtt.packets import V3_1_1
from tests.conformance import web


async def test_mqtt_6_0_0_1_only_binary_frames_are_taken() -> None:
    await web.only_binary_frames_are_taken(V3_1_1)


async def test_mqtt_6_0_0_2_packets_and_frames_need_not_be_aligned() -> None:
    await web.packets_and_frames_need_not_be_aligned(V3_1_1)


async def test_mqtt_6_0_0_4_the_subprotocol_is_mqtt() -> None:
    await web.the_subprotocol_is_mqtt(V3_1_1)
