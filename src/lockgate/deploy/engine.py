"""The Docker Engine, through the Docker SDK for Python: what an update asks of it, with answers a person can use."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import docker.auth
import docker.errors
import requests
import requests.exceptions
from docker.api.client import APIClient

from lockgate.deploy.container import PROJECT, Container, creation
from lockgate.deploy.errors import DeployError, Refused, Unreachable
from lockgate.deploy.reference import Reference
from lockgate.deploy.registry import Login
from lockgate.deploy.release import Platform

DEFAULT_URL = "unix:///var/run/docker.sock"
_SECONDS = 60.0  # that the engine may say nothing
_EXEC_SECONDS = 20.0


class Engine:
    """One engine. Each method raises Unreachable where it does not answer, DeployError where it refuses.

    It is asked for nothing before a method is called: who signs an image may have none.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self.url = url

    @functools.cached_property
    def _api(self) -> APIClient:
        with _said(f"the engine at {self.url}"):
            return APIClient(base_url=self.url, version="auto", timeout=int(_SECONDS))

    @functools.cached_property
    def _exec_api(self) -> APIClient:
        return APIClient(base_url=self.url, version=self._api.api_version, timeout=int(_EXEC_SECONDS))

    def platform(self) -> Platform:
        with _said("the engine"):
            said = self._api.version()
        return Platform(str(said.get("Os", "")), str(said.get("Arch", "")))

    # --- containers -------------------------------------------------------------------------------------------------

    def containers(self, project: str) -> list[Container]:
        """Give all containers of a Compose project, running or not."""
        with _said("the engine"):
            listed = self._api.containers(all=True, filters={"label": f"{PROJECT}={project}"})
        found = (self.inspect(one["Id"]) for one in listed)
        return [one for one in found if one is not None]

    def inspect(self, name: str) -> Container | None:
        with _said(name):
            try:
                return Container(self._api.inspect_container(name))
            except docker.errors.NotFound:
                return None

    def create(self, old: Container, image: str, name: str, token: str) -> Container:
        """Make a container of another image in the place of one that runs, and do not start it."""
        with _said(name):
            old_image = self._api.inspect_image(old.image_id)["Config"] or {}
            image_id = self._api.inspect_image(image)["Id"]
            body, networks = creation(old, old_image, image, image_id, token)
            made = self._api.create_container_from_config(body, name)["Id"]
            for network, endpoint in networks.items():
                self._connect(made, network, endpoint)
        found = self.inspect(made)
        assert found is not None
        return found

    def _connect(self, container: str, network: str, endpoint: dict[str, Any]) -> None:
        addresses = endpoint.get("IPAMConfig") or {}
        self._api.connect_container_to_network(
            container,
            network,
            ipv4_address=addresses.get("IPv4Address"),
            ipv6_address=addresses.get("IPv6Address"),
            aliases=endpoint["Aliases"],
            links=endpoint.get("Links"),
            driver_opt=endpoint.get("DriverOpts"),
        )

    def start(self, name: str) -> None:
        with _said(name):
            self._api.start(name)

    def stop(self, name: str, seconds: int) -> None:
        """SIGTERM, and after the grace period SIGKILL."""
        with _said(name):
            self._api.stop(name, timeout=seconds)

    def rename(self, name: str, new: str) -> None:
        with _said(name):
            self._api.rename(name, new)

    def set_policy(self, name: str, policy: dict[str, object]) -> None:
        with _said(name):
            self._api.update_container(name, restart_policy=policy)  # type: ignore[arg-type]

    def remove(self, name: str) -> None:
        """Remove a container that has stopped; volumes stay, also those without a name."""
        with _said(name), contextlib.suppress(docker.errors.NotFound):
            self._api.remove_container(name, v=False)

    def execute(self, name: str, words: tuple[str, ...]) -> tuple[int, str]:
        """Run a program in a container; gives its exit status, -1 where it does not end in time, and its output."""
        try:
            with _said(name):
                made = self._exec_api.exec_create(name, list(words))["Id"]
                output = self._exec_api.exec_start(made)
                status = self._exec_api.exec_inspect(made)["ExitCode"]
        except Unreachable as error:
            return -1, str(error)
        return (-1 if status is None else int(status)), output.decode(errors="replace")

    def logs(self, name: str, lines: int) -> str:
        with _said(name):
            return str(self._api.logs(name, tail=lines).decode(errors="replace"))

    # --- images -----------------------------------------------------------------------------------------------------

    def image(self, name: str) -> dict[str, Any] | None:
        """Give what `inspect` says of an image; None where it is not here."""
        with _said(name):
            try:
                found: dict[str, Any] = self._api.inspect_image(name)
                return found
            except docker.errors.ImageNotFound:
                return None

    def pull(self, reference: Reference, login: Login | None, seconds: float) -> None:
        """Pull an image by its digest, within a time that counts for all of it."""
        deadline = time.monotonic() + seconds
        what, silence = f"pulling {reference}", min(_SECONDS, seconds)
        headers = {}
        if login is not None:
            headers["X-Registry-Auth"] = docker.auth.encode_header({"username": login.user, "password": login.password})
        asked = {"fromImage": reference.name, "tag": reference.digest}
        with _said(what, stalled=f"{what}: nothing has come for {silence:g} s"):
            # not `self._api.pull`, which waits for the next word without end
            url = f"{self._api.base_url}/v{self._api.api_version}/images/create"
            with self._api.post(url, params=asked, headers=headers, stream=True, timeout=silence) as answer:
                if answer.status_code != 200:
                    raise _pull_error(what, _message(answer))
                for line in answer.iter_lines():
                    event = json.loads(line) if line else {}
                    if "error" in event:
                        raise _pull_error(what, str(event["error"]))
                    if time.monotonic() > deadline:
                        raise Unreachable(f"{what}: it is not here after {seconds:g} s (deploy.pull_limit)")

    def load(self, archive: IO[bytes]) -> None:
        """Take images out of an archive."""
        with _said("loading the image"):
            for event in self._api.load_image(archive):
                if "error" in event:
                    raise _pull_error("loading the image", str(event["error"]))

    def save(self, image_id: str, to: IO[bytes]) -> None:
        """Write an image into an archive, without names."""
        with _said(f"saving {image_id}"):
            for chunk in self._api.get_image(image_id):
                to.write(chunk)

    def tag(self, image_id: str, name: str, tag: str) -> None:
        with _said(name):
            self._api.tag(image_id, name, tag)

    def remove_image(self, name: str) -> None:
        """Remove an image that no container uses."""
        with contextlib.suppress(DeployError), _said(name):
            self._api.remove_image(name)


def socket_of(url: str) -> Path | None:
    return Path(url.removeprefix("unix://")) if url.startswith("unix://") else None


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, LookupError, TypeError):
        return f"the engine answered {answer.status_code}"


def _pull_error(what: str, said: str) -> DeployError:
    if "no space left" in said:
        return DeployError(f"{what}: the engine's disk is full: {said}")
    if any(word in said for word in ("timeout", "deadline exceeded", "connection refused", "EOF", "connection reset")):
        return Unreachable(f"{what}: {said}")
    if ("digest" in said and "mismatch" in said) or "filesystem layer verification failed" in said:
        return Refused(f"{what}: what came is not what the digest stands for: {said}")
    if "x509" in said:
        return DeployError(f"{what}: {said}; the engine reads the registry's authority from /etc/docker/certs.d")
    return DeployError(f"{what}: {said}")


@contextlib.contextmanager
def _said(what: str, stalled: str = "") -> Iterator[None]:
    """Give the engine's troubles as ours."""
    try:
        yield
    except docker.errors.APIError as error:
        said = str(error.explanation or error)
        raise _pull_error(what, said) from None
    except (requests.exceptions.ReadTimeout, TimeoutError):
        raise Unreachable(stalled or f"{what}: the engine has not answered for {_SECONDS:g} s") from None
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        text = str(error)
        if "Read timed out" in text:
            raise Unreachable(stalled or f"{what}: the engine has not answered for {_SECONDS:g} s") from None
        if "Permission denied" in text or "PermissionError" in text:
            hint = "run this as root or as a member of the group docker"
            raise DeployError(f"{what}: this user may not use the engine's socket; {hint}") from None
        raise Unreachable(f"{what}: no Docker Engine answers (deploy.engine): {text}") from None
