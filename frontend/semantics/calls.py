"""Calls of the built-in functions: arguments matched to the form, then one rule for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.semantics import indexing, sequence
from fllmc.frontend.semantics.experts import EXPERT_CALLS, Call, expert_call
from fllmc.frontend.semantics.forms import FORMS, MAX_REDUCE, UNARY, Form, Option, Wanted
from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.sequence import Windows
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import (
    Attend,
    Composite,
    Contract,
    Kind,
    Prim,
    Reduce,
    Requirement,
    Rope,
    Typed,
)
from fllmc.frontend.type_errors import (
    BadAttention,
    ExtraArgument,
    MissingArgument,
    NoSuchDim,
    UnknownArgument,
    WrongValue,
)
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.span import Span


class Given(Struct, frozen=True):
    """A call that has the form of its function: all there, nothing broken."""

    form: Form
    span: Span
    tensors: tuple[Typed, ...]
    dims: tuple[str, ...]
    words: Mapping[str, str]
    numbers: Mapping[str, float]
    over: tuple[str, ...]
    places: Mapping[str, Span]
    named: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[int, ...]]


def call(body: Body, node: ast.Call, name: str) -> Typed:
    """The call of a built-in function, typed."""
    form = MAX_REDUCE if name == "max" and node.dims else FORMS[name]
    before = len(body.found)
    given = _Matcher(body, node, form).given()
    if given is None or len(body.found) > before:
        return body.broken(node.span)
    return RULES[name](body, given)


class _Matcher:
    """Matches the arguments of one call against a form."""

    def __init__(self, body: Body, node: ast.Call, form: Form) -> None:
        self.body = body
        self.node = node
        self.form = form
        self.values: dict[str, Typed] = {}
        self.options: dict[str, ast.Expr] = {}
        self.good = True
        self.counts: dict[str, tuple[int, ...]] = {}

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
        whole = [value for value in tensors if value is not None and not value.kind.broken]
        if not self.good or len(whole) < len(tensors):
            return None
        words.update({key: names[0] for key, names in chosen.items() if key != "over" and names})
        places = {key: value.span for key, value in self.options.items()}
        over = chosen.get("over", ())
        span = self.node.span
        rest = over, places, chosen, self.counts
        return Given(self.form, span, tuple(whole), dims, words, numbers, *rest)

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
        if argument.key and key not in form.tensors:
            names = (*form.tensors, *form.options)
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
            elif option.wanted == "word" and option.default:
                words[key] = option.default
            elif option.wanted == "counts" and option.default:
                self.counts[key] = (int(option.default),)
            return
        where = f"`{key}` of `{self.form.name}`"
        if option.wanted == "number":
            numbers[key] = self.number(node, where)
        elif option.wanted == "word" or (option.wanted == "counts" and isinstance(node, ast.Ref)):
            words[key] = self.word(node, where, option.words)
        elif option.wanted == "counts":
            items = node.items if isinstance(node, ast.Tuple) else (node,)
            self.counts[key] = tuple(self.count(item, where) for item in items)
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

    def count(self, node: ast.Expr, where: str) -> int:
        """A whole number that is not below zero."""
        found = self.number(node, where)
        if found < 0 or found != int(found):
            self.report(WrongValue(node.span, where, "a whole number", shown(node)))
        return int(found)

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


# One rule for each function.

Rule = Callable[[Body, Given], Typed]


def _prim(body: Body, given: Given) -> Typed:
    return body.elementwise(given.span, given.form.name, *given.tensors)


def _less(body: Body, given: Given) -> Typed:
    typed = _prim(body, given)
    kind = Kind(typed.kind.dims, form="truth", host=typed.kind.host)
    return Typed(kind, typed.op, typed.args, typed.span)


def _where(body: Body, given: Given) -> Typed:
    condition = given.tensors[0]
    if condition.kind.form != "truth":
        wanted = "a truth value, as of `less(a, b)`"
        found = WrongValue(condition.span, "the condition", wanted, str(condition.kind))
        return body.broken(given.span, found)
    return _prim(body, given)


def _max(body: Body, given: Given) -> Typed:
    return _reduce(body, given) if given.form.brackets else _prim(body, given)


def _reduce(body: Body, given: Given) -> Typed:
    (x,) = given.tensors
    op = Reduce("max" if given.form.name == "max" else "sum", given.dims)
    return Typed(_less_dims(x, given.dims), op, given.tensors, given.span)


def _mean(body: Body, given: Given) -> Typed:
    (x,) = given.tensors
    op = Composite("mean", given.dims)
    return Typed(_less_dims(x, given.dims), op, given.tensors, given.span)


def _dot(body: Body, given: Given) -> Typed:
    a, b = (tensor.kind.dims for tensor in given.tensors)
    kept_a = [name for name in a if name not in given.dims]
    kept_b = [name for name in b if name not in given.dims]
    batch = [name for name in kept_a if name in kept_b]
    own = [name for name in kept_a if name not in batch] + [n for n in kept_b if n not in batch]
    return Typed(Kind((*batch, *own)), Contract(given.dims), given.tensors, given.span)


def _composite(body: Body, given: Given) -> Typed:
    name = given.form.name
    kinds = [tensor.kind for tensor in given.tensors]
    numbers = tuple((key, value) for key, value in given.numbers.items())
    words = tuple((key, value) for key, value in given.words.items())
    op = Composite(name, given.over, (*numbers, *words))
    if name == "swiglu":
        typed = body.elementwise(given.span, "mul", *given.tensors)
        return Typed(typed.kind, op, given.tensors, given.span)
    kind = Kind(kinds[0].dims, host=kinds[0].host)
    if name == "logsumexp":
        kind = _less_dims(given.tensors[0], given.over)
    return Typed(kind, op, given.tensors, given.span)


def _stop(body: Body, given: Given) -> Typed:
    return Typed(given.tensors[0].kind, Prim("stop"), given.tensors, given.span)


def _rope(body: Body, given: Given) -> Typed:
    (x,) = given.tensors
    along = given.words["along"]
    dim = given.words.get("dim") or (x.kind.dims[-1] if x.kind.dims else "")
    if dim == along:
        where = given.places.get("dim", given.places["along"])
        reason = f"rope turns pairs along a dim other than `{along}`, its last one by default"
        return body.broken(given.span, BadAttention(where, reason))
    body.requirements.append(Requirement("even", dim, "", given.span))
    op = Rope(along, dim, given.numbers["theta"], given.words["layout"])
    return Typed(Kind(x.kind.dims), op, given.tensors, given.span)


def _attend(body: Body, given: Given) -> Typed:
    q, k, v = given.tensors
    along = given.words["along"]
    dim = given.words.get("dim") or q.kind.dims[-1]
    reason, heads, kv_heads = _heads(q.kind.dims, k.kind.dims, along, dim, given.words.get("heads"))
    if not reason and set(k.kind.dims) != set(v.kind.dims):
        reason = f"keys are {k.kind}, values {v.kind}"
    if reason:
        return body.broken(given.span, BadAttention(given.span, reason))
    if heads != kv_heads:
        body.requirements.append(Requirement("divides", kv_heads, heads, given.span))
    scale = given.numbers.get("scale")
    op = Attend(along, heads, kv_heads, dim, given.words["mask"], scale)
    return Typed(Kind(q.kind.dims), op, given.tensors, given.span)


def _heads(
    q: tuple[str, ...], k: tuple[str, ...], along: str, dim: str, stated: str | None
) -> tuple[str, str, str]:
    """(what is wrong, dim of query heads, dim of key heads): the dims that q and k don't share."""
    for name in (along, dim):
        if name not in k:
            return f"keys have no dim `{name}`", "", ""
    if along == dim:
        return f"`{dim}` can't be both the positions and what is multiplied", "", ""
    only_q = [name for name in q if name not in k]
    only_k = [name for name in k if name not in q]
    if len(only_q) == len(only_k) == 1:
        return "", only_q[0], only_k[0]
    if only_q or only_k:
        apart = ", ".join(f"`{name}`" for name in (*only_q, *only_k))
        return f"queries and keys may differ in one dim each, the heads; here in {apart}", "", ""
    free = [name for name in q if name not in (along, dim)]
    if stated in free:
        return "", stated, stated
    return ("", free[-1], free[-1]) if free else ("queries have no dim of heads", "", "")


def _experts(body: Body, given: Given) -> Typed:
    name, span = given.form.name, given.span
    return expert_call(body, Call(name, span, given.tensors, given.dims, given.named))


def _conv(body: Body, given: Given) -> Typed:
    x, weight = given.tensors
    named = given.named
    windows = Windows(
        given.dims,
        named["taps"],
        named.get("to", ()),
        given.over,
        given.counts.get("stride", ()),
        given.counts.get("pad", ()),
        given.words.get("pad", ""),
    )
    return sequence.conv(body, given.span, x, weight, windows)


def _recur(body: Body, given: Given) -> Typed:
    words = (given.words.get(key, "") for key in ("along", "dim", "value", "heads"))
    return sequence.recur(body, given.span, given.tensors, *words)


def _less_dims(x: Typed, dims: tuple[str, ...]) -> Kind:
    return Kind(tuple(name for name in x.kind.dims if name not in dims))


COMPOSITES = (
    "relu", "silu", "gelu", "swiglu", "softmax", "log_softmax", "logsumexp", "rms_norm",
    "layer_norm",
)  # fmt: skip
RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*UNARY, "min"), _prim),
    **dict.fromkeys(COMPOSITES, _composite),
    **dict.fromkeys(EXPERT_CALLS, _experts),
    "attend": _attend,
    "conv": _conv,
    "delta_attend": _recur,
    "dot": _dot,
    "less": _less,
    "linear_attend": _recur,
    "max": _max,
    "mean": _mean,
    "one_hot": lambda body, given: indexing.one_hot(body, given.span, *given.tensors),
    "pick": lambda body, given: indexing.pick(body, given.span, *given.tensors),
    "positions": lambda body, given: indexing.positions(given.span, given.words["along"]),
    "rope": _rope,
    "stop": _stop,
    "sum": _reduce,
    "where": _where,
}
