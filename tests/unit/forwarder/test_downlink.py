"""What a downlink does when something goes wrong that nobody thought of."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from lockgate.client import Client
from lockgate.config.model import ConnectionConfig, DownlinkConfig, MqttSinkConfig
from lockgate.forwarder.downlink import Downlink


async def test_an_error_of_ours_is_logged_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    enough = asyncio.Event()

    def make(_: MqttSinkConfig, __: str) -> Client:
        nonlocal tries
        tries += 1
        if tries == 3:
            enough.set()
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr("lockgate.forwarder.downlink._RETRY_SECONDS", (0.001, 0.002))
    sink = MqttSinkConfig(
        name="cloud", classes=("alarm",), connection=ConnectionConfig(url="mqtt://127.0.0.1:1"), downlink=("a",)
    )
    downlink = Downlink(sink, DownlinkConfig(topics=("a",)), make)
    task = asyncio.create_task(downlink.run())
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(5):
            await enough.wait()
    assert downlink.status()["error"] == "an error of ours, see the log"
    assert len([r for r in caplog.records if r.exc_info]) == 1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
