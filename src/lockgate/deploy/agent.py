"""`lockgate deploy`: finds what is new, makes sure of it, hands it to `Update`, and remembers how it went."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from lockgate import files
from lockgate.config.model import DeployConfig
from lockgate.deploy import archive, project, signature
from lockgate.deploy.container import Container
from lockgate.deploy.engine import Engine
from lockgate.deploy.errors import Broken, DeployError, Refused, RolledBack
from lockgate.deploy.gate import Gate, Time
from lockgate.deploy.history import History, Record
from lockgate.deploy.journal import Entry, Journal, Version
from lockgate.deploy.reference import Reference, parse
from lockgate.deploy.registry import Login, Registry, login_from_docker, login_from_file
from lockgate.deploy.release import TITLE, VERSION, Release, is_older
from lockgate.deploy.signature import Signature
from lockgate.deploy.update import Update, parts_of
from lockgate.telemetry.clock import Clock

log = logging.getLogger(__name__)

VARIABLE = "LOCKGATE_IMAGE"


@dataclass(frozen=True, slots=True)
class Found:
    """What a look has brought: what runs, what there is, and whether that is another."""

    running: Version
    offered: Version
    release: Release
    is_new: bool
    signed: bool


class Agent:
    """Everything that `lockgate deploy` does on one machine. `state` is its folder."""

    def __init__(
        self,
        config: DeployConfig,
        state: Path,
        engine: Engine,
        by: str,
        on_step: Callable[[str], None] = lambda _: None,
        clock: Time | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._engine = engine
        self._by = by
        self._time = clock or Time()
        self._journal = Journal(state / "journal.json", on_step)
        self._wall = Clock()

    # --- looking ----------------------------------------------------------------------------------------------------

    def check(self, text: str = "") -> Found:
        """Look what the registry has, and whether it may run here. Changes nothing. Raises DeployError."""
        containers = self._containers()
        return self._offer(self._registry(self._reference(text)), self._reference(text), containers)

    def status(self) -> dict[str, object]:
        """Tell what runs, whether an update is under way, and how the last one went, for JSON."""
        history, pending = self._history(), self._journal.read()
        try:
            containers: list[Container] = self._containers()
            problem = ""
        except DeployError as error:
            containers, problem = [], str(error)
        return {
            "project": self._config.project,
            "watched": self._config.image,
            "signature": self._config.signature,
            "running": asdict(self._version_of(containers[0])) if containers else None,
            "services": [
                {"service": one.service, "container": one.name, "running": one.running, "health": one.health}
                for one in containers
            ],
            "problem": problem,
            "under_way": asdict(pending) if pending is not None else None,
            "last": asdict(history.records[-1]) if history.records else None,
            "not_tried_again": history.not_again,
        }

    def history(self) -> list[dict[str, Any]]:
        """Give all updates that are remembered, the first one first."""
        return [asdict(record) for record in self._history().records]

    # --- doing ------------------------------------------------------------------------------------------------------

    def apply(self, source: str = "", allow_older: bool = False) -> Found | None:
        """Update to an image, to what a file holds, or to what is watched; None where that runs already."""
        with self._alone():
            path = Path(source)
            if source and (path.is_file() or source.startswith(("/", "./", "../"))):
                return self._apply_file(path, allow_older)
            return self._apply_image(self._reference(source), allow_older, asked=True)

    def rollback(self) -> Version:
        """Go back to the version that ran before, whose image is still here."""
        with self._alone():
            containers, history = self._containers(), self._history()
            running = self._version_of(containers[0])
            said = history.previous(running.image_id)
            if said is None:
                raise DeployError("nobody knows what ran before: the history has no update to what runs now")
            before = Version(**said)
            if self._engine.image(before.image_id) is None:
                raise DeployError(f"the image of {before} is not here any more; apply it by its name")
            if self._engine.image(before.image) is None:
                before.image = before.image_id
            history.refuse(running.digest, "somebody went back from it")
            self._update("rollback", running, before, containers)
            return before

    def watch(self, stop: threading.Event) -> None:
        """Look again and again, and update where there is something new, until told to stop."""
        parse(self._config.image)
        said = self._settle()
        if said:
            log.warning("%s", said)
        pause = random.uniform(0.0, self._config.jitter_seconds)
        while not stop.wait(pause):
            pause = self._config.interval_seconds + random.uniform(0.0, self._config.jitter_seconds)
            problem = self._settle() or self._look()
            if problem != said:  # once, and not every quarter of an hour
                log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "All is well again.")
            said = problem

    def _settle(self) -> str:
        """Bring to its end what was interrupted, at any hour; gives why that cannot be."""
        try:
            if self._journal.read() is not None:
                self.resume()
            return ""
        except DeployError as error:
            return str(error)

    def _look(self) -> str:
        """Update where there is something new and it is time; gives what is in the way."""
        try:
            return self._look_and_update()
        except DeployError as error:
            return str(error)

    def resume(self) -> None:
        """Bring an update to its end that was interrupted."""
        with self._alone():
            pass

    def sign(self, text: str, key: Path, password: bytes | None, signed_as: str = "") -> Reference:
        """Sign an image of a registry, and put the signature beside it; gives where it lies."""
        reference = parse(text)
        registry = self._registry(reference)
        at = registry.resolve(reference)
        payload = signature.payload_for(signed_as or self._config.signed_as or at.name, at.digest)
        return registry.add_signature(at, signature.sign(payload, key, password))

    def export(self, text: str, path: Path) -> Release:
        """Write a file for gateways without a network: what `apply` takes."""
        reference = self._reference(text)
        registry = self._registry(reference)
        release, signatures = self._verified(registry, reference)
        self._pull(release)
        image = self._engine.image(str(release.reference))
        assert image is not None
        archive.write(path, release, signatures, lambda to: self._engine.save(release.config_digest, to))
        return release

    # --- one update -------------------------------------------------------------------------------------------------

    def _look_and_update(self) -> str:
        """Do what is due; gives why nothing can be done, empty where all is well."""
        moment, zone = self._wall.now(), self._config.time_zone
        if self._config.windows:
            if not moment.clock_ok:
                return "no update begins: there are windows for it, and nobody knows what time it is (no NTP)"
            local = datetime.now(ZoneInfo(zone) if zone else None)
            if not any(window.holds(local) for window in self._config.windows):
                return ""
        with self._alone():
            self._apply_image(parse(self._config.image), allow_older=False, asked=False)
        return ""

    def _apply_image(self, reference: Reference, allow_older: bool, asked: bool) -> Found | None:
        containers, registry = self._containers(), self._registry(reference)
        found = self._offer(registry, reference, containers)
        if not found.is_new:
            log.info("%s runs already", found.running)
            return None
        history = self._history()
        digest = found.release.reference.digest
        if asked:
            history.allow(digest)
        elif digest in history.not_again:
            log.info("%s is not tried again: %s", found.offered, history.not_again[digest])
            return None
        self._may_replace(found.release, containers[0], allow_older)
        self._pull(found.release)
        self._update("update", found.running, found.offered, containers)
        return found

    def _apply_file(self, path: Path, allow_older: bool) -> Found | None:
        containers = self._containers()
        with contextlib.closing(archive.Archive(path)) as file:
            self._must_be_signed(file.reference, file.signatures)
            release = file.release(self._engine.platform())
            running = self._version_of(containers[0])
            tag = f"sha256-{release.config_digest.removeprefix('sha256:')[:12]}"
            local = f"{file.reference.name}:{tag}"  # what has no registry has no digest there either
            offered = Version(local, release.config_digest, release.reference.digest, release.version)
            found = Found(running, offered, release, not self._runs(containers[0], release), bool(file.signatures))
            if not found.is_new:
                log.info("%s runs already", running)
                return None
            self._history().allow(release.reference.digest)
            self._may_replace(release, containers[0], allow_older)
            file.load(release, self._engine.load)
        if self._engine.image(release.config_digest) is None:
            raise Refused(f"{path}: the engine has loaded something else than {release.config_digest}")
        self._engine.tag(release.config_digest, file.reference.name, tag)
        self._update("update", running, offered, containers)
        return found

    def _update(
        self, kind: Literal["update", "rollback"], before: Version, after: Version, containers: list[Container]
    ) -> None:
        token = secrets.token_hex(4)
        entry = Entry(token, self._by, kind, _now(), before, after, parts_of(containers))
        try:
            self._engine_update().run(entry)
        except RolledBack as error:
            history = self._history()
            if kind == "update" and not error.again:
                history.refuse(after.digest, entry.reason)
            self._end(entry, "rolled back")
            raise
        except Broken:
            self._record(entry, "failed")
            raise
        self._end(entry, "updated")

    def _engine_update(self) -> Update:
        gate = Gate(self._engine, self._config.health_limit_seconds, self._config.watch_seconds, self._time)
        return Update(self._engine, self._config.project, self._journal, gate, self._time, self._write_environment)

    def _write_environment(self, entry: Entry) -> None:
        """Let the next `docker-compose up` mean the same image."""
        if self._config.folder is None:
            return
        path = self._config.folder / ".env"
        try:
            before = path.read_text("utf-8") if path.exists() else ""
            after = project.of_environment(before, VARIABLE, entry.after.image)
            if after != before:
                files.replace(path, after.encode())
        except (OSError, UnicodeDecodeError) as error:
            log.error("%s cannot be written (%s): the next `docker-compose up` takes another image", path, error)

    def _end(self, entry: Entry, outcome: str) -> None:
        self._record(entry, outcome)
        self._journal.end()

    def _record(self, entry: Entry, outcome: str) -> None:
        services: list[dict[str, object]] = [
            {"service": part.service, "gap_seconds": part.gap_seconds, "wills_kept": part.wills_kept}
            for part in entry.parts
            if part.name in entry.touched
        ]
        moment = self._wall.now()
        record = Record(
            _now(), moment.clock_ok, entry.by, entry.kind, asdict(entry.before), asdict(entry.after), outcome,
            entry.reason, entry.token, services,
        )  # fmt: skip
        self._history().add(record)
        log.info("%s to %s: %s", entry.kind, entry.after, outcome)

    def _resume(self) -> None:
        entry = self._journal.read()
        if entry is None:
            return
        log.warning("An update was interrupted at: %s", entry.step)
        interrupted = entry.state == "updating"
        served = self._engine_update().resume(entry)
        if interrupted and self._interrupted_before(entry):
            self._history().refuse(entry.after.digest, "twice the machine or the agent ended in the middle of it")
        self._end(entry, "updated" if served else ("interrupted" if interrupted else "rolled back"))

    def _interrupted_before(self, entry: Entry) -> bool:
        records = self._history().records
        return (
            bool(records) and records[-1].outcome == "interrupted" and records[-1].after["digest"] == entry.after.digest
        )

    # --- what it needs ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one that updates, and clear up what was interrupted. Raises DeployError where another one is."""
        self._project()
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DeployError(f"{self._state} cannot be used: {error.strerror}") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError("another `lockgate deploy` is at work on this machine") from None
            self._resume()
            yield
        finally:
            os.close(lock)

    def _history(self) -> History:
        return History(self._state / "history.json", self._config.history)

    def _containers(self) -> list[Container]:
        return project.find(self._engine, self._project(), self._config.services)

    def _project(self) -> str:
        if not self._config.project:
            raise DeployError("deploy.project is missing: the name of a Compose project, as `docker-compose ls` has it")
        return self._config.project

    def _reference(self, text: str) -> Reference:
        if not (text or self._config.image):
            raise DeployError("deploy.image is missing: REGISTRY/REPOSITORY:TAG to be watched, or name one")
        return parse(text or self._config.image)

    def _registry(self, reference: Reference) -> Registry:
        config = self._config
        return Registry(
            reference.registry, self._login(reference.registry), config.ca_file, config.request_limit_seconds
        )

    def _login(self, registry: str) -> Login | None:
        if self._config.login_file is not None:
            return login_from_file(self._config.login_file)
        if self._config.docker_config is not None:
            return login_from_docker(self._config.docker_config, registry)
        return None

    def _offer(self, registry: Registry, reference: Reference, containers: list[Container]) -> Found:
        release, signatures = self._verified(registry, reference)
        offered = Version(str(release.reference), release.config_digest, release.reference.digest, release.version)
        is_new = not self._runs(containers[0], release)
        return Found(self._version_of(containers[0]), offered, release, is_new, bool(signatures))

    def _verified(self, registry: Registry, reference: Reference) -> tuple[Release, list[Signature]]:
        at = registry.resolve(reference)
        signatures = registry.signatures(at)
        self._must_be_signed(at, signatures)
        return registry.release(at, self._engine.platform()), signatures

    def _must_be_signed(self, reference: Reference, signatures: list[Signature]) -> None:
        config = self._config
        if config.public_key is None:
            if config.signature == "none":
                return
            hint = 'set it, or signature = "none" where anybody who may write to the registry may also run code here'
            raise DeployError(f"deploy.public_key is missing: {hint}")
        key = signature.load_public_key(config.public_key)
        if config.signature == "required":
            signature.verify(key, signatures, config.signed_as or reference.name, reference.digest)

    def _may_replace(self, release: Release, running: Container, allow_older: bool) -> None:
        image = self._engine.image(running.image_id) or {}
        labels = project.labels_of(image)
        title, version = str(labels.get(TITLE, "")), str(labels.get(VERSION, ""))
        if title != release.title:
            raise Refused(f"{release.reference} is {release.title or 'nameless'}, and {title or 'nameless'} runs here")
        if not allow_older and is_older(release.version, release.created, version, str(image.get("Created", ""))):
            problem = f"{release.reference} ({release.version}) is older than what runs ({version})"
            raise Refused(f"{problem}: --allow-older, or `lockgate deploy rollback`")

    def _pull(self, release: Release) -> None:
        reference = release.reference
        log.info("pulling %s", reference)
        self._engine.pull(reference, self._login(reference.registry), self._config.pull_limit_seconds)
        image = self._engine.image(str(reference))
        ids = (release.config_digest, release.manifest_digest, reference.digest)  # what an id is, engines disagree
        if image is None or image["Id"] not in ids:
            raise Refused(f"{reference}: the engine has pulled {image['Id'] if image else 'nothing'}, not {ids[0]}")

    def _runs(self, container: Container, release: Release) -> bool:
        return container.image_id in (release.config_digest, release.manifest_digest, release.reference.digest)

    def _version_of(self, container: Container) -> Version:
        image = self._engine.image(container.image_id) or {}
        digest = next((one.partition("@")[2] for one in image.get("RepoDigests") or ()), "")
        for record in reversed(self._history().records):
            if record.outcome == "updated" and record.after.get("image_id") == container.image_id:
                digest = record.after.get("digest", digest)
                break
        version = str(project.labels_of(image).get(VERSION, ""))
        return Version(container.image, container.image_id, digest, version)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
