"""Runs the tests that can see a mutant, quickest first, in a process forked after everything was imported.

A change within a function replaces that function's code object in the fork. Any other change, of a constant or a
default, is made as its module is imported: the fork is then of a process that has imported none of ours yet.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, TypeVar

import hypothesis.stateful  # noqa: F401 (imported once, before any fork)
import pytest
import pytest_asyncio  # noqa: F401
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings

from tests.mutation.mutants import Mutant, apply

ROOT: Final = Path(__file__).parent.parent.parent
SOURCE: Final = ROOT / "src"
TESTS: Final = ("tests/unit/mqtt", "tests/unit/broker", "tests/conformance", "tests/properties")
# What needs a socket, or reads the tests themselves.
IGNORED: Final = (
    "tests/conformance/test_conformance_page.py",
    "tests/conformance/v3_1_1/test_websocket.py",
    "tests/conformance/v5/test_websocket.py",
)
EXAMPLES: Final = 10  # of each property
MEMORY_BYTES: Final = 4 << 30  # a mutant that takes more has failed
STILL_SECONDS: Final = 30  # a test that waits for longer hangs

KILLED: Final = "killed"
HANGED: Final = "hanged"  # killed by its time or its memory
SURVIVED: Final = "survived"
NOT_RUN: Final = "not run"  # survived, since no test comes by

Task = TypeVar("Task")
Result = TypeVar("Result")

_FORK: Final = multiprocessing.get_context("fork")


class Seen(NamedTuple):
    """One test: its place in the list of all, how long it takes, and which lines of which files it runs."""

    number: int
    node_id: str
    seconds: float
    lines: dict[str, frozenset[int]]


class Plan(NamedTuple):
    """One mutant and the tests that may see it, as places in the list of all, quickest first."""

    number: int
    mutant: Mutant
    tests: list[int]


def run(
    mutants: Sequence[Mutant], trees: dict[str, ast.Module], paths: Sequence[str], jobs: int
) -> Iterator[tuple[int, str]]:
    """Give the place of each mutant in the list and what became of it, in the order they end."""
    ours, theirs = _FORK.Pipe(duplex=False)
    collected = _FORK.Process(target=_in_collected, args=(theirs, list(mutants), trees, paths, jobs))
    collected.start()
    theirs.close()
    try:
        while True:
            try:
                message = ours.recv()
            except EOFError:
                raise SystemExit("the tests could not be collected, or fail without any mutation") from None
            if isinstance(message, list):
                break
            yield message
        seen: list[Seen] = message
    finally:
        collected.join()
    rest = [
        Plan(number, mutant, _order(seen, _tests_of_names(mutant, trees, seen)))
        for number, mutant in enumerate(mutants)
        if not _is_in_function(mutant, trees) or _is_of_import(mutant, trees, seen)
    ]
    yield from _in_workers(functools.partial(_run_anew, trees, [test.node_id for test in seen]), rest, jobs)


_work: Callable[[Any], Any]  # of this process's workers: a fork inherits it, and it need not be pickled


def _in_workers(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """Do the tasks in forked processes, and give the results as they come."""
    global _work
    _work = work
    with _FORK.Pool(jobs, _quiet) as pool:
        yield from pool.imap_unordered(_do, tasks)


def _do(task: Any) -> Any:
    return _work(task)


# --- the tests, collected once -------------------------------------------------------------------------------------


def _options(paths: Iterable[str]) -> list[str]:
    ignored = [f"--ignore={path}" for path in IGNORED]
    plugins = ["-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:terminal", "-p", "no:logging"]
    return ["-o", "addopts=", "--import-mode=importlib", "-s", "-W", "ignore", *plugins, *ignored, *paths]


def _prepare() -> None:
    settings.register_profile(
        "mutation",
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutation")


class _Collected:
    """The pytest plugin that has the collected tests handed to a function, in place of running them."""

    def __init__(self, body: Callable[[list[pytest.Item]], None]) -> None:
        self._body = body

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("a test file cannot be imported")
        for item in session.items:
            _limit_examples(item)
        gc.freeze()  # or each fork spends its time on looking through all that was collected
        self._body(session.items)
        return True


def _limit_examples(item: pytest.Item) -> None:
    function: Any = getattr(item, "obj", None)
    own = getattr(function, "_hypothesis_internal_use_settings", None)
    if own is not None:
        function._hypothesis_internal_use_settings = settings(own, max_examples=min(own.max_examples, EXAMPLES))
    machine: Any = getattr(item, "cls", None)
    if isinstance(getattr(machine, "settings", None), settings):
        machine.settings = settings(machine.settings, max_examples=EXAMPLES)


def passes(item: pytest.Item) -> bool:
    """Run one test; plain functions are called without pytest's care, which takes longer than they do."""
    if not isinstance(item, pytest.Function):
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))
    given: dict[str, object] = item.callspec.params if hasattr(item, "callspec") else {}
    names = set(item.fixturenames) - set(given)
    if names or item.cls is not None or _is_coroutine(item):
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))
    try:
        item.obj(**given)
    except pytest.skip.Exception:
        return True
    except (Exception, pytest.fail.Exception):
        return False
    return True


def _is_coroutine(item: pytest.Function) -> bool:
    return bool(item.obj.__code__.co_flags & 0x80) if isinstance(item.obj, FunctionType) else True


# --- mutants within a function -------------------------------------------------------------------------------------


def _in_collected(
    pipe: Connection, mutants: list[Mutant], trees: dict[str, ast.Module], paths: Sequence[str], jobs: int
) -> None:
    def body(items: list[pytest.Item]) -> None:
        seen = sorted(_in_workers(functools.partial(_see, items), range(len(items)), jobs))
        broken = [test.node_id for test in seen if test.seconds < 0]
        if broken:
            raise SystemExit(f"without any mutation these fail: {broken}")
        lines: dict[tuple[str, int], set[int]] = defaultdict(set)
        for number, test in enumerate(seen):
            for file, numbers in test.lines.items():
                for line in numbers:
                    lines[file, line].add(number)
        plans = []
        for number, mutant in enumerate(mutants):
            if _is_in_function(mutant, trees) and not _is_of_import(mutant, trees, seen):
                file = str(file_of(mutant.module))
                tests = set().union(*(lines[file, line] for line in range(mutant.first, mutant.last + 1)))
                plans.append(Plan(number, mutant, _order(seen, tests)))
        for result in _in_workers(functools.partial(_run_collected, items, seen, trees), plans, jobs):
            pipe.send(result)
        pipe.send(seen)

    _prepare()
    pytest.main(_options(paths), [_Collected(body)])


def _quiet() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _see(items: list[pytest.Item], number: int) -> Seen:
    """Run a test twice, for its time and for its lines. A test that fails has negative seconds."""
    item = items[number]
    started = time.process_time()
    good = passes(item)
    seconds = time.process_time() - started
    lines: dict[str, set[int]] = defaultdict(set)
    ours = str(SOURCE / "lockgate") + os.sep

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if not file.startswith(ours):
            return None
        found = lines[file]

        def trace_line(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            found.add(frame.f_lineno)
            return trace_line

        return trace_line

    sys.settrace(trace)
    try:
        good = passes(item) and good
    finally:
        sys.settrace(None)
    return Seen(
        number, item.nodeid, seconds if good else -1.0, {file: frozenset(found) for file, found in lines.items()}
    )


def _order(seen: list[Seen], tests: Iterable[int]) -> list[int]:
    return sorted(tests, key=lambda number: seen[number].seconds)


# Of this worker: the tests that killed the last mutants of each function are the likeliest to kill the next.
_killers: dict[tuple[str, str], list[int]] = defaultdict(list)


def _run_collected(
    items: list[pytest.Item], seen: list[Seen], trees: dict[str, ast.Module], plan: Plan
) -> tuple[int, str]:
    if not plan.tests:
        return plan.number, NOT_RUN
    likely = _killers[plan.mutant.module, plan.mutant.function]
    able = set(plan.tests)
    first = [number for number in likely if number in able]
    order = first + [number for number in plan.tests if number not in first]
    reader, writer = os.pipe()

    def child() -> bool:
        _replace_function(plan.mutant, trees)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        for number in order:
            os.write(writer, number.to_bytes(4, "big"))
            signal.setitimer(signal.ITIMER_PROF, 1 + 20 * seen[number].seconds)
            signal.setitimer(signal.ITIMER_REAL, STILL_SECONDS)
            if not passes(items[number]):
                return False
        return True

    result = _in_fork(child)
    os.close(writer)
    with open(reader, "rb") as stream:
        last = int.from_bytes(stream.read()[-4:], "big")
    if result != SURVIVED:
        if last in likely:
            likely.remove(last)
        likely.insert(0, last)
        del likely[8:]
    return plan.number, result


def _in_fork(child: Callable[[], bool]) -> str:
    """Say what became of a mutant whose tests `child` runs; it gives whether they all passed."""
    pid = os.fork()
    if pid == 0:
        status = 2
        with contextlib.suppress(BaseException):
            status = 0 if child() else 1
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return HANGED
    return SURVIVED if os.WEXITSTATUS(status) == 0 else KILLED


def _function_node(mutant: Mutant, tree: ast.Module) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Give the outermost function whose body a mutant lies in."""
    node: Any = tree
    for field, place in mutant.path:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body":
            return node
        value = getattr(node, field)
        node = value[place] if isinstance(value, list) else value
    return None


def _is_in_function(mutant: Mutant, trees: dict[str, ast.Module]) -> bool:
    """A change that takes `super` away also takes a cell from the code object, and then it cannot replace the other."""
    return "super(" not in mutant.was and _function_node(mutant, trees[mutant.module]) is not None


def _is_of_import(mutant: Mutant, trees: dict[str, ast.Module], seen: list[Seen]) -> bool:
    """Whether no test comes by a function at all: it may have done all it does when its module was imported."""
    function = _function_node(mutant, trees[mutant.module])
    if function is None:
        return False
    file, first, last = str(file_of(mutant.module)), function.body[0].lineno, function.end_lineno or 0
    return not any(first <= line <= last for test in seen for line in test.lines.get(file, ()))


def _code_in(code: CodeType, function: ast.FunctionDef | ast.AsyncFunctionDef) -> CodeType:
    """Find a function's code object by its first line, which is its first decorator's where it has any."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    waiting = [code]
    while waiting:
        code = waiting.pop()
        if code.co_name == function.name and code.co_firstlineno == first:
            return code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    raise LookupError(function.name)


def _replace_function(mutant: Mutant, trees: dict[str, ast.Module]) -> None:
    found = _function_node(mutant, trees[mutant.module])
    assert found is not None
    statement = apply(trees[mutant.module], mutant.path, mutant.change).body[mutant.path[0][1]]
    part = ast.fix_missing_locations(ast.Module([statement], []))
    flags = annotations.compiler_flag
    code = _code_in(compile(part, str(file_of(mutant.module)), "exec", flags=flags, dont_inherit=True), found)
    owner: Any = sys.modules[mutant.module]
    for name in code.co_qualname.split("."):
        owner = vars(owner)[name]
    for candidate in (owner, *(getattr(owner, name, None) for name in ("fget", "fset", "fdel", "__func__"))):
        if isinstance(candidate, FunctionType) and candidate.__code__.co_firstlineno == code.co_firstlineno:
            candidate.__code__ = code
            return
    raise LookupError(code.co_qualname)


# --- mutants of constants and defaults -----------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with one change made."""

    def __init__(self, mutant: Mutant, tree: ast.Module) -> None:
        super().__init__(mutant.module, str(file_of(mutant.module)))
        self._tree = ast.fix_missing_locations(apply(tree, mutant.path, mutant.change))

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._tree, self.path, "exec", dont_inherit=True)
        return code


class _Finder:
    """Finds that one module, before anybody else does."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._loader.name:
            return None
        return importlib.util.spec_from_file_location(name, self._loader.path, loader=self._loader)


def _run_anew(trees: dict[str, ast.Module], node_ids: list[str], plan: Plan) -> tuple[int, str]:
    """Import, collect and run; the unit tests first, since collecting is most of the time."""
    if not plan.tests:
        return plan.number, NOT_RUN
    wanted = [node_ids[number] for number in plan.tests]
    unit = [node_id for node_id in wanted if node_id.startswith("tests/unit/")]
    for part in (unit, [node_id for node_id in wanted if not node_id.startswith("tests/unit/")]):
        if part and (result := _in_fork(functools.partial(_passes_anew, plan.mutant, trees, part))) != SURVIVED:
            return plan.number, result
    return plan.number, SURVIVED


def _passes_anew(mutant: Mutant, trees: dict[str, ast.Module], node_ids: list[str]) -> bool:
    good = False

    def body(items: list[pytest.Item]) -> None:
        nonlocal good
        by_id = {item.nodeid: item for item in items}
        good = all(node_id in by_id and passes(by_id[node_id]) for node_id in node_ids)

    _quiet()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.setitimer(signal.ITIMER_PROF, 120)
    signal.setitimer(signal.ITIMER_REAL, 600)
    sys.meta_path.insert(0, _Finder(_Loader(mutant, trees[mutant.module])))
    _prepare()
    files = dict.fromkeys(node_id.partition("::")[0] for node_id in node_ids)
    return pytest.main(_options(files), [_Collected(body)]) in (0, 5) and good


def _tests_of_names(mutant: Mutant, trees: dict[str, ast.Module], seen: list[Seen]) -> set[int]:
    """Give the tests that come by a function whose default this is, or by any line that says a name so defined."""
    statement: Any = trees[mutant.module].body[mutant.path[0][1]]
    lines: dict[str, set[int]] = defaultdict(set)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        within = range(statement.lineno, (statement.end_lineno or 0) + 1)
        lines[str(file_of(mutant.module))].update(within)
    names = _names_defined(statement)
    done: set[str] = set()
    while names - done:
        name = (names - done).pop()
        done.add(name)
        for module, tree in trees.items():
            for top in tree.body:
                said = {
                    node.lineno
                    for node in ast.walk(top)
                    if (isinstance(node, ast.Name) and node.id == name)
                    or (isinstance(node, ast.Attribute) and node.attr == name)
                }
                lines[str(file_of(module))] |= said
                if said and isinstance(top, ast.Assign | ast.AnnAssign):
                    names |= _names_defined(top)
    wanted = {
        number
        for number, test in enumerate(seen)
        if any(test.lines.get(file, frozenset()) & at for file, at in lines.items())
    }
    files = {node_id.partition("::")[0] for _, node_id, _, _ in seen}
    naming = {file for file in files if any(name in (ROOT / file).read_text() for name in done)}
    return wanted | {number for number, test in enumerate(seen) if test.node_id.partition("::")[0] in naming}


def _names_defined(statement: ast.stmt) -> set[str]:
    """Give the names that a statement of a module defines; of a class its fields, its methods are not asked for."""
    if isinstance(statement, ast.ClassDef):
        return {statement.name}.union(
            *(_names_defined(inner) for inner in statement.body if isinstance(inner, ast.AnnAssign))
        )
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {
        node.id for target in targets if target is not None for node in ast.walk(target) if isinstance(node, ast.Name)
    }


def file_of(module: str) -> Path:
    """Give the file of a module's source."""
    return SOURCE / (module.replace(".", "/") + ".py")
