"""Calls of the built-in functions: one rule for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fllmc.frontend import ast
from fllmc.frontend.semantics import indexing, sequence
from fllmc.frontend.semantics.attention import attend_call, rope_call
from fllmc.frontend.semantics.experts import EXPERT_CALLS, Call, expert_call
from fllmc.frontend.semantics.forms import FORMS, MAX_REDUCE, UNARY
from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.matching import Given, Matcher
from fllmc.frontend.semantics.parts import part
from fllmc.frontend.semantics.typed import (
    Composite,
    Contract,
    Kind,
    Prim,
    Reduce,
    Typed,
)
from fllmc.frontend.type_errors import WrongValue


def call(body: Body, node: ast.Call, name: str) -> Typed:
    """The call of a built-in function, typed."""
    form = MAX_REDUCE if name == "max" and node.dims else FORMS[name]
    before = len(body.found)
    given = Matcher(body, node, form).given()
    if given is None or len(body.found) > before:
        return body.broken(node.span)
    return RULES[name](body, given)


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


def _experts(body: Body, given: Given) -> Typed:
    name, span = given.form.name, given.span
    return expert_call(body, Call(name, span, given.tensors, given.dims, given.named))


def _conv(body: Body, given: Given) -> Typed:
    x, weight = given.tensors
    named = given.named
    windows = sequence.Windows(
        given.dims,
        named["taps"],
        named.get("to", ()),
        given.over,
        given.lists.get("stride", ()),
        given.lists.get("pad", ()),
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
    "attend": attend_call,
    "conv": _conv,
    "delta_attend": _recur,
    "dot": _dot,
    "less": _less,
    "linear_attend": _recur,
    "max": _max,
    "mean": _mean,
    "concat": lambda body, given: indexing.concat(
        body, given.span, given.tensors, (given.named["over"], given.named["to"])
    ),
    "shift": lambda body, given: indexing.shift(
        body, given.span, given.tensors[0], given.words["along"], given.numbers["by"]
    ),
    "number": lambda body, given: indexing.number(body, given.span, *given.tensors),
    "part": part,
    "one_hot": lambda body, given: indexing.one_hot(body, given.span, *given.tensors),
    "pick": lambda body, given: indexing.pick(body, given.span, *given.tensors),
    "positions": lambda body, given: indexing.positions(given.span, given.words["along"]),
    "rope": rope_call,
    "stop": _stop,
    "sum": _reduce,
    "where": _where,
}
