"""A socket for each service that answers one question with one JSON object, mostly: how are you?"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_PATH = 107  # bytes of an address of a Unix socket


MAX_QUESTION = 300_000  # bytes: a Topic Name has at most 65,535, and JSON may spell each in six
QUESTION_SECONDS = 5.0

Answer = Callable[[Mapping[str, object]], Mapping[str, object]]


class StatusServer:
    """Answers on the Unix socket `path`, on the loop that opened it.

    The question is a line with a JSON object: `ask` names one of `answers`, the other members are its arguments. An
    empty line asks for "status". The socket is there exactly as long as the service is ready, so connecting to it is
    also the test of readiness.
    """

    def __init__(self, path: Path, answers: Mapping[str, Answer]) -> None:
        self._path = path
        self._answers = answers
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Open the socket. Raises OSError with a clear text if it cannot be, or if another process answers there."""
        if len(os.fsencode(self._path)) > MAX_PATH:
            raise OSError(f"{self._path}: a status socket's path holds at most {MAX_PATH} bytes; set gateway.run_dir")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if _somebody_listens(self._path):
            raise OSError(f"{self._path}: the same service of this gateway is already running")
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, self._path, limit=MAX_QUESTION)
        self._path.chmod(0o660)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, TimeoutError):  # ValueError: a line that never ends
            async with asyncio.timeout(QUESTION_SECONDS):
                question = await reader.readline()
            writer.write(json.dumps(dict(self._say(question))).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _say(self, question: bytes) -> Mapping[str, object]:
        try:
            asked = json.loads(question) if question.strip() else {}
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            return {"error": "the question is no JSON object"}
        answer = self._answers.get(str(asked.get("ask", "status")))
        return answer(asked) if answer is not None else {"error": f"asked for none of {', '.join(self._answers)}"}


def ask(path: Path, timeout: float = 1.0, **question: str) -> dict[str, object] | None:
    """What the service behind the socket `path` says, or None when there is none or it does not answer in time.

    Without a question it tells its status.
    """
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            while chunk := connection.recv(65536):
                answer += chunk
        said = json.loads(answer)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(os.fspath(path))
        except OSError:
            return False
    return True
