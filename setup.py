"""The compiled part of the build: everything else about the package stands in pyproject.toml.

`LOCKGATE_PURE=1` builds without mypyc; without a C compiler that happens by itself, unless
`LOCKGATE_REQUIRE_COMPILED=1` forbids it. Never build in place: an extension beside the sources would hide every later
edit of them.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup

COMPILED_PACKAGES = ("src/lockgate/mqtt", "src/lockgate/broker")
COMPILED_MODULES = (
    "src/lockgate/net/layered.py",
    "src/lockgate/net/stream.py",
    "src/lockgate/net/turns.py",
    "src/lockgate/storage/changes.py",
    "src/lockgate/storage/checksums.py",
)
# What is compiled names modules that are not, and these name libraries, which need not be there for a build.
MYPY_OPTIONS = ("--follow-imports=silent",)


def modules() -> list[str]:
    packages = [path for package in COMPILED_PACKAGES for path in Path(package).rglob("*.py")]
    return sorted([*COMPILED_MODULES, *(str(path) for path in packages if path.name != "__init__.py")])


def have_compiler() -> bool:
    """Whether a C file with Python's header compiles.

    Asked before setup(): a fall-back inside build_ext would leave a pure wheel with the tag of a platform.
    """
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.c")
        probe.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n")
        try:
            compiler = new_compiler()
            customize_compiler(compiler)
            compiler.compile([str(probe)], output_dir=folder, include_dirs=[sysconfig.get_path("include")])
        except Exception as error:  # setuptools raises its CompileError under two names
            print(f"lockgate: no usable C compiler ({error})", file=sys.stderr)
            return False
    return True


def extensions() -> list[Extension]:
    if os.environ.get("LOCKGATE_PURE") == "1" or not modules():
        return []
    if sys.argv[1:2] in (["egg_info"], ["dist_info"], ["sdist"]):
        return []  # metadata and sources do not depend on them, and mypyc takes its time at each call
    if not have_compiler():
        if os.environ.get("LOCKGATE_REQUIRE_COMPILED") == "1":
            raise SystemExit("lockgate: LOCKGATE_REQUIRE_COMPILED=1, and there is no usable C compiler")
        print("lockgate: building without compiled modules; the broker will run interpreted", file=sys.stderr)
        return []
    from mypyc.build import mypycify

    return mypycify(
        [*MYPY_OPTIONS, *modules()],
        opt_level=os.environ.get("LOCKGATE_OPT_LEVEL", "3"),
        debug_level="0",
        group_name="lockgate",
    )


if __name__ == "__main__":
    setup(ext_modules=extensions())
