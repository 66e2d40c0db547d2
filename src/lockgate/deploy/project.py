"""The containers of one Compose project that an update replaces, in the order in which it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lockgate.deploy.container import ONE_OFF, Container
from lockgate.deploy.errors import DeployError
from lockgate.deploy.release import TITLE

TITLES = ("lockgate", "lockgate-broker-small")
# Those before carry those behind: the broker keeps what comes while the others are away.
_RANKS = ("broker", "processor", "forwarder")


class Knows(Protocol):
    """What is asked of the engine here."""

    def containers(self, project: str) -> list[Container]: ...
    def image(self, name: str) -> dict[str, Any] | None: ...


def find(engine: Knows, project: str, services: Sequence[str]) -> list[Container]:
    """Give the containers to be replaced, in their order. Raises DeployError."""
    every = [one for one in engine.containers(project) if one.labels.get(ONE_OFF, "False").lower() != "true"]
    if not every:
        raise DeployError(
            f"there are no containers of a Compose project {project!r} (deploy.project, `docker-compose ls`)"
        )
    if services:
        found = [one for one in every if one.service in services]
        missing = [name for name in services if name not in {one.service for one in found}]
        if missing:
            there = ", ".join(sorted({one.service for one in every}))
            raise DeployError(f"deploy.services: project {project!r} has no {', '.join(missing)}; there are {there}")
    else:
        found = [one for one in every if title_of(engine, one) in TITLES and one.words[:1] != ("deploy",)]
        if not found:
            raise DeployError(
                f"no container of project {project!r} runs an image of Lockgate; deploy.services names others"
            )
    for one in found:
        if not one.running:
            raise DeployError(f"{one.name} does not run: an update replaces what is well; see to it first")
    images = {one.image_id for one in found}
    if len(images) > 1:
        names = ", ".join(f"{one.name} {one.image_id[:19]}" for one in found)
        raise DeployError(f"the services run different images, which is nothing to go back to: {names}")
    return in_order(found, services)


def title_of(engine: Knows, container: Container) -> str:
    image = engine.image(container.image_id)
    labels = ((image or {}).get("Config") or {}).get("Labels") or {}
    return str(labels.get(TITLE, ""))


def in_order(containers: Sequence[Container], services: Sequence[str] = ()) -> list[Container]:
    """Sort by the declared order, else by who depends on whom, else broker, processor, forwarder, the rest by name."""
    if services:
        return sorted(containers, key=lambda one: (services.index(one.service), one.name))
    waiting = sorted(containers, key=lambda one: (rank(one), one.name))
    names = {one.service for one in waiting}
    ordered: list[Container] = []
    while waiting:
        done = {one.service for one in ordered} - {one.service for one in waiting}
        ready = [one for one in waiting if not (one.depends_on() & names) - done - {one.service}]
        ordered.append((ready or waiting)[0])  # a circle: the order of names is as good as any
        waiting.remove(ordered[-1])
    return ordered


def rank(container: Container) -> int:
    """Give the place of what a container runs among the gateway's services."""
    for place, name in enumerate(_RANKS):
        if name in container.words:
            return place
    return 0 if is_broker(container) else len(_RANKS)


def is_broker(container: Container) -> bool:
    """Whether Wills are at stake when it stops."""
    program = Path(container.words[0]).name if container.words else "mosquitto"
    return bool({"broker", "up"} & set(container.words)) or program == "mosquitto"


def keeps_books(container: Container) -> bool:
    """Whether it can be asked for the ledger."""
    return bool({"processor", "forwarder", "up"} & set(container.words))


def of_environment(text: str, name: str, value: str) -> str:
    """Set a variable in the text of a file `.env`; all other lines stay."""
    lines, found = [], False
    for line in text.splitlines():
        if line.split("=", 1)[0].strip() == name:
            if not found:
                lines.append(f"{name}={value}")
            found = True
        else:
            lines.append(line)
    if not found:
        lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n"


def labels_of(image: Mapping[str, Any]) -> Mapping[str, str]:
    return (image.get("Config") or {}).get("Labels") or {}
