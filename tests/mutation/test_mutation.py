"""The mutation run itself: what it changes, what it leaves alone, and that it tells killed from survived."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.mutation.mutants import apply, mutants
from tests.mutation.report import EXPLANATIONS, read_explanations
from tests.mutation.runner import ROOT, SOURCE


def changes(source: str) -> list[tuple[str, str, str]]:
    return [(one.function, one.was, one.now) for one in mutants("m", ast.parse(dedent(source)))]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("x = a < b", ["x = a <= b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x = a + b", ["x = a - b"]),
        ("x = a << 3", ["x = a >> 3", "x = a << 4"]),
        ("x = True", ["x = False"]),
        ("x = 'word'", ["x = 'wordX'"]),
        ("x.y = a", ["(dropped)"]),
        ("x += a", ["x -= a", "(dropped)"]),
        ("call(a)", ["(dropped)"]),
        ("call(a, flag=1)", ["(dropped)", "call(a, flag=2)"]),
        ("raise Error(f'{a} words {b}')", ["(dropped)"]),
        ("if a < b:\n    pass", ["if not a < b", "if a <= b"]),
        ("if a == b:\n    pass", ["if a != b"]),
        ("while a:\n    break", ["while not a", "continue", "(dropped)"]),
    ],
)
def test_what_is_changed(statement: str, expected: list[str]) -> None:
    assert [now for _function, _was, now in changes(statement)] == expected


def test_a_change_is_known_by_its_function_and_its_statement() -> None:
    source = """
    class A:
        size: int = 3

        @property
        def b(self, c=4):
            return self.c
    """
    assert changes(source) == [
        ("A", "size: int = 3", "size: int = 4"),
        ("A.b", "def b(self, c=4)", "def b(self, c=5)"),
        ("A.b", "return self.c", "return None"),
    ]


def test_what_is_left_out_by_rule() -> None:
    source = '''
    """A docstring."""
    from a import b
    if TYPE_CHECKING:
        x = 1
    NAMES: Final = ("some", "names")
    class A:
        __slots__ = ("a",)
        def __repr__(self) -> str:
            return "A"
        def f(self, x: Literal[1]) -> Literal["a"]:
            assert x > 1
            a = cast("A", b)
            b = "a few words"
    '''
    assert changes(source) == []
    assert changes("log.warning(1 + 2)") == [("", "log.warning(1 + 2)", "(dropped)")]


def test_a_module_is_not_touched_by_its_mutants() -> None:
    source = (SOURCE / "lockgate" / "mqtt" / "wire.py").read_text()
    tree = ast.parse(source)
    before = ast.dump(tree)
    for mutant in mutants("lockgate.mqtt.wire", tree):
        changed = ast.fix_missing_locations(apply(tree, mutant.path, mutant.change))
        compile(changed, "wire.py", "exec")
        assert ast.dump(changed) != before
        assert ast.dump(tree) == before


def test_a_run_tells_killed_from_survived() -> None:
    arguments = ["--module", "mqtt/topics", "--tests", "tests/unit/mqtt/test_topics.py", "--jobs", "1"]
    command = [sys.executable, "-m", "tests.mutation", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}  # always the interpreted modules
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False)
    figures = re.search(r"^all +(\d+) +(\d+) +(\d+)", ended.stdout, re.MULTILINE)
    assert figures is not None, ended.stdout + ended.stderr
    total, killed, survived = map(int, figures.groups())
    assert killed + survived == total > 50
    assert killed > 0.9 * total, ended.stdout
    assert survived > 0, ended.stdout  # `check_topic_filter` returns early only to be quick


def test_every_explanation_has_its_mutant_and_its_reason() -> None:
    every = set()
    for package in ("mqtt", "broker"):
        for path in (SOURCE / "lockgate" / package).glob("*.py"):
            every |= {mutant.key for mutant in mutants(f"lockgate.{package}.{path.stem}", ast.parse(path.read_text()))}
    assert set(read_explanations(EXPLANATIONS)) <= every
