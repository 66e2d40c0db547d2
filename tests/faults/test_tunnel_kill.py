"""Devices behind a tunnel whose connections, connector and edges die one after the other."""

from __future__ import annotations

from pathlib import Path

from tests.support.tunnel_crowd import crowd, kill_everything

DEVICES = 60


async def test_no_acknowledged_message_is_lost_and_nobody_notices_a_lost_connection(tmp_path: Path) -> None:
    async with crowd(tmp_path, DEVICES) as made:
        await kill_everything(made, 1)
        acknowledged, lost = await made.settle()
        assert acknowledged > DEVICES
        assert lost == 0
        for loss in made.losses:
            print(loss)
            if "of four" in loss.what:
                assert loss.disconnects == 0, loss
