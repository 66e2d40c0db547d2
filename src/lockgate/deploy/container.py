"""A container as the engine tells of it, and how another is made in its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.deploy.errors import DeployError

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"
DEPENDS_ON = "com.docker.compose.depends_on"
IMAGE = "com.docker.compose.image"
MARK = "org.lockgate.deploy"  # on what an update has made: the update's token
NO_RESTART: dict[str, object] = {"Name": "no", "MaximumRetryCount": 0}
ALWAYS: dict[str, object] = {"Name": "always", "MaximumRetryCount": 0}

# Where an image and who runs it may both say something, the engine shows only what came of it.
_FROM_IMAGE = ("User", "WorkingDir", "StopSignal", "StopTimeout", "Shell", "OnBuild")
_MANY_FROM_IMAGE = ("Volumes", "ExposedPorts", "Labels")


@dataclass(frozen=True, slots=True)
class Container:
    """One container, by what `inspect` says."""

    attributes: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.attributes["Id"])

    @property
    def name(self) -> str:
        return str(self.attributes["Name"]).lstrip("/")

    @property
    def labels(self) -> Mapping[str, str]:
        return self.attributes["Config"].get("Labels") or {}

    @property
    def service(self) -> str:
        return self.labels.get(SERVICE, self.name)

    @property
    def mark(self) -> str:
        return self.labels.get(MARK, "")

    @property
    def image_id(self) -> str:
        return str(self.attributes["Image"])

    @property
    def image(self) -> str:
        """The name that was asked for."""
        return str(self.attributes["Config"]["Image"])

    @property
    def running(self) -> bool:
        return bool(self.attributes["State"]["Running"])

    @property
    def restarts(self) -> int:
        return int(self.attributes.get("RestartCount", 0))

    @property
    def started(self) -> str:
        """When its process began; another time means another process."""
        return str(self.attributes["State"].get("StartedAt", ""))

    @property
    def exit_code(self) -> int:
        return int(self.attributes["State"].get("ExitCode", 0))

    @property
    def health(self) -> str:
        """What the health check says: starting, healthy, unhealthy; empty where there is none."""
        health = self.attributes["State"].get("Health")
        return "" if not health or health.get("Status") == "none" else str(health["Status"])

    @property
    def health_output(self) -> str:
        """What the health check said last."""
        entries = (self.attributes["State"].get("Health") or {}).get("Log") or []
        return str(entries[-1].get("Output", "")).strip() if entries else ""

    @property
    def probe(self) -> tuple[str, ...]:
        """The command of its health check; empty where there is none."""
        test = (self.attributes["Config"].get("Healthcheck") or {}).get("Test") or []
        if test[:1] == ["CMD"]:
            return tuple(test[1:])
        return ("/bin/sh", "-c", test[1]) if test[:1] == ["CMD-SHELL"] and len(test) > 1 else ()

    @property
    def policy(self) -> dict[str, object]:
        """Its restart policy."""
        return dict(self.attributes["HostConfig"].get("RestartPolicy") or NO_RESTART)

    @property
    def words(self) -> tuple[str, ...]:
        """Its command."""
        return tuple(self.attributes["Config"].get("Cmd") or ())

    @property
    def stop_seconds(self) -> int:
        """Its grace period."""
        said = self.attributes["Config"].get("StopTimeout")
        return 10 if said is None else int(said)

    def depends_on(self) -> frozenset[str]:
        """Services of its project that start before it, where Compose left a word of it."""
        parts = self.labels.get(DEPENDS_ON, "").split(",")
        return frozenset(part.partition(":")[0] for part in parts if part)


def creation(
    old: Container, old_image: Mapping[str, Any], image: str, image_id: str, token: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Give what to ask the engine for, and the networks to connect it to after the first, by their names.

    All that was said for the old container is said for the new one, and nothing that came from the old image. The new
    one does not start by itself: after a power cut in the middle of an update the old one has to. Raises DeployError.
    """
    host = copy.deepcopy(dict(old.attributes["HostConfig"]))
    if host.get("AutoRemove"):
        raise DeployError(f"{old.name} is removed when it stops (--rm): there would be nothing to go back to")
    mode = str(host.get("NetworkMode") or "default")
    config = _without_image(copy.deepcopy(dict(old.attributes["Config"])), old_image)
    if config.get("Hostname") == old.id[:12] or mode.startswith("container:"):
        config.pop("Hostname", None)
    if mode.startswith("container:"):
        config.pop("ExposedPorts", None)
    config["Image"] = image
    config["Labels"] = {**(config.get("Labels") or {}), MARK: token}
    if IMAGE in config["Labels"]:
        config["Labels"][IMAGE] = image_id
    host["RestartPolicy"] = dict(NO_RESTART)
    host["Binds"] = [*(host.get("Binds") or []), *_unnamed_volumes(old)] or None
    if mode in ("default", "bridge", "host", "none") or mode.startswith("container:"):
        return {**config, "HostConfig": host}, {}
    networks = {
        name: _endpoint(endpoint or {}, old)
        for name, endpoint in (old.attributes["NetworkSettings"].get("Networks") or {}).items()
    }
    first = mode if mode in networks else next(iter(networks), None)
    body = {**config, "HostConfig": host}
    if first is not None:  # engines before 25 take one network when a container is made
        body["NetworkingConfig"] = {"EndpointsConfig": {first: networks.pop(first)}}
    return body, networks


def _without_image(config: dict[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a container's configuration what its image says anyway."""
    environment = set(image.get("Env") or ())
    config["Env"] = [line for line in config.get("Env") or () if line not in environment]
    for name in _FROM_IMAGE:
        if config.get(name) == image.get(name):
            config.pop(name, None)
    for name in _MANY_FROM_IMAGE:
        of_image = image.get(name) or {}
        config[name] = {
            key: value
            for key, value in (config.get(name) or {}).items()
            if key not in of_image or (name == "Labels" and of_image[key] != value)
        }
    if config.get("Entrypoint") == image.get("Entrypoint"):
        config.pop("Entrypoint", None)
        if config.get("Cmd") == image.get("Cmd"):
            config.pop("Cmd", None)
    health, of_image = config.get("Healthcheck") or {}, image.get("Healthcheck") or {}
    left = {name: value for name, value in health.items() if of_image.get(name) != value}
    config.pop("Healthcheck", None)
    if left:
        config["Healthcheck"] = left
    return config


def _unnamed_volumes(old: Container) -> list[str]:
    """Give the volumes that the engine made because the image asked for one: what lies in them goes on, too."""
    host = old.attributes["HostConfig"]
    said = {bind.split(":")[1] for bind in host.get("Binds") or () if ":" in bind}
    said |= {str(mount.get("Target")) for mount in host.get("Mounts") or ()} | set(host.get("Tmpfs") or {})
    return [
        f"{mount['Name']}:{mount['Destination']}" + ("" if mount.get("RW", True) else ":ro")
        for mount in old.attributes.get("Mounts") or ()
        if mount.get("Type") == "volume" and mount.get("Destination") not in said
    ]


def _endpoint(endpoint: Mapping[str, Any], old: Container) -> dict[str, Any]:
    aliases = [alias for alias in endpoint.get("Aliases") or () if alias != old.id[:12]]
    kept = {name: endpoint.get(name) for name in ("IPAMConfig", "Links", "DriverOpts") if endpoint.get(name)}
    return {**kept, "Aliases": aliases}
