"""Write what an image is made of, as CycloneDX 1.5: `sbom.py NAME VERSION REQUIREMENTS [FILES] > sbom.cdx.json`.

Run in the builder: the wheels that were installed lie in /wheels, REQUIREMENTS names those that count, and FILES, if it
is given, the files of the base image that were taken; without it all its packages count.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

WHEELS = Path("/wheels")


def wheel(path: Path) -> dict[str, Any]:
    """Give the component that a wheel is."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one))
        said = HeaderParser().parsestr(archive.read(name).decode())
    spelled = re.sub(r"[-_.]+", "-", said["Name"]).lower()
    licence = said["License-Expression"] or said["License"]
    purl = f"pkg:pypi/{spelled}@{said['Version']}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": spelled,
        "version": said["Version"],
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        # A whole text instead of a name is of no use here.
        **({"licenses": [{"license": {"name": licence}}]} if licence and "\n" not in licence else {}),
    }


def debian(files: Path | None) -> Iterator[dict[str, Any]]:
    """Give the packages of the base image, or those that some of its files come from."""
    names: set[str] | None = None
    if files is not None:
        # Debian moved /lib into /usr, and dpkg knows some files by their old place.
        paths = [path for line in files.read_text().split() for path in (line, line.removeprefix("/usr"))]
        command = ["dpkg-query", "-S", *paths]
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        names = {
            name.partition(":")[0] for line in output.stdout.splitlines() for name in line.split(": ")[0].split(", ")
        }
    command = ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\n"]
    release = platform.freedesktop_os_release()
    for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        name, version, architecture = line.split("\t")
        if names is None or name in names:
            distro = f"{release['ID']}-{release['VERSION_ID']}"
            purl = f"pkg:deb/debian/{name}@{version}?arch={architecture}&distro={distro}"
            yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    name, version, requirements, *files = sys.argv[1:]
    names = re.findall(r"^([a-z0-9-]+)==", Path(requirements).read_text(), re.MULTILINE)
    wheels = [wheel(path) for path in sorted(WHEELS.glob("*.whl"))]
    python = f"pkg:generic/python@{platform.python_version()}"
    components = [one for one in wheels if one["name"] in (*names, "lockgate")]
    components.append({"type": "platform", "bom-ref": python, "name": "python", "version": python.rpartition("@")[2]})
    components += debian(Path(files[0]) if files else None)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    json.dump(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "serialNumber": f"urn:uuid:{serial}",
            "version": 1,
            "metadata": {
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch)),
                "component": {"type": "container", "bom-ref": name, "name": name, "version": version},
            },
            "components": components,
        },
        sys.stdout,
        indent=1,
    )
    print()


if __name__ == "__main__":
    main()
