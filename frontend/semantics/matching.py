"""The arguments of a call of a built-in function, matched against its form."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.semantics.forms import Form, Option, Wanted
from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import Typed
from fllmc.frontend.type_errors import (
    ExtraArgument,
    MissingArgument,
    NoSuchDim,
    UnknownArgument,
    WrongValue,
)
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.span import Span


class Given(Struct, frozen=True):
    """A call that has the form of its function: all there, nothing broken.

    `extras` are the optional tensors, `amounts` numbers and `lists` several that sizes may be part
    of, `inner` is the call that stands as an option.
    """

    form: Form
    span: Span
    tensors: tuple[Typed, ...]
    dims: tuple[str, ...]
    words: Mapping[str, str]
    numbers: Mapping[str, float]
    over: tuple[str, ...]
    places: Mapping[str, Span]
    named: Mapping[str, tuple[str, ...]]
    extras: Mapping[str, Typed]
    amounts: Mapping[str, ast.Expr]
    lists: Mapping[str, tuple[ast.Expr, ...]]
    inner: Given | None


class Matcher:
    """Matches the arguments of one call against a form."""

    def __init__(self, body: Body, node: ast.Call, form: Form) -> None:
        self.body = body
        self.node = node
        self.form = form
        self.values: dict[str, Typed] = {}
        self.options: dict[str, ast.Expr] = {}
        self.amounts: dict[str, ast.Expr] = {}
        self.lists: dict[str, tuple[ast.Expr, ...]] = {}
        self.inner: Given | None = None
        self.good = True

    def given(self) -> Given | None:
        """The matched call; None if a mistake was reported."""
        for argument in self.node.arguments:
            self.argument(argument)
        for name in self.form.tensors:
            if name not in self.values and self.good:
                self.report(MissingArgument(self.node.span, self.form.name, name, str(self.form)))
        dims = self.brackets()
        chosen: dict[str, tuple[str, ...]] = {}
        words: dict[str, str] = {}
        numbers: dict[str, float] = {}
        for key, option in self.form.options.items():
            self.option(key, option, chosen, words, numbers)
        tensors = tuple(self.values.get(name) for name in self.form.tensors)
        extras = {name: self.values[name] for name in self.form.optional if name in self.values}
        if any(value.kind.broken for value in extras.values()):
            return None
        whole = [value for value in tensors if value is not None and not value.kind.broken]
        if not self.good or len(whole) < len(tensors):
            return None
        words.update({key: names[0] for key, names in chosen.items() if key != "over" and names})
        places = {key: value.span for key, value in self.options.items()}
        over = chosen.get("over", ())
        span = self.node.span
        return Given(
            self.form,
            span,
            tuple(whole),
            dims,
            words,
            numbers,
            over,
            places,
            chosen,
            extras,
            self.amounts,
            self.lists,
            self.inner,
        )

    def report(self, found: Diagnostic) -> None:
        self.body.found.append(found)
        self.good = False

    def argument(self, argument: ast.Argument) -> None:
        """One argument: an option by its key, or a tensor by key or position."""
        form, key = self.form, argument.key.text if argument.key else ""
        if key in form.options:
            if key in self.options:
                reason = f"`{key}` is given twice"
                self.report(ExtraArgument(argument.span, form.name, reason, str(form)))
            self.options[key] = argument.value
            return
        if argument.key and key not in (*form.tensors, *form.optional):
            names = (*form.tensors, *form.optional, *form.options)
            where = argument.key.span
            self.report(UnknownArgument(where, key, names, form.name, str(form)))
            return
        value = (
            self.body.numbers(argument.value, f"`{form.name}`")
            if (key or self.wanted()) not in form.free
            else self.body.expr(argument.value)
        )
        name = key or self.wanted()
        if not name or name in self.values:
            reason = f"`{name}` is given twice" if name else "one too many"
            if form.options and not key:
                reason += "; options are given by name"
            self.report(ExtraArgument(argument.span, form.name, reason, str(form)))
            return
        self.values[name] = value

    def wanted(self) -> str:
        """The tensor that the next argument without key gives, or empty."""
        return next((name for name in self.form.tensors if name not in self.values), "")

    def brackets(self) -> tuple[str, ...]:
        """The dims in brackets."""
        form, node = self.form, self.node
        if not form.brackets:
            if node.dims:
                where = node.dims[0].span.to(node.dims[-1].span)
                self.report(ExtraArgument(where, form.name, "no dims in brackets here", str(form)))
            return ()
        if not node.dims:
            self.report(MissingArgument(node.span, form.name, "[DIMS]", str(form)))
            return ()
        names = self.body.distinct(node.dims)
        self.good = self.good and names is not None
        given = [value for key, value in self.values.items() if key not in form.free]
        for value in given if names else ():
            for name in node.dims:
                self.has(value, name.text, name.span)
        return names or ()

    def has(self, value: Typed, dim: str, where: Span) -> None:
        """Check that a tensor has a dim."""
        if not value.kind.broken and dim not in value.kind.dims:
            shown = "a plain number" if value.kind.host else str(value.kind)
            self.report(NoSuchDim(where, f"`{self.form.name}`", dim, shown, value.kind.dims))

    def option(
        self,
        key: str,
        option: Option,
        chosen: dict[str, tuple[str, ...]],
        words: dict[str, str],
        numbers: dict[str, float],
    ) -> None:
        """Read one option into the place of its sort."""
        node = self.options.get(key)
        if node is None:
            if option.default is None and self.good:
                self.report(MissingArgument(self.node.span, self.form.name, key, str(self.form)))
            elif option.default and option.wanted == "number":
                numbers[key] = float(option.default)
            elif option.wanted == "amount" and option.default:
                value = float(option.default)
                self.amounts[key] = ast.Number(self.node.span, value, option.default)
            elif option.wanted == "word" and option.default:
                words[key] = option.default
            return
        where = f"`{key}` of `{self.form.name}`"
        if option.wanted == "number":
            numbers[key] = self.number(node, where)
        elif option.wanted == "word" or (isinstance(node, ast.Ref) and node.name in option.words):
            words[key] = self.word(node, where, option.words)
        elif option.wanted == "amount":
            self.amounts[key] = self.amount(node, where)
        elif option.wanted == "amounts":
            items = node.items if isinstance(node, ast.List | ast.Tuple) else (node,)
            self.lists[key] = tuple(self.amount(item, where) for item in items)
        elif option.wanted == "call":
            self.inner = self.called(node, where, option)
        else:
            chosen[key] = self.dims(node, where, option.wanted)

    def number(self, node: ast.Expr, where: str) -> float:
        """A number made of literals."""

        def named(ref: ast.Ref) -> float:
            raise DiagnosticError(WrongValue(ref.span, where, "a number", f"`{ref.name}`"))

        try:
            return float(evaluate(node, named, where))
        except DiagnosticError as error:
            for found in error.diagnostics:
                self.report(found)
            return 0.0

    def amount(self, node: ast.Expr, where: str) -> ast.Expr:
        """A number made of literals and sizes, which is computed once these are known."""

        def named(ref: ast.Ref) -> float:
            if not self.body.dim(ast.Name(ref.span, ref.name)):
                self.good = False
            return 1.0

        try:
            evaluate(node, named, where)
        except DiagnosticError as error:
            for found in error.diagnostics:
                self.report(found)
        return node

    def called(self, node: ast.Expr, where: str, option: Option) -> Given | None:
        """One of the option's forms, with its own options."""
        function = node.function if isinstance(node, ast.Call) else None
        name = function.name if isinstance(function, ast.Ref) else ""
        if name not in option.forms or not isinstance(node, ast.Call):
            wanted = " or ".join(f"`{form}`" for form in option.forms.values())
            found = WrongValue(node.span, where, wanted, shown(node), tuple(option.forms), name)
            self.report(found)
            return None
        inner = Matcher(self.body, node, option.forms[name])
        given = inner.given()
        self.good = self.good and inner.good
        return given

    def word(self, node: ast.Expr, where: str, words: tuple[str, ...]) -> str:
        """One of some words."""
        if isinstance(node, ast.Ref) and node.name in words:
            return node.name
        wanted = " or ".join(f"`{word}`" for word in words)
        word = node.name if isinstance(node, ast.Ref) else ""
        self.report(WrongValue(node.span, where, wanted, shown(node), words, word))
        return ""

    def dims(self, node: ast.Expr, where: str, wanted: Wanted) -> tuple[str, ...]:
        """A dim, or several in parentheses, that the first tensor has unless they are new."""
        refs = node.items if wanted != "dim" and isinstance(node, ast.Tuple) else (node,)
        names: list[ast.Name] = []
        for ref in refs:
            if not isinstance(ref, ast.Ref):
                self.report(WrongValue(ref.span, where, "a dim", shown(ref)))
                return ()
            names.append(ast.Name(ref.span, ref.name))
        found = self.body.distinct(tuple(names))
        self.good = self.good and found is not None
        first = next(iter(self.values.values()), None)
        for name in names if found and first and wanted != "new" else ():
            assert first is not None
            self.has(first, name.text, name.span)
        return found or ()


def shown(node: ast.Expr) -> str:
    """An expression in a few words, for messages."""
    match node:
        case ast.Ref(name=name):
            return f"`{name}`"
        case ast.Number(text=text):
            return f"the number {text}"
        case ast.Quantity(text=text):
            return f"`{text}`"
        case ast.String(value=value):
            return f'the text "{value}"'
        case ast.Boolean(value=value):
            return "`true`" if value else "`false`"
        case ast.Selector():
            return f"the selector `{node}`"
        case ast.List() | ast.Tuple():
            return "a list"
        case ast.Call(function=ast.Ref(name=name)):
            return f"`{name}(...)`"
        case _:
            return "an expression"
