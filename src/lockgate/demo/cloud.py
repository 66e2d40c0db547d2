"""The cloud: a real HTTP server that keeps what it is sent, once each, and goes away for 20 seconds every minute."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

log = logging.getLogger(__name__)

OPEN_SECONDS, AWAY_SECONDS = 40.0, 20.0
RECENT = 8


class Archive:
    """What arrived, by id: the receiver's half of at-least-once is this one table."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS message (id TEXT PRIMARY KEY, content TEXT) WITHOUT ROWID")
        (self.kept,) = self._database.execute("SELECT count(*) FROM message").fetchone()

    def keep(self, messages: Iterable[tuple[str, str]]) -> list[str]:
        """Keep (id, content) pairs, durably; gives the contents of those that are new."""
        new = []
        with self._database:
            for message_id, content in messages:
                cursor = self._database.execute("INSERT OR IGNORE INTO message VALUES (?, ?)", (message_id, content))
                if cursor.rowcount:
                    new.append(content)
        self.kept += len(new)
        return new

    def close(self) -> None:
        self._database.close()


class Cloud:
    """Serves `url` on this machine: a POST of a JSON array of objects with an `id` is kept and answered with 204."""

    name = "demo-cloud"

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        open_seconds: float = OPEN_SECONDS,
        away_seconds: float = AWAY_SECONDS,
    ) -> None:
        self._archive = Archive(folder / "cloud" / "messages.db")
        self._port = urlsplit(url).port or 80
        self._path = urlsplit(url).path or "/"
        self._open_seconds, self._away_seconds = open_seconds, away_seconds
        self._requests = self._received = self._duplicates = self._outages = 0
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._is_open = False
        self._changes_at = 0.0

    async def run(self, ready: Callable[[], None]) -> None:
        try:
            while True:
                site = await self._open()
                try:
                    ready()
                    await self._stay(True, self._open_seconds)
                finally:
                    await site.cleanup()  # closes the listening socket and every connection
                self._outages += 1
                await self._stay(False, self._away_seconds)
        finally:
            self._archive.close()

    def status(self) -> dict[str, object]:
        return {
            "open": self._is_open,
            "changes_in_seconds": round(max(0.0, self._changes_at - time.monotonic())),
            "requests": self._requests,
            "received": self._received,
            "duplicates": self._duplicates,
            "kept": self._archive.kept,
            "outages": self._outages,
            "recent": list(self._recent),
        }

    async def _open(self) -> web.AppRunner:
        application = web.Application(client_max_size=16 * 1024 * 1024)
        application.router.add_post(self._path, self._take)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        return runner

    async def _stay(self, is_open: bool, seconds: float) -> None:
        self._is_open = is_open
        self._changes_at = time.monotonic() + seconds
        await asyncio.sleep(seconds)

    async def _take(self, request: web.Request) -> web.Response:
        self._requests += 1
        try:
            messages = json.loads(await request.read())
            pairs = [(str(message["id"]), json.dumps(message)) for message in messages]
        except (ValueError, TypeError, KeyError) as error:
            return web.Response(status=400, text=f"no JSON array of objects with an id: {error}")
        new = self._archive.keep(pairs)
        self._received += len(pairs)
        self._duplicates += len(pairs) - len(new)
        self._recent.extend(map(summary, new))
        return web.Response(status=204)


def summary(content: str) -> str:
    """One line for a person: topic and payload."""
    message = json.loads(content)
    rest = {name: value for name, value in message.items() if name != "topic"}
    payload = message.get("payload", rest)
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"{message.get('topic', '')} {text}"[:160]
