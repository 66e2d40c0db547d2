"""All bridges of one broker."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import final

from lockgate.bridge.bridge import Bridge
from lockgate.bridge.local import Shell
from lockgate.config.model import BridgeConfig

log = logging.getLogger(__name__)


@final
class Bridges:
    """Runs the bridges on the broker's loop.

    Made before the store is restored, so that no Session of a bridge expires; started before the listeners open, so
    that nothing is missed.
    """

    def __init__(self, shell: Shell, configs: Sequence[BridgeConfig]) -> None:
        self._shell = shell
        # Names this broker to itself in what comes back; that a restart forgets it costs a loop one more lap.
        self._mark = secrets.token_hex(6)
        self._bridges = {config.name: Bridge(shell, config, self._mark) for config in configs}
        self._stopping: set[asyncio.Task[None]] = set()
        for config in configs:
            shell.broker.own_sessions.add(config.local_client_id)

    def start(self) -> None:
        """Begin; the store must have been restored."""
        for bridge in self._bridges.values():
            bridge.start()

    async def stop(self) -> None:
        """Disconnect all in order."""
        await asyncio.gather(*(bridge.stop() for bridge in self._bridges.values()), *self._stopping)

    def reload(self, configs: Sequence[BridgeConfig]) -> None:
        """Start new bridges, end those that are gone with their Sessions here, and hand the others their options."""
        wanted = {config.name: config for config in configs}
        for name in [name for name in self._bridges if name not in wanted]:
            task = asyncio.get_running_loop().create_task(self._end(self._bridges.pop(name)))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        for name, config in wanted.items():
            bridge = self._bridges.get(name)
            if bridge is not None:
                bridge.reload(config)
            else:
                bridge = self._bridges[name] = Bridge(self._shell, config, self._mark)
                bridge.start()

    async def _end(self, bridge: Bridge) -> None:
        await bridge.stop()
        log.info("Bridge %s is gone from the configuration and has ended", bridge.config.name)
        client_id = bridge.config.local_client_id
        if all(other.config.local_client_id != client_id for other in self._bridges.values()):  # it may be renamed
            bridge.end_session()
        self._shell.flush()

    def status(self) -> Mapping[str, object]:
        """Give the figures of each bridge by its name, for JSON."""
        return {name: bridge.status() for name, bridge in self._bridges.items()}
