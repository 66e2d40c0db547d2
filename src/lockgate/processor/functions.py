"""Python functions that rules call from SQL: how they are declared, and where they are found.

    from lockgate.processor.functions import aggregate, scalar, window

    @scalar
    def dew_point(temperature: float, humidity: float) -> float: ...

    @aggregate
    class Spread:                      # spread(x) in SQL
        def step(self, x): ...
        def finalize(self): ...

A `window` function has `value` and `inverse` beside them. NULL is None. What is raised fails the rule on these data.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from lockgate.config.errors import ConfigError

GROUP: Final = "lockgate.functions"  # of entry points
_MARK: Final = "__lockgate_function__"
_METHODS: Final = {"scalar": (), "aggregate": ("step", "finalize"), "window": ("step", "finalize", "value", "inverse")}

F = TypeVar("F", bound=Callable[..., Any])


class Function(NamedTuple):
    """One function of SQL."""

    name: str
    kind: Literal["scalar", "aggregate", "window"]
    arguments: int  # -1: any number
    implementation: Callable[..., Any]
    deterministic: bool = False
    trusted: bool = False  # ours: it ends by itself


def scalar(implementation: F) -> F:
    """A function of its arguments alone."""
    return _marked(implementation, "scalar")


def aggregate(implementation: F) -> F:
    """A class of which SQL makes one for each group."""
    return _marked(implementation, "aggregate")


def window(implementation: F) -> F:
    """An aggregate that can be used with OVER."""
    return _marked(implementation, "window")


def _marked(implementation: F, kind: Literal["scalar", "aggregate", "window"]) -> F:
    missing = [name for name in _METHODS[kind] if not callable(getattr(implementation, name, None))]
    if missing:
        raise TypeError(f"{implementation.__name__}, a function of kind {kind}, has no method {missing[0]}")
    # Spread → spread, DewPoint → dew_point
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", implementation.__name__).lower()
    called = implementation if kind == "scalar" else implementation.step  # type: ignore[attr-defined]
    declared = Function(name, kind, _count(called, skip=0 if kind == "scalar" else 1), implementation)
    setattr(implementation, _MARK, declared)
    return implementation


def _count(called: Callable[..., Any], skip: int) -> int:
    parameters = list(inspect.signature(called).parameters.values())[skip:]
    if any(p.kind is p.VAR_POSITIONAL or p.default is not p.empty for p in parameters):
        return -1
    return len(parameters)


class _Fresh(SourceFileLoader):
    """Reads the source whenever it is asked, and leaves nothing beside it."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def find_functions(folder: Path | None, packages: Iterable[str]) -> list[Function]:
    """Those declared in the Python files of a folder, and by installed packages. Raises ConfigError."""
    found: dict[str, tuple[Function, str]] = {}
    for place, module in [*_from_folder(folder), *_from_packages(packages)]:
        for value in vars(module).values() if isinstance(module, ModuleType) else (module,):
            function = getattr(value, _MARK, None)
            if not isinstance(function, Function):
                continue
            if function.name in found and found[function.name][0].implementation is not function.implementation:
                problem = f"{function.name} is declared in {found[function.name][1]} and in {place}"
                raise ConfigError(problem, key="processor.functions", accepted="each name once")
            found[function.name] = (function, place)
    return [function for function, _ in found.values()]


def _from_folder(folder: Path | None) -> list[tuple[str, object]]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", key="processor.functions", accepted="a folder of Python files")
    modules: list[tuple[str, object]] = []
    for path in sorted(folder.glob("*.py")):
        # No name that a file elsewhere could have; not entered in sys.modules, so that a reload reads it anew
        name = f"_lockgate_functions_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError(problem, path=path, line=line, key="processor.functions") from error
        modules.append((str(path), module))
    return modules


def _from_packages(packages: Iterable[str]) -> list[tuple[str, object]]:
    wanted = list(packages)
    if not wanted:
        return []
    from importlib.metadata import entry_points  # costs a moment, so only where it is asked for

    known = {point.name: point for point in entry_points(group=GROUP)}
    modules: list[tuple[str, object]] = []
    for name in wanted:
        if name not in known:
            accepted = ", ".join(known) or f"no installed package has an entry point of the group {GROUP}"
            raise ConfigError(f"there is no {name!r}", key="processor.function_packages", accepted=accepted)
        try:
            modules.append((name, known[name].load()))
        except Exception as error:
            problem = f"{name!r}: {type(error).__name__}: {error}"
            raise ConfigError(problem, key="processor.function_packages") from error
    return modules


# --- running them ---------------------------------------------------------------------------------------------------


class OverBudget(BaseException):
    """Raised inside a function that runs too long; no `except Exception` of its own stops it."""


def guarded(called: Callable[..., Any], out_of_time: Callable[[], bool]) -> Callable[..., Any]:
    """The same, but stopped at the next line of Python once the time is over.

    SQLite looks at the clock only between its own steps. What waits or computes in C is not stopped.
    """

    def watch(frame: object, event: str, argument: object) -> Any:
        if out_of_time():
            raise OverBudget
        return watch

    def run(*arguments: Any) -> Any:
        before = sys.gettrace()
        sys.settrace(watch)
        try:
            return called(*arguments)
        finally:
            sys.settrace(before)

    return run
