"""`require LEFT OP RIGHT`: facts about sizes that must hold, in blocks and in files."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fllmc.frontend import ast
from fllmc.frontend.errors import UnknownDim
from fllmc.frontend.semantics.sizes import SizeTable
from fllmc.frontend.type_errors import FactFails
from fllmc.ir.diagnostics import Diagnostic

COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def unknown_dims(fact: ast.Require, declared: Iterable[str]) -> Iterator[Diagnostic]:
    """Names in a fact that are no dims."""
    known = tuple(declared)
    for ref in (*refs(fact.left), *refs(fact.right)):
        if ref.name not in known:
            yield UnknownDim(ref.span, ref.name, known)


def failing(facts: Iterable[ast.Require], table: SizeTable) -> Iterator[Diagnostic]:
    """Facts that do not hold for these sizes. Those that can't be computed the table reports."""
    for fact in dict.fromkeys(facts):
        left = table.number(fact.left, "what is required")
        right = table.number(fact.right, "what is required")
        if left is None or right is None or COMPARED[fact.op](left, right):
            continue
        names = dict.fromkeys(ref.name for ref in (*refs(fact.left), *refs(fact.right)))
        sizes = ", ".join(f"`{name}` is {table.size(name)}" for name in names)
        apart = [(fact.left, left), (fact.right, right)]
        values = [f"`{written(e)}` is {v:g}" for e, v in apart if isinstance(e, ast.Binary)]
        said = "; ".join(part for part in (sizes, ", ".join(values)) if part)
        shown = f"{written(fact.left)} {fact.op} {written(fact.right)}"
        yield FactFails(fact.span, shown, said)


def written(expr: ast.Expr) -> str:
    """An arithmetic expression as text; parentheses stand where they are needed."""
    match expr:
        case ast.Number(text=text):
            return text
        case ast.Ref(name=name):
            return name
        case ast.Unary(value=value):
            return f"-{_inner(value, 3)}"
        case ast.Binary(op=op, left=left, right=right):
            rank = RANKS[op]
            apart = "" if op == "^" else " "
            return f"{_inner(left, rank)}{apart}{op}{apart}{_inner(right, rank + 1)}"
        case ast.Call(function=ast.Ref(name=name), arguments=arguments):
            return f"{name}({', '.join(written(each.value) for each in arguments)})"
        case _:
            return "..."


RANKS = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "^": 4}


def _inner(expr: ast.Expr, rank: int) -> str:
    low = isinstance(expr, ast.Binary) and RANKS[expr.op] < rank
    return f"({written(expr)})" if low else written(expr)


def refs(expr: ast.Expr) -> Iterator[ast.Ref]:
    """The names in an arithmetic expression, functions apart."""
    match expr:
        case ast.Ref():
            yield expr
        case ast.Unary(value=value):
            yield from refs(value)
        case ast.Binary(left=left, right=right):
            yield from refs(left)
            yield from refs(right)
        case ast.Call(arguments=arguments):
            for argument in arguments:
                yield from refs(argument.value)
        case _:
            return
