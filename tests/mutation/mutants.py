"""Small mistakes made on purpose: what one change each can do to a module's source.

Left out by rule, since no behaviour hangs on them: annotations, imports, docstrings, `__slots__`, `__repr__`, code for
the type checker (`TYPE_CHECKING`, `assert`, the target of `cast`), and wording: strings with a space in them,
f-strings, tables of names for people, and what is handed to a log (whether a line is logged is behaviour, and changed).
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ORDERINGS: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
NAMES_FOR_PEOPLE: Final = frozenset({"TYPE_NAMES", "NAMES", "NAMES_V3", "_TEXTS"})
LOG_METHODS: Final = frozenset({"debug", "info", "notice", "warning", "error", "exception"})

Node = TypeVar("Node", bound=ast.AST)
Path = tuple[tuple[str, int], ...]  # from the module to a node: field, and place in it where it is a list


class Mutant(NamedTuple):
    """One change. `was` and `now` are the first line of the smallest statement around it, in canonical form."""

    module: str  # as in lockgate.mqtt.decoder
    function: str  # qualified name, or "" at the level of the module or a class
    first: int  # lines of that statement's first line (a decorator's, for a definition), as they stand
    last: int
    was: str
    now: str
    path: Path
    change: int  # which of the changes that this node allows

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells a mutant from others, and stays as long as the statement does."""
        return self.module, self.function, self.was, self.now


def mutants(module: str, tree: ast.Module) -> list[Mutant]:
    """Give every mutant of a module; where a change makes equal statements equal again only the first is given."""
    found: dict[tuple[str, str, str, str, int], Mutant] = {}
    for function, statement, path in _places(tree):
        node = _at(tree, path)
        for number in range(len(_changes(node, statement, path))):
            statement_path = _path_of(path, tree)
            now = apply(tree, path, number, statement_path)
            was = _head(_at(tree, statement_path))
            after = _at(now, statement_path)
            head = "(dropped)" if isinstance(after, ast.Pass) else _head(after)
            first, last = _lines(statement)
            mutant = Mutant(module, function, first, last, was, head, path, number)
            found.setdefault((*mutant.key, first), mutant)
    return list(found.values())


def apply(tree: ast.Module, path: Path, change: int, statement_path: Path | None = None) -> ast.Module:
    """Give the module with one change made; the rest is shared with `tree`, which stays as it is."""
    if statement_path is None:
        statement_path = _path_of(path, tree)
    changed = _changes(_at(tree, path), _at(tree, statement_path), path)[change]()
    return _replaced(tree, path, changed)  # type: ignore[return-value]


def _places(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, Path]]:
    """Walk what is not left out by rule: the function around a node, its smallest statement, and the way to it."""
    yield from _walk(tree, (), "", None)


def _walk(node: ast.AST, path: Path, function: str, statement: ast.stmt | None) -> Iterator[tuple[str, ast.stmt, Path]]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        if node.name == "__repr__":
            return
        inner = f"{function}.{node.name}" if function else node.name
    else:
        inner = function
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__slots__", "__hash__"):
        return
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in NAMES_FOR_PEOPLE:
        return
    if isinstance(node, ast.stmt):
        statement = node
    if statement is not None:
        yield function, statement, path
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "keywords", "ctx", "target", "targets"):
            if not (field == "keywords" and isinstance(node, ast.Call)) and not (
                field in ("target", "targets") and not isinstance(node, ast.AnnAssign)
            ):
                continue
        children = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_left_out(node, field, place, child):
                continue
            within = inner if field in ("body", "args") else function
            yield from _walk(child, (*path, (field, place)), within, statement)


def _is_left_out(parent: ast.AST, field: str, place: int, child: ast.AST) -> bool:
    if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):  # a docstring
        return True
    if isinstance(parent, ast.Call) and field in ("args", "keywords"):
        called = parent.func
        if isinstance(called, ast.Attribute) and called.attr in LOG_METHODS:
            return True
        if isinstance(called, ast.Name) and called.id == "cast" and place == 0:
            return True
    return False


def _changes(node: ast.AST, statement: ast.AST, path: Path) -> list[Callable[[], ast.AST]]:
    """Give what may be put in this node's place."""
    found: list[Callable[[], ast.AST]] = []
    if isinstance(node, ast.Compare):
        found += [lambda at=at: _with_comparison(node, at) for at in range(len(node.ops))]  # type: ignore[misc]
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        found.append(lambda: _new(ast.BoolOp(other, node.values), node))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(lambda: node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        if not _is_text(node.left) and not _is_text(node.right):
            found.append(lambda: _new(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right), node))
    elif isinstance(node, ast.Constant):
        found += [lambda value=value: _new(ast.Constant(value), node) for value in _other_values(node.value)]  # type: ignore[misc]
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        found.append(lambda: _new(ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value), node))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value in (None, True, False)):
            found.append(lambda: _new(ast.Return(_new(ast.Constant(None), node)), node))
    elif isinstance(node, ast.Break):
        found.append(lambda: _new(ast.Continue(), node))
    elif isinstance(node, ast.Continue):
        found.append(lambda: _new(ast.Break(), node))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and _is_worth_negating(node.test):
        found.append(lambda: _negated(node))
    if _may_be_dropped(node):
        found.append(lambda: _new(ast.Pass(), node))
    return found


def _may_be_dropped(node: ast.AST) -> bool:
    if isinstance(node, ast.Return):
        return node.value is None
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Delete | ast.Break | ast.Continue)


def _with_comparison(node: ast.Compare, at: int) -> ast.Compare:
    ops = list(node.ops)
    ops[at] = COMPARISONS[type(ops[at])]()
    return _new(ast.Compare(node.left, ops, node.comparators), node)


def _is_worth_negating(test: ast.expr) -> bool:
    """A comparison that is no ordering, and `not`, are negated by their own changes; `while True` by its constant."""
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ORDERINGS)
    return not isinstance(test, ast.Constant) and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))


def _negated(node: ast.If | ast.While | ast.IfExp) -> ast.AST:
    changed = copy.copy(node)
    changed.test = _new(ast.UnaryOp(ast.Not(), node.test), node.test)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    if isinstance(value, str):
        return [] if " " in value else [value + "X"]
    if isinstance(value, bytes):
        return [value + b"X"]
    return []


# --- nodes and the way to them -------------------------------------------------------------------------------------


def _at(tree: ast.AST, path: Path) -> ast.AST:
    node = tree
    for field, place in path:
        value = getattr(node, field)
        node = value[place] if isinstance(value, list) else value
    return node


def _replaced(node: ast.AST, path: Path, changed: ast.AST) -> ast.AST:
    if not path:
        return changed
    (field, place), *rest = path
    value = getattr(node, field)
    new = copy.copy(node)
    if isinstance(value, list):
        items = list(value)
        items[place] = _replaced(value[place], tuple(rest), changed)
        setattr(new, field, items)
    else:
        setattr(new, field, _replaced(value, tuple(rest), changed))
    return new


def _path_of(path: Path, tree: ast.AST) -> Path:
    """Give the way to the smallest statement around a node."""
    node, found = tree, 0
    for depth, (field, place) in enumerate(path, 1):
        value = getattr(node, field)
        node = value[place] if isinstance(value, list) else value
        if isinstance(node, ast.stmt):
            found = depth
    return path[:found]


def _head(node: ast.AST) -> str:
    """Give a statement's text without the statements in it."""
    bare = copy.copy(node)
    for field in ("body", "orelse", "finalbody", "handlers", "cases", "decorator_list"):
        if isinstance(getattr(bare, field, None), list):
            setattr(bare, field, [ast.Pass()] if field == "body" else [])
    if isinstance(bare, ast.Try):
        bare.finalbody = [ast.Pass()]
    text = ast.unparse(ast.fix_missing_locations(bare))
    return text.removesuffix("pass").rstrip().removesuffix(":") if hasattr(node, "body") else text


def _lines(statement: ast.stmt) -> tuple[int, int]:
    body = getattr(statement, "body", None)
    if isinstance(body, list) and body:
        return statement.lineno, max(statement.lineno, body[0].lineno - 1)
    return statement.lineno, statement.end_lineno or statement.lineno


def _new(node: Node, old: ast.AST) -> Node:
    return ast.copy_location(node, old)
