"""What an update is about to do, on disk before it is done: after a power cut the next start knows where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lockgate.deploy import json_files
from lockgate.deploy.errors import DeployError

log = logging.getLogger(__name__)

State = Literal["updating", "rolling back", "committed"]


@dataclass(slots=True)
class Part:
    """One container that an update replaces."""

    service: str
    name: str
    old: str  # container id
    policy: dict[str, object]  # its restart policy
    gap_seconds: float | None = None  # from the stop of the old to the first good answer of the new
    wills_kept: bool | None = None  # None: it is no broker


@dataclass(slots=True)
class Version:
    """An image, by its names and its id."""

    image: str  # as it is asked for: REPOSITORY@DIGEST, or a local tag
    image_id: str
    digest: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.version or 'an unnamed version'} ({self.digest or self.image_id})"


@dataclass(slots=True)
class Entry:
    """One update, from before its first step to its end."""

    token: str
    by: str
    kind: Literal["update", "rollback"]
    started: str
    before: Version
    after: Version
    parts: list[Part]
    state: State = "updating"
    reason: str = ""
    step: str = ""
    touched: list[str] = field(default_factory=list)  # names of containers, in the order in which they are replaced


class Journal:
    """The file with the update that is under way, if there is one.

    `on_step` is called between a step's entry in the journal and the step, and again behind it; it is there for tests,
    which end the process at each of them.
    """

    def __init__(self, path: Path, on_step: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._on_step = on_step

    def read(self) -> Entry | None:
        """Give the update that did not end. Raises DeployError where the file makes no sense."""
        try:
            said: Any = json_files.read(self.path)
            if said is None:
                return None
            parts = [Part(**part) for part in said.pop("parts")]
            before, after = Version(**said.pop("before")), Version(**said.pop("after"))
            return Entry(**said, parts=parts, before=before, after=after)
        except (ValueError, TypeError, LookupError, OSError) as error:
            hint = "look which containers run (`docker ps -a`), put them right, and remove the file"
            raise DeployError(f"{self.path} cannot be read ({error}): {hint}") from None

    def write(self, entry: Entry) -> None:
        json_files.write(self.path, dataclasses.asdict(entry))

    @contextlib.contextmanager
    def step(self, entry: Entry, what: str, must_write: bool = True) -> Iterator[None]:
        """Write what is about to be done; going back goes on without that where the disk takes nothing."""
        entry.step = what
        log.info("%s", what)
        try:
            self.write(entry)
        except OSError as error:
            if must_write:
                raise DeployError(f"{self.path} cannot be written: {error.strerror or error}") from None
            log.warning("%s cannot be written: %s", self.path, error.strerror)
        self._on_step(f"before: {what}")
        yield
        self._on_step(f"behind: {what}")

    def end(self) -> None:
        json_files.remove(self.path)
