"""A pod, run on a Docker Engine as a node of Kubernetes would run what its specification says.

One network and one /dev/shm for all its containers; user, group of volumes, read-only root, capabilities, limits;
Secrets and ConfigMaps as links into a folder that is exchanged as a whole. Probes are asked by whoever tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest

from tests.support.docker import Container, docker
from tests.support.kubernetes import Object, find, pods

_PAUSE = ["python3", "-c", "import signal; signal.pause()"]


class Pod:
    """The pod of some manifests, until it is left. Its volumes stay in their folder."""

    def __init__(
        self,
        manifests: list[Object],
        secrets: dict[str, dict[str, str]],
        folder: Path,
        *,
        hosts: dict[str, str] | None = None,
    ) -> None:
        """`secrets` are those that its owner has made."""
        (self.spec,) = pods(manifests)
        self.folder = folder
        self._secrets = {
            **secrets,
            **{one["metadata"]["name"]: one["stringData"] for one in find(manifests, "Secret")},
        }
        self._config_maps = {one["metadata"]["name"]: one["data"] for one in find(manifests, "ConfigMap")}
        self._hosts = hosts or {}
        self._name = f"lockgate-test-{uuid4().hex[:12]}"
        self._memory: list[str] = []
        self.containers: dict[str, Container] = {}

    def __enter__(self) -> Self:
        added = [word for name, address in self._hosts.items() for word in ("--add-host", f"{name}:{address}")]
        try:
            # Whatever its containers do, it has one address.
            self._pause = Container("--ipc", "shareable", *added, "--entrypoint", _PAUSE[0], command=_PAUSE[1:])
            sources = {one["name"]: self._volume(one) for one in self.spec.get("volumes", [])}
            sources.setdefault("data", str(self._claim()))
            for container in self.spec["containers"]:
                self.containers[container["name"]] = self._start(container, sources)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in [*self.containers.values(), *([self._pause] if hasattr(self, "_pause") else [])]:
            one.__exit__()
        for name in self._memory:
            docker("volume", "rm", "-f", name, check=False)

    @property
    def address(self) -> str:
        """Give its own, which this machine can reach."""
        return str(self._pause.inspect()["NetworkSettings"]["IPAddress"])

    def asked(self, container: str, probe: str) -> tuple[bool, str]:
        """Ask a probe once, as the node does: whether it has passed, and what it said."""
        (spec,) = (one for one in self.spec["containers"] if one["name"] == container)
        command = ["docker", "exec", self.containers[container].name, *spec[probe]["exec"]["command"]]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=spec[probe]["timeoutSeconds"], check=False
            )
        except subprocess.TimeoutExpired:
            return False, "nothing"
        return done.returncode == 0, done.stdout + done.stderr

    def wait_for(self, container: str, probe: str, seconds: float = 30.0) -> None:
        """Return when a probe passes; fails if it does not in time."""
        deadline = time.monotonic() + seconds
        while not (answer := self.asked(container, probe))[0]:
            if time.monotonic() > deadline or not self.containers[container].running():
                pytest.fail(f"{container}: {probe}: {answer[1]}\n{self.containers[container].logs()}")
            time.sleep(0.2)

    def change(self, secret: str, content: dict[str, str]) -> None:
        """Change a Secret, and what is mounted of it, as the node does some time later."""
        for volume in self.spec["volumes"]:
            if volume.get("secret", {}).get("secretName") == secret:
                self._write(self.folder / volume["name"], content, volume["secret"].get("defaultMode", 0o644))

    def _volume(self, volume: dict[str, Any]) -> str:
        path = self.folder / volume["name"]
        if "secret" in volume:
            content = self._secrets[volume["secret"]["secretName"]]
            if items := volume["secret"].get("items"):
                content = {one["path"]: content[one["key"]] for one in items}
            self._write(path, content, volume["secret"].get("defaultMode", 0o644))
            return f"{path}"
        if "configMap" in volume:
            self._write(path, self._config_maps[volume["configMap"]["name"]], 0o644)
            return f"{path}"
        assert "emptyDir" in volume, volume
        if volume["emptyDir"].get("medium") == "Memory":
            name = f"{self._name}-{volume['name']}"
            size = volume["emptyDir"]["sizeLimit"].removesuffix("i").lower()
            options = ("type=tmpfs", "device=tmpfs", f"o=size={size},mode=2777,gid={self._group}")
            docker("volume", "create", *(word for option in options for word in ("-o", option)), name)
            self._memory.append(name)
            return name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        os.chown(path, 0, self._group)
        path.chmod(0o2777)
        return f"{path}"

    def _claim(self) -> Path:
        path = self.folder / "data"
        path.mkdir(exist_ok=True)
        os.chown(path, 0, self._group)
        path.chmod(0o2775)
        return path

    def _write(self, path: Path, content: dict[str, str], mode: int) -> None:
        """Lay files as the node does: `path/name` → `..data/name`, `..data` → the folder of this version."""
        version = path / f"..{uuid4().hex}"
        version.mkdir(parents=True)
        path.chmod(0o2777)
        version.chmod(0o2755)
        for name, text in content.items():
            (version / name).write_text(text)
            os.chown(version / name, 0, self._group)
            (version / name).chmod(mode)
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")
        (path / "..new").symlink_to(version.name)
        (path / "..new").rename(path / "..data")

    @property
    def _group(self) -> int:
        return int(self.spec["securityContext"]["fsGroup"])

    def _start(self, spec: Object, sources: dict[str, str]) -> Container:
        pod, own = self.spec["securityContext"], spec["securityContext"]
        limits = spec["resources"]["limits"]
        pause = f"container:{self._pause.name}"
        words = ["--network", pause, "--ipc", pause]
        words += ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--group-add", str(self._group)]
        words += ["--read-only"] * own["readOnlyRootFilesystem"]
        words += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        for one in own["capabilities"]["drop"]:
            words += ["--cap-drop", one]
        memory = limits["memory"].removesuffix("i").lower()
        words += ["--memory", memory, "--memory-swap", memory]
        words += ["--cpus", str(int(limits["cpu"].removesuffix("m")) / 1000)]
        for name, value in self._environment(spec).items():
            words += ["-e", f"{name}={value}"]
        for mount in spec.get("volumeMounts", []):
            read_only = ":ro" if mount.get("readOnly") else ""
            words += ["-v", f"{sources[mount['name']]}:{mount['mountPath']}{read_only}"]
        return Container(*words, command=spec["args"])

    def _environment(self, spec: Object) -> dict[str, str]:
        made: dict[str, str] = {}
        for one in spec.get("env", []):
            if "value" in one:
                value = one["value"]
                for name, other in made.items():
                    value = value.replace(f"$({name})", other)
            elif "secretKeyRef" in one["valueFrom"]:
                chosen = one["valueFrom"]["secretKeyRef"]
                value = self._secrets[chosen["name"]][chosen["key"]]
            else:
                assert one["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
                value = "lockgate-0"
            made[one["name"]] = value
        return made
