"""Make a root file system an image for another machine: `foreign_image.py TAR ARCHITECTURE NAME | docker load`."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

_KNOWN = {"arm64": {"architecture": "arm64"}, "armhf": {"architecture": "arm", "variant": "v7"}}
_PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(tar: Path, architecture: str, name: str) -> None:
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        **_KNOWN[architecture],
        "os": "linux",
        "config": {"Env": [_PATH, "LANG=C.UTF-8"], "Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "2024-01-01T00:00:00Z"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for member, content in (("config.json", config), ("manifest.json", manifest)):
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.add(tar, "layer.tar")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
