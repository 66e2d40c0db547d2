"""One update: a service at a time, each step in the journal before it is done, all of it back where one is not well.

Where the power fails in between, the old containers start with the engine and the new ones do not: `always` is the
restart policy of the old until the end, `no` that of the new. The next start of the agent (`resume`) then clears up.
Once every service is well the journal says `committed`, and from there it only goes forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from lockgate.deploy.container import ALWAYS, Container
from lockgate.deploy.errors import Broken, DeployError, Failed, RolledBack, Unreachable
from lockgate.deploy.gate import LOCKGATE, Books, Gate, Looks, Time, read_books
from lockgate.deploy.journal import Entry, Journal, Part
from lockgate.deploy.project import is_broker

log = logging.getLogger(__name__)

_INSIST_SECONDS, _INSIST_PAUSE = 300.0, 2.0
_T = TypeVar("_T")


class Engine(Looks, Protocol):
    """What an update asks of the engine."""

    def containers(self, project: str) -> list[Container]: ...
    def create(self, old: Container, image: str, name: str, token: str) -> Container: ...
    def start(self, name: str) -> None: ...
    def stop(self, name: str, seconds: int) -> None: ...
    def rename(self, name: str, new: str) -> None: ...
    def set_policy(self, name: str, policy: dict[str, object]) -> None: ...
    def remove(self, name: str) -> None: ...


class Update:
    """Replaces the containers of a journal's entry."""

    def __init__(
        self,
        engine: Engine,
        project: str,
        journal: Journal,
        gate: Gate,
        clock: Time,
        on_commit: Callable[[Entry], None],
    ) -> None:
        """`on_commit` writes down what else has to be true of the new version, once more after a power cut."""
        self._engine = engine
        self._project = project
        self._journal = journal
        self._gate = gate
        self._clock = clock
        self._on_commit = on_commit

    def run(self, entry: Entry) -> None:
        """Put the new version in the place of the old. Raises RolledBack, Broken; DeployError: nothing was changed."""
        books = self._books(entry)
        if books is not None and not books.closes:
            log.warning("The ledger does not close now, before anything is changed; it is not asked for afterwards.")
            books = None
        with self._journal.step(entry, f"begin {entry.kind} to {entry.after}"):
            pass
        try:
            for part in entry.parts:
                self._replace(entry, part, books)
        except BaseException as error:
            reason = (
                str(error) if isinstance(error, DeployError) else f"ended by {type(error).__name__} {error}".strip()
            )
            if not isinstance(error, DeployError | KeyboardInterrupt | SystemExit):
                log.exception("The update fails.")
            self._surely(lambda: self._go_back(entry, reason))
            again = isinstance(error, Unreachable) or not isinstance(error, Exception)
            raise RolledBack(f"{reason}; {entry.before} serves again", again) from error
        self._commit(entry)

    def resume(self, entry: Entry) -> bool:
        """Bring an update to its end that a power cut has interrupted; gives whether the new version serves."""
        if entry.state == "committed":
            self._surely(lambda: self._finish(entry))
            return True
        reason = entry.reason or f"interrupted at: {entry.step}"
        self._surely(lambda: self._go_back(entry, reason))
        return False

    # --- forward ----------------------------------------------------------------------------------------------------

    def _replace(self, entry: Entry, part: Part, books: Books | None) -> None:
        old = self._must_be_there(part)
        entry.touched.append(part.name)
        with self._journal.step(entry, f"create {part.service} of {entry.after.image}"):
            new = self._engine.create(old, entry.after.image, f"{part.name}-{entry.token}-new", entry.token)
            if new.attributes["Image"] != entry.after.image_id:
                raise Failed(f"the engine took another image for {entry.after.image}: {new.attributes['Image']}")
        if old.policy != ALWAYS:
            with self._journal.step(entry, f"let the old {part.service} start with the engine"):
                self._engine.set_policy(part.old, ALWAYS)
        part.wills_kept = self._keep_wills(old)
        began = self._clock.now()
        with self._journal.step(entry, f"stop the old {part.service}"):
            self._engine.stop(part.old, old.stop_seconds)
        with self._journal.step(entry, f"start the new {part.service}"):
            self._engine.start(new.id)
        self._gate.wait_ready(new.id)
        part.gap_seconds = round(self._clock.now() - began, 3)
        log.info("%s was away for %.1f s", part.service, part.gap_seconds)
        with self._journal.step(entry, f"take the name of the old {part.service}"):
            self._engine.rename(part.old, f"{part.name}-{entry.token}-old")
        with self._journal.step(entry, f"give the new {part.service} its name"):
            self._engine.rename(new.id, part.name)
        with self._journal.step(entry, f"watch the new {part.service}"):
            self._gate.watch(new.id, books, lambda: self._books(entry))

    def _commit(self, entry: Entry) -> None:
        entry.state = "committed"
        with self._journal.step(entry, "keep the new version"):
            pass
        self._surely(lambda: self._finish(entry))

    def _finish(self, entry: Entry) -> None:
        """Let the new version be the one that is here; again, if need be."""
        self._insist(lambda: self._on_commit(entry))
        for part in entry.parts:
            self._keep(entry, part)

    def _keep(self, entry: Entry, part: Part) -> None:
        """Let the new container start with the engine, and remove the old one.

        For the moment between the two both would start after a power cut: the second one finds the folder taken (its
        lock) and ends, and this clears up. The other way round neither would.
        """
        step = self._journal.step
        new, old = self._new_of(entry, part), self._insist(lambda: self._engine.inspect(part.old))
        if new is None and not self._is_replaced(entry, part):
            raise Broken(f"the new container of {part.name} is gone: `docker-compose up -d {part.service}` makes one")
        if new is not None and new.policy != part.policy:
            with step(entry, f"let the new {part.service} start with the engine", must_write=False):
                self._insist(lambda: self._engine.set_policy(new.id, part.policy))
        if old is not None:
            if old.running:
                with step(entry, f"stop the old {part.service}", must_write=False):
                    self._insist(lambda: self._engine.stop(old.id, old.stop_seconds))
            with step(entry, f"remove the old {part.service}", must_write=False):
                self._insist(lambda: self._engine.remove(old.id))
        if new is not None and not new.running:
            with step(entry, f"start the new {part.service}", must_write=False):
                self._insist(lambda: self._engine.start(new.id))

    # --- back -------------------------------------------------------------------------------------------------------

    def _go_back(self, entry: Entry, reason: str) -> None:
        """Let the old containers serve again, the last one first. Raises Broken where they do not."""
        log.error("Going back to %s: %s", entry.before, reason)
        entry.state, entry.reason = "rolling back", reason
        problems = []
        touched = [part for part in entry.parts if part.name in entry.touched]
        for part in reversed(touched):
            try:
                self._bring_back(entry, part)
            except DeployError as error:
                log.error("%s: %s", part.service, error)
                problems.append(f"{part.service}: {error}")
        for part in touched:
            try:
                if not problems:
                    self._gate.wait_ready(part.old)
            except DeployError as error:
                log.warning("The old %s serves again, but is not well: %s", part.service, error)
        if problems:
            text = "; ".join(problems)
            raise Broken(f"{reason}; and not everything of the old version could be brought back: {text}")

    def _bring_back(self, entry: Entry, part: Part) -> None:
        step = self._journal.step
        old = self._insist(lambda: self._engine.inspect(part.old))
        new = self._new_of(entry, part)
        if old is None and self._is_replaced(entry, part):
            return
        if old is None:
            if new is not None:  # better than nothing, also after a power cut
                self._insist(lambda: self._engine.set_policy(new.id, part.policy))
            raise DeployError(
                f"its old container {part.old[:12]} is gone: `docker-compose up -d {part.service}` makes one"
            )
        if new is not None and new.running:
            self._keep_wills(new)
            with step(entry, f"stop the new {part.service}", must_write=False):
                self._insist(lambda: self._engine.stop(new.id, new.stop_seconds))
        if not old.running:
            with step(entry, f"start the old {part.service}", must_write=False):
                self._insist(lambda: self._engine.start(old.id))
        if new is not None:
            with step(entry, f"remove the new {part.service}", must_write=False):
                self._insist(lambda: self._engine.remove(new.id))
        if old.name != part.name:
            with step(entry, f"give the old {part.service} its name", must_write=False):
                self._insist(lambda: self._engine.rename(old.id, part.name))
        if old.policy != part.policy:
            with step(entry, f"give the old {part.service} its restart policy", must_write=False):
                self._insist(lambda: self._engine.set_policy(old.id, part.policy))

    # --- both ways --------------------------------------------------------------------------------------------------

    def _must_be_there(self, part: Part) -> Container:
        found = self._engine.inspect(part.old)
        if found is None or not found.running:
            raise Failed(f"{part.name} does not run any more; somebody else has stopped or replaced it")
        return found

    def _new_of(self, entry: Entry, part: Part) -> Container | None:
        """Find what this update has made for a container."""
        names = (part.name, f"{part.name}-{entry.token}-new")
        for one in self._insist(lambda: self._engine.containers(self._project)):
            if one.mark == entry.token and one.name in names:
                return one
        return None

    def _is_replaced(self, entry: Entry, part: Part) -> bool:
        """Whether somebody has put a container of his own in this one's place, as `docker-compose up` does."""
        found = self._insist(lambda: self._engine.inspect(part.name))
        return found is not None and found.running and found.id != part.old and found.mark != entry.token

    def _books(self, entry: Entry) -> Books | None:
        names = {part.name for part in entry.parts} | {f"{part.name}-{entry.token}-new" for part in entry.parts}
        running = [one for one in self._engine.containers(self._project) if one.running and one.name in names]
        return read_books(self._engine, running)

    def _keep_wills(self, container: Container) -> bool | None:
        """Ask a broker that is about to be stopped to keep Wills: its clients come back."""
        if not is_broker(container):
            return None
        try:
            status, output = self._engine.execute(container.id, (LOCKGATE, "session", "keep-wills"))
        except DeployError as error:
            status, output = -1, str(error)
        if status:
            said = " ".join(output.split())[-300:]
            log.warning(
                "The broker in %s publishes Wills when it stops, as far as it is told so: %s", container.name, said
            )
        return status == 0

    def _surely(self, do: Callable[[], None]) -> None:
        """Do what leaves the machine in one of the two versions, whoever wants the agent to end."""
        try:
            do()
        except (KeyboardInterrupt, SystemExit):
            do()

    def _insist(self, do: Callable[[], _T]) -> _T:
        """Do what has to be done, also where the engine is away for a while."""
        deadline = self._clock.now() + _INSIST_SECONDS
        while True:
            try:
                return do()
            except Unreachable as error:
                if self._clock.now() > deadline:
                    raise
                log.warning("Trying again: %s", error)
                self._clock.sleep(_INSIST_PAUSE)


def parts_of(containers: Sequence[Container]) -> list[Part]:
    return [Part(one.service, one.name, one.id, one.policy) for one in containers]
