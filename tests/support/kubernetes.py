"""The chart of packaging/kubernetes, rendered by helm."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "packaging" / "kubernetes" / "chart" / "lockgate"
CI = CHART / "ci"

# The interpreter of kubernetes-validate has a parser of YAML; the tests need none but for this.
_TO_JSON = "import json, sys, yaml; print(json.dumps([one for one in yaml.safe_load_all(sys.stdin) if one]))"

Object = dict[str, Any]


def tool(name: str) -> str:
    """Give the path of a tool that `make kubernetes-tools` installs; skips where it is not."""
    path = ROOT / "build" / "tools" / name
    if not path.exists():
        pytest.skip(f"no {path.name} in build/tools: make kubernetes-tools")
    return str(path)


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run([tool("helm"), *words], capture_output=True, text=True, check=False)


@functools.cache
def render(kind: str, *words: str) -> str:
    """Give the manifests that the chart makes of a file of values in its folder `ci`."""
    values = str(CI / f"{kind}-values.yaml")
    done = helm("template", "lockgate", str(CHART), "--namespace", "lockgate", "-f", values, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(kind: str, *words: str) -> list[Object]:
    """Give them as the objects that they are."""
    text = render(kind, *words)
    command = [tool("validate/bin/python"), "-c", _TO_JSON]
    found: list[Object] = json.loads(
        subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return found


def find(manifests: list[Object], kind: str) -> list[Object]:
    """Give the objects of a kind."""
    return [one for one in manifests if one["kind"] == kind]


def pods(manifests: list[Object]) -> list[Object]:
    """Give what pods are made of: the specification of each."""
    sets = [one["spec"]["template"]["spec"] for one in find(manifests, "StatefulSet")]
    return [*sets, *(one["spec"] for one in find(manifests, "Pod"))]
