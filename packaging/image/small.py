"""Put together a root file system that holds the broker, its interpreter and the libraries they need: `small.py ROOT`.

Run where /opt/lockgate is installed; small.txt names the packages that the broker needs. There is no shell in it and
nothing to install more with. Prints the files that were taken, of all that were there, for the bill of materials.
"""

from __future__ import annotations

import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

APPLICATION = Path("/opt/lockgate")
# Of the standard library: what tests, builds, draws or installs
_LEFT_OUT = """
test tests idlelib tkinter turtledemo turtle.py ensurepip lib2to3 pydoc_data distutils unittest venv curses dbm xmlrpc
wsgiref site-packages dist-packages __pycache__ pydoc.py doctest.py LICENSE.txt _tkinter nis ossaudiodev _curses
_curses_panel _dbm _gdbm readline audioop""".split()  # noqa: SIM905
# Of lockgate: what a broker alone never imports, and could not without libraries that are not here
_NOT_OF_THE_BROKER = frozenset({"demo", "deploy", "sources", "stacks", "tunnel"})
_LEFT_OUT_LIKE = re.compile(r"config-3|_test|xx|_xx|_ctypes_test")
_DATA = (
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/share/zoneinfo",
)


class Root:
    """The file system that is being put together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken: list[Path] = []  # files, where they are in this one

    def take(self, source: Path) -> None:
        """Take a file or a link, with every link on the way to it; a folder with all that lies in it."""
        at = Path("/")
        for number, part in enumerate(source.parts[1:], start=2):
            at /= part
            if at.is_symlink():
                target = Path(os.path.normpath(at.parent / os.readlink(at)))
                self._link(at)
                self.take(target.joinpath(*source.parts[number:]))
                return
        if source.is_dir():
            (self.path / source.relative_to("/")).mkdir(parents=True, exist_ok=True)
            for below in sorted(source.iterdir()):
                self.take(below)
        else:
            self._copy(source, source)

    def compile(self, source: Path) -> None:
        """Take a module without its source."""
        target = self._target(source.with_suffix(".pyc"))
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), str(source), doraise=True, invalidation_mode=mode)
        self.taken.append(source)

    def _link(self, link: Path) -> None:
        target = self._target(link)
        if not target.is_symlink():
            target.symlink_to(os.readlink(link))
            self.taken.append(link)

    def _copy(self, source: Path, to: Path) -> None:
        target = self._target(to)
        if not target.exists():
            shutil.copy2(source, target)
            self.taken.append(source)

    def _target(self, path: Path) -> Path:
        target = self.path / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def standard_library() -> Iterator[Path]:
    """Give the files of the standard library that are taken."""
    top = Path(sysconfig.get_path("stdlib")).resolve()
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if _is_taken(name))
        for name in sorted(files):
            if _is_taken(name) and _is_taken(name.partition(".")[0]):
                yield Path(folder, name)


def _is_taken(name: str) -> bool:
    return name not in _LEFT_OUT and not _LEFT_OUT_LIKE.match(name)


def application(names: list[str]) -> Iterator[Path]:
    """Give the files of /opt/lockgate that belong to some packages, and to no other."""
    packages = next(APPLICATION.glob("lib/python3*/site-packages"))
    for name in (*names, "lockgate"):
        (distribution,) = importlib.metadata.distributions(name=name, path=[str(packages)])
        for file in sorted(distribution.files or (), key=str):
            path = Path(os.path.normpath(packages / file))
            if path.is_relative_to(packages / "lockgate") and path.parts[len(packages.parts) + 1] in _NOT_OF_THE_BROKER:
                continue
            if path.is_relative_to(APPLICATION) and path.exists():
                yield path
                if path.suffix == ".py":
                    yield from path.parent.glob(f"__pycache__/{path.stem}.*.pyc")


def libraries(files: list[Path]) -> Iterator[Path]:
    """Give the shared libraries that programs and libraries need."""
    output = subprocess.run(["ldd", *map(str, files)], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = set(re.findall(r"(?:=> |^\s)(/\S+) \(0x", output, re.MULTILINE))
    # which the C library loads when a thread ends
    found.update(str(path) for path in Path("/usr/lib").glob("*/libgcc_s.so.1"))
    return map(Path, sorted(found))


def main() -> None:
    root = Root(Path(sys.argv[1]))
    names = re.findall(r"^([a-z0-9-]+)==", Path("small.txt").read_text(), re.MULTILINE)
    interpreter = Path("/usr/local/bin/python3")
    root.take(interpreter)
    for path in standard_library():
        if path.suffix == ".py":
            root.compile(path)
        elif path.suffix == ".so":
            root.take(path)
    for name in ("pyvenv.cfg", "bin/python3", "bin/lockgate", "healthcheck.py"):
        root.take(APPLICATION / name)
    for path in application(names):
        root.take(path)
    elf = [path for path in root.taken if path.suffix == ".so" and not path.is_symlink()]
    for path in libraries([interpreter, *elf]):
        root.take(path)
    for text in _DATA:
        root.take(Path(text))
    for name in ("tmp", "dev/shm"):
        (root.path / name).mkdir(parents=True)
        (root.path / name).chmod(0o1777)
    print("\n".join(map(str, root.taken)))


if __name__ == "__main__":
    main()
