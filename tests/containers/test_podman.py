"""The chart's pod, run by `podman play kube`: a second reader of the manifests beside `tests.support.pod`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker import docker, image
from tests.support.kubernetes import Object, find, objects, pods

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
image()

PODMAN = shutil.which("podman")
IMAGE = "localhost/lockgate:chart"
# runc: crun refuses a machine whose control groups are of both versions
SETTINGS = '[engine]\nruntime = "runc"\n[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=9000:9000"]\n'


class Podman:
    """Debian's podman with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(SETTINGS)
        self._environment = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}

    def __call__(self, *words: str, check: bool = True) -> str:
        assert PODMAN is not None
        places = ["--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")]
        done = subprocess.run(
            [PODMAN, *places, "--storage-driver", "overlay", *words],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def podman() -> Iterator[Podman]:
    if PODMAN is None or os.geteuid() != 0:
        pytest.skip("podman is not installed (Debian: apt-get install podman runc), or this is not root")
    with tempfile.TemporaryDirectory(prefix="podman-") as name:  # it takes 50 characters at most
        run, archive = Podman(Path(name)), Path(name) / "image.tar"
        docker("tag", image(), IMAGE)
        try:
            docker("save", "-o", str(archive), IMAGE)
            run("load", "-q", "-i", str(archive))
            yield run
        finally:
            run("pod", "rm", "-af", check=False)
            run("system", "reset", "-f", check=False)
            docker("rmi", IMAGE, check=False)


def for_podman(manifests: list[Object], files: dict[str, str]) -> list[Object]:
    """Give what podman 4.3 knows of the manifests.

    It has no StatefulSet, so that its pod and its claim stand for themselves, and leaves the contents of a Secret in
    Base64, so that a ConfigMap is in its place.
    """
    (spec,) = pods(manifests)
    (owner,) = find(manifests, "StatefulSet")
    made: list[Object] = find(manifests, "ConfigMap")
    for claim in owner["spec"]["volumeClaimTemplates"]:
        name = claim["metadata"]["name"]
        made.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, **claim})
        spec["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    for volume in spec["volumes"]:
        if "secret" in volume:
            name = volume.pop("secret")["secretName"]
            volume["configMap"] = {"name": name}
            made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files})
    for container in spec["containers"]:
        container["image"] = IMAGE
        container.pop("ports")  # it would publish them
    made.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lockgate"}, "spec": spec})
    for one in made:
        one["metadata"].pop("namespace", None)
    return made


def test_podman_runs_the_pod_of_the_chart_and_its_volume_stays(podman: Podman) -> None:
    manifest = podman.folder / "pod.yaml"
    hashed = docker("run", "--rm", image(), "mosquitto_passwd", "-b", "-c", "-", "operator", "secret").stdout
    acl = "user operator\ntopic readwrite #\n"
    made = for_podman(objects("broker"), {"passwd": hashed, "acl": acl})
    (probe,) = (one["readinessProbe"]["exec"]["command"] for one in pods(objects("broker"))[0]["containers"])
    login = ("-u", "operator", "-P", "secret", "-t", "kept")
    for start in ("first", "second"):
        # it does not take a claim whose volume is there
        wanted = [one for one in made if start == "first" or one["kind"] != "PersistentVolumeClaim"]
        manifest.write_text("\n---\n".join(json.dumps(one) for one in wanted))
        podman("play", "kube", "--network", "none", str(manifest))
        deadline = time.monotonic() + 30
        while "Error" in (said := podman("exec", "lockgate-broker", *probe, check=False)) or "not ready" in said:
            assert time.monotonic() < deadline, said + podman("logs", "lockgate-broker")
            time.sleep(0.2)
        if start == "first":
            podman("exec", "lockgate-broker", "mosquitto_pub", *login, "-m", "a word", "-r", "-q", "1")
        heard = podman("exec", "lockgate-broker", "mosquitto_sub", *login, "-C", "1", "-W", "10")
        assert heard == "a word\n"
        (container,) = json.loads(podman("inspect", "lockgate-broker"))
        assert container["Config"]["User"] == "1883:1883"
        assert container["EffectiveCaps"] in (None, [])
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["Memory"] == 128 * 1024 * 1024
        assert container["RestartCount"] == 0
        podman("play", "kube", "--down", str(manifest))
