"""What was updated when, by whom and how it ended; and which versions were not well."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockgate.deploy import json_files

log = logging.getLogger(__name__)

MOST_REFUSED = 50


@dataclass(slots=True)
class Record:
    """One update that has ended."""

    at: str  # wall time, ISO 8601
    clock_ok: bool  # whether that may be believed
    by: str
    kind: str  # update, rollback
    before: dict[str, str]
    after: dict[str, str]
    outcome: str  # updated, rolled back, interrupted, failed
    reason: str = ""
    token: str = ""  # of the update
    services: list[dict[str, object]] = field(default_factory=list)


class History:
    """A bounded list of records, and the digests that are not tried again, in one file."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self.records: list[Record] = []
        self.not_again: dict[str, str] = {}  # digest → reason
        try:
            said: Any = json_files.read(path)
            if said is not None:
                self.records = [Record(**one) for one in said["records"]]
                self.not_again = {str(digest): str(reason) for digest, reason in said["not_again"].items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            aside = path.with_suffix(".unreadable")
            path.rename(aside)
            log.error("The history cannot be read (%s); it is kept as %s, and a new one begins.", error, aside)

    def add(self, record: Record) -> None:
        """Remember a record, once for each update: a power cut may have come before it was known to be there."""
        others = [one for one in self.records if not record.token or one.token != record.token]
        self.records = [*others, record][-self._most :]
        self.save()

    def refuse(self, digest: str, reason: str) -> None:
        """Do not try a version again until somebody asks for it."""
        if digest:
            self.not_again.pop(digest, None)
            self.not_again[digest] = reason
            self.not_again = dict(list(self.not_again.items())[-MOST_REFUSED:])
            self.save()

    def allow(self, digest: str) -> None:
        """Try it again: somebody asks for it."""
        if self.not_again.pop(digest, None) is not None:
            self.save()

    def previous(self, running: str) -> dict[str, str] | None:
        """Give the version that ran before the one whose image id is `running`; None where nobody knows."""
        for record in reversed(self.records):
            if (record.kind, record.outcome) == ("update", "updated") and record.after.get("image_id") == running:
                return record.before
        return None

    def save(self) -> None:
        records = [dataclasses.asdict(record) for record in self.records]
        json_files.write(self.path, {"records": records, "not_again": self.not_again})
