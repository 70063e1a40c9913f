"""The kinds of expressions: every equation typed by named dims, every mistake reported once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.errors import (
    Duplicate,
    NotAValue,
    NotCallable,
    UnknownAttribute,
    UnknownDim,
    UnknownName,
)
from fllmc.frontend.semantics.forms import FORMS
from fllmc.frontend.semantics.kinds import differs, misfit, noun, union
from fllmc.frontend.semantics.typed import (
    BROKEN,
    HOST,
    Apply,
    Constant,
    Kind,
    Local,
    Nested,
    Param,
    Plain,
    Prim,
    Requirement,
    Signature,
    Size,
    Typed,
    Use,
)
from fllmc.frontend.type_errors import (
    CannotApply,
    DimTwice,
    ExtraArgument,
    MissingArgument,
    NotNumbers,
    UnknownArgument,
    WrongArgument,
    WrongValue,
)
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

CONSTANTS = {"pi": math.pi}
OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}


class Entity(Struct, frozen=True):
    """What a name of a body stands for: a value, a parameter or a nested block."""

    what: Literal["input", "equation", "param", "sub", "stack", "state", "total", "parameter"]
    span: Span
    kind: Kind = BROKEN
    param: Param | None = None
    nested: Nested | None = None
    signature: Signature | None = None


class Body:
    """Types the expressions of one body. Gathers mistakes, requirements and the dims in use."""

    def __init__(
        self,
        dims: Iterable[str],
        is_block: Callable[[str], bool],
        functions: Iterable[str] = FORMS,
    ) -> None:
        self.declared = tuple(dims)
        self.is_block = is_block
        self.functions = frozenset(functions)
        self.entities: dict[str, Entity] = {}
        self.used: set[str] = set()
        self.updating = False
        self.lookups: set[str] = set()
        self.requirements: list[Requirement] = []
        self.dims: dict[str, Span] = {}
        self.found: list[Diagnostic] = []

    # Names.

    def give(self, name: ast.Name, entity: Entity) -> bool:
        """Bind a name; False if it is taken (which is reported)."""
        known = self.entities.setdefault(name.text, entity)
        if known is not entity:
            self.found.append(Duplicate(name.span, name.text, entity.what, known.span))
        return known is entity

    def dim(self, name: ast.Name) -> bool:
        """Whether the dim is declared; reported if not."""
        if name.text in self.declared:
            self.dims.setdefault(name.text, name.span)
            return True
        self.found.append(UnknownDim(name.span, name.text, self.declared))
        return False

    def distinct(self, names: tuple[ast.Name, ...]) -> tuple[str, ...] | None:
        """The names as declared dims without repeats; None if a mistake was reported."""
        good = [self.dim(name) for name in names]
        for position, name in enumerate(names):
            if name.text in [other.text for other in names[:position]]:
                self.found.append(DimTwice(name.span, name.text, "second time", what="this names"))
                return None
        return tuple(name.text for name in names) if all(good) else None

    def broken(self, span: Span, *found: Diagnostic) -> Typed:
        """A value that stands for a mistake."""
        self.found.extend(found)
        return Typed(BROKEN, Constant(0.0), span=span)

    # Expressions.

    def expr(self, node: ast.Expr) -> Typed:
        """The expression, typed; broken if a mistake in it was reported."""
        match node:
            case ast.Number(value=value):
                return Typed(HOST, Constant(float(value)), span=node.span)
            case ast.Boolean(value=value):
                kind = Kind(form="truth", host=True)
                return Typed(kind, Constant(float(value)), span=node.span)
            case ast.Ref():
                return self._ref(node)
            case ast.Unary(value=value):
                return self._elementwise(node, "neg", "`-`", value)
            case ast.Binary(op="%"):
                wanted = "`%` only where sizes are compared or computed"
                return self.broken(node.span, WrongValue(node.span, "a value", wanted, "`%`"))
            case ast.Binary(op=op, left=left, right=right):
                return self._elementwise(node, OPERATORS[op], f"`{op}`", left, right)
            case ast.Rename():
                from fllmc.frontend.semantics.renaming import renamed  # the two know each other

                return renamed(self, node)
            case ast.Call():
                return self._call(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Tuple(items=items) | ast.List(items=items):
                for item in items:
                    self.expr(item)
                found = WrongValue(node.span, "a value", "a single tensor or number", "a list")
                return self.broken(node.span, found)
            case ast.Quantity(text=text):
                found = WrongValue(node.span, "a value", "a number without a unit", f"`{text}`")
                return self.broken(node.span, found)
            case ast.String() | ast.Selector():
                found = WrongValue(node.span, "a value", "a tensor or number", "text")
                return self.broken(node.span, found)

    def numbers(self, node: ast.Expr, what: str) -> Typed:
        """The expression, which must hold numbers."""
        typed = self.expr(node)
        if typed.kind.form in ("number", "broken"):
            return typed
        kind = typed.kind
        shown = f"indices of `{kind.index}`" if kind.form == "index" else "truth values"
        return self.broken(node.span, NotNumbers(node.span, what, shown))

    def elementwise(self, span: Span, name: str, *args: Typed) -> Typed:
        """An elementwise operation on typed arguments."""
        if any(arg.kind.broken for arg in args):
            return self.broken(span)
        dims = union(arg.kind.dims for arg in args)
        return Typed(Kind(dims, host=all(arg.kind.host for arg in args)), Prim(name), args, span)

    def _elementwise(self, node: ast.Expr, name: str, shown: str, *operands: ast.Expr) -> Typed:
        return self.elementwise(node.span, name, *(self.numbers(o, shown) for o in operands))

    def _ref(self, node: ast.Ref) -> Typed:
        entity = self.entities.get(node.name)
        if entity is None:
            return self._other_name(node)
        self.used.add(node.name)
        if entity.param and not entity.param.arrow:
            return Typed(Kind(entity.param.target), Plain(node.name), span=node.span)
        if entity.what == "total" and not self.updating:
            what, way = (
                "a total of a whole step",
                f"an update can read it: `update STATE = {node.name}`",
            )
            return self.broken(node.span, NotAValue(node.span, node.name, what, way, entity.span))
        if entity.what not in ("param", "sub", "stack"):
            return Typed(entity.kind, Local(node.name), span=node.span)
        if entity.kind.broken and not (entity.param or entity.signature):
            return self.broken(node.span)
        what = "an arrow" if entity.param else f"a {entity.what.replace('sub', 'sub-block')}"
        way = f"apply it: `{node.name}(x)`"
        return self.broken(node.span, NotAValue(node.span, node.name, what, way, entity.span))

    def _other_name(self, node: ast.Ref) -> Typed:
        name, span = node.name, node.span
        if name in CONSTANTS:
            return Typed(HOST, Constant(CONSTANTS[name]), span=span)
        if name in self.declared:
            self.dims.setdefault(name, span)
            return Typed(HOST, Size(name), span=span)
        if name in self.functions:
            way = f"the form is `{FORMS[name]}`"
            return self.broken(span, NotAValue(span, name, "a function", way))
        if self.is_block(name):
            way = f"name a sub-block first: `sub NAME: {name}`"
            return self.broken(span, NotAValue(span, name, "a block", way))
        return self.broken(span, UnknownName(span, name, (*self.entities, *self.declared)))

    def _attribute(self, node: ast.Attribute) -> Typed:
        arrow = self._arrow(node)
        if arrow is None:
            return self.broken(node.span)
        way = f"apply it: `{arrow.name}.T(x)`"
        found = NotAValue(node.span, f"{arrow.name}.T", "an arrow", way, arrow.span)
        return self.broken(node.span, found)

    def _arrow(self, node: ast.Attribute) -> Param | None:
        """The arrow of `arrow.T`; None if it is something else, which is reported."""
        if isinstance(node.value, ast.Ref) and node.name.text == "T":
            entity = self.entities.get(node.value.name)
            if entity and entity.param and entity.param.arrow:
                self.used.add(node.value.name)
                return entity.param
            if entity and entity.what == "param" and not entity.param:
                return None
        named = isinstance(node.value, ast.Ref) and node.value.name in self.entities
        if not named and self.expr(node.value).kind.broken:
            return None
        self.found.append(UnknownAttribute(node.name.span, node.name.text))
        return None

    # Calls.

    def _call(self, node: ast.Call) -> Typed:
        match node.function:
            case ast.Ref(name=name) if name in self.entities:
                return self._apply_name(node, name)
            case ast.Ref(name=name) if name in self.functions:
                from fllmc.frontend.semantics.calls import call  # the two know each other

                return call(self, node, name)
            case ast.Attribute() as attribute:
                arrow = self._arrow(attribute)
                args = [self.expr(argument.value) for argument in node.arguments]
                if arrow is None:
                    return self.broken(node.span)
                return self._apply(node, arrow, args, transposed=True)
            case _:
                return self._not_callable(node)

    def _not_callable(self, node: ast.Call) -> Typed:
        for argument in node.arguments:
            if not (argument.key and isinstance(argument.value, ast.Ref)):
                self.expr(argument.value)
        span = node.function.span
        if not isinstance(node.function, ast.Ref):
            if self.expr(node.function).kind.broken:
                return self.broken(node.span)
            return self.broken(node.span, NotCallable(span, "this value"))
        name = node.function.name
        if self.is_block(name):
            way = f"name a sub-block first: `sub NAME: {name}`"
            return self.broken(node.span, NotCallable(span, f"the block `{name}`", way))
        if name in self.declared:
            return self.broken(node.span, NotCallable(span, f"the dim `{name}`"))
        candidates = (*self.entities, *sorted(self.functions))
        return self.broken(node.span, UnknownName(span, name, candidates))

    def _apply_name(self, node: ast.Call, name: str) -> Typed:
        entity = self.entities[name]
        self.used.add(name)
        if entity.param and entity.param.arrow:
            args = [self.expr(argument.value) for argument in node.arguments]
            return self._apply(node, entity.param, args)
        if entity.signature:
            return self._use(node, name, entity.signature)
        if entity.param is None and entity.kind.broken:
            for argument in node.arguments:
                self.expr(argument.value)
            return self.broken(node.span)
        what = f"`{name}`, a tensor," if entity.param else f"`{name}`, {noun(entity.kind)},"
        found = NotCallable(node.function.span, what, origin=entity.span)
        return self.broken(node.span, found)

    def _apply(
        self, node: ast.Call, arrow: Param, args: list[Typed], transposed: bool = False
    ) -> Typed:
        name = arrow.name + ".T" * transposed
        form = f"{name}(x)"
        keyed = next((a.key for a in node.arguments if a.key), None)
        if keyed:
            found = UnknownArgument(keyed.span, keyed.text, (), name, form)
            return self.broken(node.span, found)
        if not args:
            return self.broken(node.span, MissingArgument(node.span, name, "x", form, arrow.shape))
        if len(args) > 1 or node.dims:
            where = node.dims[0].span if node.dims else node.arguments[1].span
            found = ExtraArgument(where, name, "an arrow takes one value", form, arrow.shape)
            return self.broken(node.span, found)
        (arg,) = args
        if arg.kind.broken:
            return self.broken(node.span)
        return self._arrow_on(node.span, arrow, arg, transposed, node.function.span)

    def _arrow_on(
        self, span: Span, arrow: Param, arg: Typed, transposed: bool, applied: Span
    ) -> Typed:
        source, target = arrow.source, arrow.target
        if transposed:
            source, target = target, source
        reason = misfit(source, arg.kind)
        if arg.kind.form == "index" and transposed and set(source) & set(target):
            reason = f"`{arrow.name}` has `{arg.kind.index}` on both sides"
        if reason:
            takes, gives = " and ".join(source), " and ".join(target)
            name = arrow.name + ".T" * transposed
            what = f"indices of `{arg.kind.index}`" if arg.kind.index else str(arg.kind)
            shown = what, reason, takes, gives
            found = CannotApply(arg.span, name, *shown, arrow.shape, applied)
            return self.broken(span, found)
        rest = tuple(n for n in arg.kind.dims if arg.kind.form == "index" or n not in source)
        for dim in target:
            if dim in rest:
                reason = f"{arg.kind} has `{dim}` already, and `{arrow.name}` gives it"
                return self.broken(span, DimTwice(arg.span, dim, reason, arrow.shape))
        if arg.kind.form == "index" and not transposed:
            self.lookups.add(arrow.name)
        return Typed(Kind((*rest, *target)), Apply(arrow.name, transposed), (arg,), span)

    def _use(self, node: ast.Call, name: str, signature: Signature) -> Typed:
        form = f"{name}({', '.join(given.name for given in signature.inputs)})"
        if node.dims:
            found = ExtraArgument(node.dims[0].span, name, "no dims in brackets here", form)
            self.found.append(found)
        given: dict[str, Typed] = {}
        names = [given.name for given in signature.inputs]
        good = True
        for position, argument in enumerate(node.arguments):
            value = self.expr(argument.value)
            key = argument.key.text if argument.key else "".join(names[position : position + 1])
            if argument.key and key not in names:
                where = argument.key.span
                self.found.append(UnknownArgument(where, key, tuple(names), name, form))
            elif not key or key in given:
                reason = f"`{key}` is given twice" if key else "one too many"
                where = signature.span
                self.found.append(ExtraArgument(argument.span, name, reason, form, where))
            else:
                given[key] = value
                continue
            good = False
        return (
            self._used(node.span, name, signature, given, form) if good else self.broken(node.span)
        )

    def _used(
        self, span: Span, name: str, signature: Signature, given: Mapping[str, Typed], form: str
    ) -> Typed:
        before = len(self.found)
        for wanted in signature.inputs:
            if wanted.name not in given:
                self.found.append(MissingArgument(span, name, wanted.name, form, wanted.span))
                continue
            arg = given[wanted.name]
            difference = differs(arg.kind, wanted.kind)
            if difference and not arg.kind.broken and not wanted.kind.broken:
                shown = (str(wanted.kind), str(arg.kind), difference)
                self.found.append(WrongArgument(arg.span, name, wanted.name, *shown, wanted.span))
        if len(self.found) > before:
            return self.broken(span)
        if signature.result.broken or any(arg.kind.broken for arg in given.values()):
            return self.broken(span)
        args = tuple(given[wanted.name] for wanted in signature.inputs)
        return Typed(signature.result, Use(name), args, span)
