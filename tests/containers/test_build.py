"""What is built: the same each time, from what the lock file says, and no more of it than is needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate import __version__
from tests.containers.conftest import OPEN
from tests.support.debian import publish
from tests.support.docker import Container, docker, image

pytestmark = [pytest.mark.containers, pytest.mark.timeout(400)]
image()

ROOT = Path(__file__).parents[2]
BUILD = ("build", "-q", "--force-rm", "-f", "packaging/Dockerfile")
SMALL_BYTES = 45_000_000
# What the engine itself puts into a container
_NOT_OURS = re.compile(r"\.dockerenv|(dev|proc|sys|etc/(hosts|hostname|resolv\.conf|mtab))(/|$)")
_SECRET = re.compile(r"\.(key|pem)$|\.git(/|$)|tests?/|\.pyenv")


def contents(name: str) -> dict[str, str]:
    """Give mode, owner and content of each file of an image."""
    made = docker("create", name).stdout.split()[-1]
    found: dict[str, str] = {}
    try:
        with (
            tempfile.TemporaryFile() as file,
            subprocess.Popen(["docker", "export", made], stdout=subprocess.PIPE) as export,
        ):
            assert export.stdout is not None
            with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                for member in archive:
                    if _NOT_OURS.match(member.name):
                        continue
                    data = archive.extractfile(member) if member.isfile() else file
                    assert data is not None
                    digest = hashlib.sha256(data.read()).hexdigest()
                    found[member.name] = f"{member.mode:o} {member.uid}:{member.gid} {member.linkname} {digest}"
    finally:
        docker("rm", "-v", made)
    return found


@pytest.fixture
def built() -> Iterator[str]:
    """A name for an image of the test's own."""
    name = "lockgate-test-build"
    yield name
    docker("rmi", "-f", name, check=False)


def arguments_of(name: str) -> tuple[str, ...]:
    """Give the build arguments that an image was built with, as far as they end in it."""
    labels = json.loads(docker("inspect", name).stdout)[0]["Config"]["Labels"]
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct", labels["org.opencontainers.image.revision"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (
        "--build-arg",
        f"VERSION={labels['org.opencontainers.image.version']}",
        "--build-arg",
        f"SOURCE_DATE_EPOCH={epoch}",
    )


@pytest.mark.skipif(not os.environ.get("LOCKGATE_REBUILD"), reason="two minutes more: make test-containers REBUILD=1")
def test_what_is_built_again_is_the_same(built: str) -> None:
    arguments = arguments_of(image())
    docker(
        *BUILD, "-t", built, *arguments, "--build-arg", f"AGAIN={time.time()}", "--target", "broker-small", str(ROOT)
    )
    first, second = contents(image("-small")), contents(built)
    assert {name: said for name, said in second.items() if first.get(name) != said} == {}
    assert first.keys() == second.keys()


def test_without_a_network_it_is_installed_from_wheels(built: str, folder: Path) -> None:
    context = folder / "context"
    context.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml", "requirements.lock", "setup.py", ".dockerignore"):
        shutil.copy(ROOT / name, context)
    for name in ("packaging", "src"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    docker(*BUILD, "-t", built, *arguments_of(image()), "--target", "wheels", str(ROOT))
    made = docker("create", built).stdout.split()[-1]
    docker("cp", f"{made}:/wheels", str(context / "wheels"))
    docker("rm", "-v", made)
    command = (*BUILD[:3], "-f", str(context / "packaging/Dockerfile"), "-t", built, "--target", "broker-small")
    offline = (*command, "--network", "none", "--build-arg", "OFFLINE=1", str(context))
    docker(*offline)
    (folder / "mosquitto.conf").write_text(OPEN)
    mount = ("-v", f"{folder}/mosquitto.conf:/mosquitto/config/mosquitto.conf:ro")
    with Container("-p", "127.0.0.1:0:1883", *mount, of=built) as broker:
        broker.wait_for("running")
        publish(broker.port(), "t", "a word")
    next((context / "wheels").glob("lockgate-*.whl")).unlink()
    (context / "src" / "lockgate" / "changed.py").write_text("")
    assert "there is no wheel of lockgate in wheels/" in docker(*offline, check=False).stdout


def test_the_bill_of_materials_names_what_is_there(either: str) -> None:
    made = docker("create", either).stdout.split()[-1]
    try:
        with tempfile.TemporaryDirectory() as folder:
            docker("cp", f"{made}:/opt/lockgate/sbom.cdx.json", folder)
            bill = json.loads(Path(folder, "sbom.cdx.json").read_text())
    finally:
        docker("rm", "-v", made)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    components = {one["name"]: one for one in bill["components"]}
    assert len({one["bom-ref"] for one in bill["components"]}) == len(bill["components"])
    assert components["lockgate"]["version"] == __version__
    assert components["uvloop"]["purl"].startswith("pkg:pypi/uvloop@")
    locked = (ROOT / "requirements.lock").read_text()
    for one in components.values():
        if one.get("purl", "").startswith("pkg:pypi/") and one["name"] != "lockgate":
            assert f"{one['name']}=={one['version']} " in locked
            assert f"sha256:{one['hashes'][0]['content']}" in locked
    assert components["libc6"]["purl"].startswith("pkg:deb/debian/libc6@")
    assert ("bash" in components) is ("small" not in either)
    assert ("aiohttp" in components) is ("small" not in either)
    listed = docker("run", "--rm", either, "python3", "-c", _INSTALLED).stdout.split()
    assert sorted(listed) == sorted(
        f"{one['name']}=={one['version']}" for one in components.values() if one.get("purl", "").startswith("pkg:pypi/")
    )


_INSTALLED = """
import re
from importlib.metadata import distributions
for one in distributions(path=["/opt/lockgate/lib/python3.11/site-packages"]):
    print(f"{re.sub('[-_.]+', '-', one.name).lower()}=={one.version}")
"""


def test_nothing_is_in_it_that_does_not_belong_there(either: str) -> None:
    names = contents(either)
    ours = [name for name in names if name.startswith(("opt/lockgate", "mosquitto"))]
    assert not [name for name in ours if _SECRET.search(name) and not name.endswith("/certifi/cacert.pem")]  # public
    assert not [name for name in ours if "/pip/" in name or name.endswith(".whl")]
    assert "usr/bin/gcc" not in names
    if "small" in either:
        assert not [name for name in names if re.search(r"(^|/)(sh|bash|dash|busybox|apt|dpkg)$", name)]
    privileged = [name for name, said in names.items() if int(said.split()[0], 8) & 0o6000]
    assert not [name for name in privileged if "small" in either]


def test_the_core_is_compiled_and_the_small_image_is_small(either: str) -> None:
    script = "import lockgate.broker.broker as core; print(core.__file__)"
    assert docker("run", "--rm", either, "/opt/lockgate/bin/python3", "-c", script).stdout.endswith(".so\n")
    size = int(json.loads(docker("inspect", either).stdout)[0]["Size"])
    print(f"\n{either}: {size / 1e6:.1f} MB", file=sys.stderr)
    if "small" in either:
        assert size < SMALL_BYTES


def test_what_starting_it_costs(either: str) -> None:
    """Printed, not judged: the machine that runs this is shared."""
    before = time.monotonic()
    with Container("--network", "none", of=either) as broker:
        while not broker.execute("python3", "-I", "-S", "/opt/lockgate/healthcheck.py", check=False).startswith(
            "broker: w"
        ):
            assert broker.running(), broker.logs()
        taken = time.monotonic() - before
        resident = broker.proc_status()["VmRSS"]
        before = time.monotonic()
        broker.execute("python3", "-I", "-S", "/opt/lockgate/healthcheck.py")
        asked = time.monotonic() - before
        own = broker.execute(
            "python3", "-I", "-S", "-c", "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
    print(
        f"\n{either}: `docker run` to healthy {taken:.2f} s, resident {resident}; "
        f"one health check {asked * 1000:.0f} ms with `docker exec`, {int(own) // 1024} MB",
        file=sys.stderr,
    )
