"""The built-in functions that mix a sequence without attention: `conv` and the recurrences."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.typed import Conv, Kind, Recur, Requirement, Typed
from fllmc.frontend.type_errors import BadConv, BadRecurrence
from fllmc.ir.span import Span


class Windows(Struct, frozen=True):
    """What `conv` is told: the dims that it slides along, those of taps and of windows, the dims
    that it contracts, strides, and zeros around in numbers or by a word."""

    along: tuple[str, ...]
    taps: tuple[str, ...]
    to: tuple[str, ...]
    over: tuple[str, ...]
    stride: tuple[ast.Expr, ...]
    pad: tuple[ast.Expr, ...]
    word: str


def conv(body: Body, span: Span, x: Typed, weight: Typed, given: Windows) -> Typed:
    """Windows of x times the weight."""
    wrong = misfit(x.kind, weight.kind, given)
    if wrong:
        return body.broken(span, BadConv(span, wrong))
    count = len(given.along)
    to = given.to or given.along
    one, none = ast.Number(span, 1, "1"), ast.Number(span, 0, "0")
    stride, pad = given.stride or (one,), given.pad or (none,)
    stride, pad = (each * count if len(each) == 1 else each for each in (stride, pad))
    for along, taps, windows, *numbers in zip(
        given.along, given.taps, to, stride, pad, strict=True
    ):
        words = f"{along} {taps} {given.word}"
        need = Requirement("windows", windows, words, span, tuple(numbers))
        body.requirements.append(need)
    after = dict(zip(given.along, to, strict=True))
    kept = tuple(after.get(name, name) for name in x.kind.dims if name not in given.over)
    own = tuple(n for n in weight.kind.dims if n not in (*x.kind.dims, *given.taps))
    op = Conv(given.along, given.taps, to, given.over, tuple(stride), tuple(pad), given.word)
    return Typed(Kind((*kept, *own)), op, (x, weight), span)


def misfit(x: Kind, weight: Kind, given: Windows) -> str:
    """What is wrong with the dims of a convolution; empty if nothing is."""
    count = len(given.along)
    if weight.form != "number":
        return "its weight holds no numbers"
    if count > 3:
        return "windows slide along three dims at most"
    lists = (("taps", given.taps), ("to", given.to), ("stride", given.stride), ("pad", given.pad))
    for key, each in lists:
        wanted = (count,) if key == "taps" else (count, 0) if key == "to" else (count, 1, 0)
        if len(each) not in wanted:
            return f"`{key}` names {len(each)}, and it slides along {count}"
    for name in given.taps:
        if name not in weight.dims or name in x.dims:
            return f"`{name}` must be a dim of the weight {weight} alone"
    for name in (*given.over, *given.along):
        if (name in weight.dims) != (name in given.over):
            what = "lacks" if name in given.over else "has"
            return f"the weight {weight} {what} `{name}`"
    after = [given.to[given.along.index(n)] if n in given.along and given.to else n for n in x.dims]
    own = [name for name in weight.dims if name not in (*x.dims, *given.taps)]
    kept = [name for name in after if name not in given.over] + own
    twice = [name for name in kept if kept.count(name) > 1]
    return f"the result would have `{twice[0]}` twice" if twice else ""


def recur(
    body: Body,
    span: Span,
    tensors: Sequence[Typed],
    along: str,
    dim: str = "",
    value: str = "",
    heads: str = "",
) -> Typed:
    """A recurrence of queries, keys, values, logarithms of decays and maybe rates of writing."""
    q, k, v, *rows = tensors
    dim = dim or next((name for name in reversed(q.kind.dims) if name != along), "")
    value = value or next((name for name in reversed(v.kind.dims) if name != along), "")
    only_q = [name for name in q.kind.dims if name not in (*v.kind.dims, along, dim)]
    only_v = [name for name in v.kind.dims if name not in (*q.kind.dims, along, value)]
    both = [name for name in v.kind.dims if name in q.kind.dims and name != along]
    groups = only_q[0] if only_q else ""
    if not only_v:
        heads = heads or (both[-1] if len(both) > 1 else "")
        groups = heads
    reason = ""
    row = {name for name in v.kind.dims if name != value}
    if set(q.kind.dims) != set(k.kind.dims):
        reason = f"queries are {q.kind}, keys {k.kind}"
    elif along not in v.kind.dims or not value or not dim or dim in v.kind.dims:
        reason = f"queries are {q.kind}, values {v.kind}: each has `{along}` and a dim of its own"
    elif len(only_q) > 1 or len(only_v) > 1 or (only_q and not only_v):
        apart = ", ".join(f"`{name}`" for name in (*only_q, *only_v))
        reason = f"queries and values may differ in one more dim each, the heads; here in {apart}"
    for each in rows if not reason else ():
        if not each.kind.host and set(each.kind.dims) - row:
            reason = f"there is one decay or rate for [{', '.join(row_names(v.kind, value))}]"
            reason += f", and this has {each.kind}"
    if reason:
        return body.broken(span, BadRecurrence(span, reason))
    heads = only_v[0] if only_v else heads
    if groups and groups != heads:
        body.requirements.append(Requirement("divides", groups, heads, span))
    op = Recur(along, dim, value, heads, groups)
    return Typed(Kind(v.kind.dims), op, tuple(tensors), span)


def row_names(v: Kind, value: str) -> tuple[str, ...]:
    """The dims of values less that of a value."""
    return tuple(name for name in v.dims if name != value)
