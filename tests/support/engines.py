"""A Docker Engine in memory: containers, restart policies, and what a power cut leaves of them."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

from lockgate.deploy.container import MARK, PROJECT, SERVICE, Container
from lockgate.deploy.errors import DeployError
from lockgate.deploy.gate import LOCKGATE
from lockgate.deploy.release import TITLE, VERSION, Platform

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64
ALWAYS = {"Name": "always", "MaximumRetryCount": 0}


class Killed(BaseException):
    """The agent's process is gone; whatever it still tries does not happen."""


class FakeEngine:
    """Behaves as the engine does where an update relies on it.

    `bad` holds pairs of image id and service: a container of those ends as soon as it is started (`crashes`), or never
    gets healthy. Two containers of one service share a volume: the second one finds it taken and ends.
    """

    def __init__(self) -> None:
        self.platform_said = Platform("linux", "amd64")
        self.time = 0.0
        self.crashes: set[tuple[str, str]] = set()
        self.bad: set[tuple[str, str]] = set()
        self.ledger: Callable[[], dict[str, Any]] = lambda: {"closes": True, "intake": {"received": 5, "logged": 5},
                                                             "deliveries": [{"delivered": 5}]}  # fmt: skip
        self.done: list[str] = []
        self.dead = False
        self.failing: dict[str, DeployError] = {}  # by "method service"
        self.clashes = 0  # starts of a second container on a volume
        self._numbers = itertools.count(1)
        self._containers: dict[str, dict[str, Any]] = {}
        self._images = {
            id_: {"Id": id_, "RepoDigests": [], "Created": "2026-01-01T00:00:00Z",
                  "Config": {"Labels": {TITLE: "lockgate", VERSION: version}}}
            for id_, version in ((OLD, "1"), (NEW, "2"))
        }  # fmt: skip

    # --- the machine ------------------------------------------------------------------------------------------------

    def add(
        self, service: str, policy: str = "always", words: tuple[str, ...] = (), project: str = "p", **labels: str
    ) -> Container:
        """Have a container of the old image run."""
        id_ = f"{next(self._numbers):064x}"
        self._containers[id_] = {
            "Id": id_,
            "Name": f"/{project}_{service}_1",
            "Image": OLD,
            "RestartCount": 0,
            "Config": {
                "Image": "old",
                "Cmd": list(words or (service,)),
                "Labels": {PROJECT: project, SERVICE: service, **labels},
                "Healthcheck": {"Test": ["CMD", "probe"]},
            },
            "HostConfig": {"RestartPolicy": {"Name": policy, "MaximumRetryCount": 0}},
            "State": {"Running": True, "StartedAt": "0", "ExitCode": 0, "Health": {"Status": "healthy", "Log": []}},
            "by_hand": False,
        }
        return Container(copy.deepcopy(self._containers[id_]))

    def power_cut(self) -> None:
        """All ends at once, and what is meant to starts with the engine."""
        for one in self._containers.values():
            one["State"]["Running"] = False
        self.dead = False
        for one in self._containers.values():
            policy = one["HostConfig"]["RestartPolicy"]["Name"]
            if policy == "always" or (policy == "unless-stopped" and not one["by_hand"]):
                self._start(one)

    def serving(self) -> dict[str, list[str]]:
        """Give the images that run, by service."""
        found: dict[str, list[str]] = {one["Config"]["Labels"][SERVICE]: [] for one in self._containers.values()}
        for one in self._containers.values():
            if one["State"]["Running"]:
                found[one["Config"]["Labels"][SERVICE]].append(one["Image"])
        return found

    def all(self) -> list[tuple[str, str, str, bool]]:
        """Give name, image, restart policy of every container, and whether it runs."""
        return sorted(
            (one["Name"], one["Image"], one["HostConfig"]["RestartPolicy"]["Name"], one["State"]["Running"])
            for one in self._containers.values()
        )

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    # --- what an update asks ----------------------------------------------------------------------------------------

    def _do(self, what: str, one: dict[str, Any]) -> None:
        if self.dead:
            raise Killed
        service = one["Config"]["Labels"][SERVICE]
        error = self.failing.get(f"{what} {service}")
        if error is not None:
            raise error
        self.done.append(f"{what} {service} {'new' if MARK in one['Config']['Labels'] else 'old'}")

    def _one(self, name: str) -> dict[str, Any]:
        for id_, one in self._containers.items():
            if id_ == name or one["Name"] == f"/{name}":
                return one
        raise DeployError(f"no such container: {name}")

    def _start(self, one: dict[str, Any]) -> None:
        service = one["Config"]["Labels"][SERVICE]
        taken = bool(self.serving()[service])
        self.clashes += taken
        key = (one["Image"], service)
        state = one["State"]
        state["Running"] = not taken and key not in self.crashes
        state["StartedAt"] = str(self.time)
        state["ExitCode"] = 0 if state["Running"] else 1
        state["Health"] = {"Status": "unhealthy" if key in self.bad else "healthy", "Log": [{"Output": "it is bad"}]}

    def containers(self, project: str) -> list[Container]:
        if self.dead:
            raise Killed
        labelled = [one for one in self._containers.values() if one["Config"]["Labels"][PROJECT] == project]
        return [Container(copy.deepcopy(one)) for one in labelled]

    def inspect(self, name: str) -> Container | None:
        if self.dead:
            raise Killed
        found = [one for id_, one in self._containers.items() if id_ == name or one["Name"] == f"/{name}"]
        return Container(copy.deepcopy(found[0])) if found else None

    def create(self, old: Container, image: str, name: str, token: str) -> Container:
        one = copy.deepcopy(self._one(old.id))
        one["Config"]["Labels"][MARK] = token
        self._do("create", one)
        assert self.inspect(name) is None
        id_ = f"{next(self._numbers):064x}"
        one |= {"Id": id_, "Name": f"/{name}", "Image": NEW if image == "new" else OLD}
        one["HostConfig"]["RestartPolicy"] = {"Name": "no", "MaximumRetryCount": 0}
        one["State"] = {"Running": False, "StartedAt": "", "ExitCode": 0}
        self._containers[id_] = one
        return Container(copy.deepcopy(one))

    def start(self, name: str) -> None:
        one = self._one(name)
        self._do("start", one)
        one["by_hand"] = False
        if not one["State"]["Running"]:
            self._start(one)

    def stop(self, name: str, seconds: int) -> None:
        one = self._one(name)
        self._do("stop", one)
        one["by_hand"] = True
        one["State"]["Running"] = False
        self.time += 0.5

    def rename(self, name: str, new: str) -> None:
        one = self._one(name)
        self._do("rename", one)
        if self.inspect(new) is not None:
            raise DeployError(f"the name {new} is taken")
        one["Name"] = f"/{new}"

    def set_policy(self, name: str, policy: dict[str, object]) -> None:
        one = self._one(name)
        self._do("policy", one)
        one["HostConfig"]["RestartPolicy"] = dict(policy)

    def remove(self, name: str) -> None:
        one = self._one(name)
        self._do("remove", one)
        if one["State"]["Running"]:
            raise DeployError("it runs")
        del self._containers[one["Id"]]

    def execute(self, name: str, words: tuple[str, ...]) -> tuple[int, str]:
        one = self._one(name)
        if self.dead:
            raise Killed
        if words == ("probe",):
            key = (one["Image"], one["Config"]["Labels"][SERVICE])
            return (1, "it is bad") if key in self.bad else (0, "well")
        if words == (LOCKGATE, "ledger", "--json"):
            return 0, json.dumps(self.ledger())
        assert words == (LOCKGATE, "session", "keep-wills")
        self._do("keep wills", one)
        return 0, ""

    def logs(self, name: str, lines: int) -> str:
        return "starting\nValueError: it is broken\n"

    def image(self, name: str) -> dict[str, Any] | None:
        return self._images.get({"old": OLD, "new": NEW}.get(name, name))

    def platform(self) -> Platform:
        return self.platform_said
