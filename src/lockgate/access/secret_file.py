"""Files that hold secrets: read with care about who else can, replaced as a whole."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Final

from lockgate import files
from lockgate.config.errors import ConfigError

log = logging.getLogger(__name__)

# Kubernetes mounts secrets as links: with this variable, Mosquitto's, they are followed.
SYMLINKS_VARIABLE: Final = "MOSQUITTO_UNSAFE_ALLOW_SYMLINKS"


def read(path: Path) -> bytes:
    """Read a file; warns of one that others can read or that belongs to somebody else.

    Raises ConfigError when it is a symbolic link or cannot be read.
    """
    follow = SYMLINKS_VARIABLE in os.environ
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            data = file.read()
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise ConfigError(
                "is a symbolic link, which is refused for a file of secrets",
                path=path,
                accepted=f"the file itself, or {SYMLINKS_VARIABLE}=1 in the environment",
            ) from None
        raise ConfigError(f"cannot be read: {error.strerror}", path=path, accepted="a readable file") from None
    if status.st_mode & stat.S_IROTH:
        log.warning("%s is readable by everybody; chmod 0600 keeps its secrets", path)
    if status.st_uid not in (os.geteuid(), 0):
        log.warning("%s belongs to user %d and not to the broker's", path, status.st_uid)
    return data


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text; raises ConfigError as `read` does, and for the first line that is something else."""
    data = read(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", path=path, line=line, accepted="UTF-8") from None


def replace(path: Path, data: bytes) -> None:
    """Replace a file: it is wholly the old one or the new one, whatever happens. Raises OSError.

    A new file belongs to its owner alone (0600); one that was there keeps its owner and who may read it.
    """
    if SYMLINKS_VARIABLE in os.environ:
        path = Path(os.path.realpath(path))
    elif path.is_symlink():
        raise OSError(errno.ELOOP, f"is a symbolic link, followed only with {SYMLINKS_VARIABLE}=1", str(path))
    files.replace(path, data)
