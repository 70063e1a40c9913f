"""Numbers that stand in declarations: sizes of dims, standard deviations, defaults of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fllmc.frontend import ast
from fllmc.frontend.errors import BadSize
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError

Number = int | float


def evaluate(expr: ast.Expr, named: Callable[[ast.Ref], Number], what: str) -> Number:
    """The value of an arithmetic expression; DiagnosticError(BadSize) if it has none.

    Whole numbers stay whole: `/` of two whole numbers is whole when it divides evenly.
    """
    match expr:
        case ast.Number(value=value):
            return value
        case ast.Ref():
            return named(expr)
        case ast.Unary(value=value):
            return -evaluate(value, named, what)
        case ast.Binary(op=op, left=left, right=right):
            a, b = evaluate(left, named, what), evaluate(right, named, what)
            return _binary(expr, op, a, b, what)
        case ast.Call(
            function=ast.Ref(name="sqrt"), arguments=(ast.Argument(key=None, value=inner),)
        ):
            root = evaluate(inner, named, what)
            if root >= 0:
                return math.sqrt(root)
            raise DiagnosticError(
                BadSize(expr.span, f"{what} can't be computed", "root below zero")
            )
        case _:
            reason = "numbers, dims, `+ - * / % ^` and `sqrt` can stand here"
            raise DiagnosticError(BadSize(expr.span, f"{what} is not a number", reason))


def _binary(expr: ast.Expr, op: str, a: Number, b: Number, what: str) -> Number:
    try:
        match op:
            case "+":
                value = a + b
            case "-":
                value = a - b
            case "*":
                value = a * b
            case "%":
                value = a % b
            case "^":
                if abs(b) > 64:
                    raise OverflowError
                value = a**b
            case _:
                whole = isinstance(a, int) and isinstance(b, int) and a % b == 0
                value = a // b if whole else a / b
    except ZeroDivisionError:
        found = BadSize(expr.span, f"{what} can't be computed", "division by zero")
        raise DiagnosticError(found) from None
    except OverflowError:
        value = math.inf
    if isinstance(value, complex) or not math.isfinite(value) or abs(value) >= 2**63:
        raise DiagnosticError(BadSize(expr.span, f"{what} can't be computed", "beyond all bounds"))
    return value


class SizeTable:
    """Sizes of the dims of a run, computed on demand from their declarations.

    `bound` gives those that the data section binds. A dim that has no size is None.
    """

    def __init__(
        self, declared: Mapping[str, tuple[ast.Dim, ...]], bound: Mapping[str, int]
    ) -> None:
        self.declared = declared
        self.known: dict[str, int | None] = dict(bound)
        self.found: list[Diagnostic] = []
        self._open: list[str] = []

    def declaration(self, name: str) -> ast.Dim | None:
        """The declaration that gives the size: the first that has one."""
        return next((dim for dim in self.declared.get(name, ()) if dim.size is not None), None)

    def size(self, name: str) -> int | None:
        """The dim's size, or None if it has none or a mistake was reported."""
        if name not in self.known:
            dim = self.declaration(name)
            self.known[name] = None
            if dim:
                self._open.append(name)
                self.known[name] = self._compute(dim)
                self._open.pop()
        return self.known[name]

    def number(self, expr: ast.Expr, what: str) -> Number | None:
        """The value of an expression over dims; None if a mistake was reported."""
        try:
            return evaluate(expr, self._named, what)
        except DiagnosticError as error:
            self.found.extend(error.diagnostics)
            return None

    def _named(self, ref: ast.Ref) -> Number:
        if ref.name in self._open:
            chain = " needs ".join((*self._open[self._open.index(ref.name) :], ref.name))
            raise DiagnosticError(BadSize(ref.span, f"dim `{ref.name}` depends on itself", chain))
        if ref.name not in self.declared and ref.name not in self.known:
            what, names = f"unknown dim `{ref.name}`", tuple(self.declared)
            raise DiagnosticError(
                BadSize(ref.span, what, "not declared in `dims`", names, ref.name)
            )
        size = self.size(ref.name)
        if size is None:
            raise (
                DiagnosticError()
                if self._failed(ref.name)
                else DiagnosticError(
                    BadSize(ref.span, f"dim `{ref.name}` has no size", "its size is needed here")
                )
            )
        return size

    def _failed(self, name: str) -> bool:
        return self.declaration(name) is not None

    def _compute(self, dim: ast.Dim) -> int | None:
        assert dim.size is not None
        value = self.number(dim.size, f"the size of `{dim.name.text}`")
        if value is None:
            return None
        if isinstance(value, int) and value >= 1:
            return value
        what = f"`{dim.name.text}` would be {value:.10g}"
        self.found.append(BadSize(dim.size.span, what, "a whole number above zero is wanted"))
        return None
