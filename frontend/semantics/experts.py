"""The built-in functions of mixtures of experts: the dims that they want and give."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.typed import (
    Combine,
    Dispatch,
    ExpertDot,
    ExpertTake,
    Kind,
    Requirement,
    Tally,
    TopK,
    Typed,
)
from fllmc.frontend.type_errors import BadExperts
from fllmc.ir.span import Span


class Call(Struct, frozen=True):
    """A call that has the form of its function. `named` are the dims of its options."""

    name: str
    span: Span
    tensors: tuple[Typed, ...]
    dims: tuple[str, ...]
    named: Mapping[str, tuple[str, ...]]


def expert_call(body: Body, call: Call) -> Typed:
    """The call, typed; broken if a mistake was reported."""
    reason, typed = _RULES[call.name](body, call)
    if typed is None:
        return body.broken(call.span, BadExperts(call.span, f"`{call.name}`", reason))
    return typed


Found = tuple[str, "Typed | None"]
"""What is wrong, or the typed call."""


def _top_k(body: Body, call: Call) -> Found:
    (x,) = call.tensors
    ((over,), to) = call.named["over"], call.named["to"]
    if len(to) != 1 or to[0] in x.kind.dims:
        return f"`to` is one dim that {x.kind} does not have yet", None
    body.requirements.append(Requirement("at_most", to[0], over, call.span))
    dims = (*(name for name in x.kind.dims if name != over), to[0])
    indices = call.name == "top_k_indices"
    kind = Kind(dims, over, "index") if indices else Kind(dims)
    return "", Typed(kind, TopK(over, to[0], indices), call.tensors, call.span)


def _choices(chosen: Typed, along: str) -> tuple[str, str]:
    """(what is wrong with a tensor of choices, its last dim)."""
    kind = chosen.kind
    if kind.form != "index":
        return "`chosen` holds indices of experts, as `top_k_indices` gives them", ""
    if kind.dims[-2:-1] != (along,):
        return f"`chosen` is {kind}, and must end in `{along}` and the choices", ""
    return "", kind.dims[-1]


def _layout(body: Body, call: Call, chosen: Typed, along: str, of: tuple[str, ...]) -> str:
    """What is wrong with the dims of expert layout; what sizes they need is noted."""
    experts, choices = chosen.kind.index, chosen.kind.dims[-1]
    if len(of) == 1 and of[0] not in chosen.kind.dims and of[0] != experts:
        body.requirements.append(Requirement("product", of[0], f"{along} {choices}", call.span))
        return ""
    if len(of) == 2 and of[0] == experts and of[1] not in (*chosen.kind.dims, experts):
        return ""
    return f"rows stand in one dim of their own, or in (`{experts}`, slots)"


def _dispatch(body: Body, call: Call) -> Found:
    x, chosen = call.tensors
    (along,), to = call.named["along"], call.named["to"]
    reason, choices = _choices(chosen, along)
    reason = reason or _layout(body, call, chosen, along, to)
    if reason:
        return reason, None
    lead = chosen.kind.dims[:-2]
    missing = [name for name in lead if name not in x.kind.dims]
    tokens = (*lead, along, choices) if choices in x.kind.dims else (*lead, along)
    rest = tuple(name for name in x.kind.dims if name not in tokens)
    twice = [name for name in to if name in rest]
    if missing or twice:
        lacks = f"{x.kind} lacks `{missing[0]}`" if missing else f"{x.kind} has `{twice[0]}`"
        return f"{lacks}, and `chosen` is {chosen.kind}", None
    op = Dispatch(along, choices, to, (*tokens, *rest))
    return "", Typed(Kind((*lead, *to, *rest)), op, call.tensors, call.span)


def _combine(body: Body, call: Call) -> Found:
    rows, chosen = call.tensors
    along, of = call.named["along"], call.named["of"]
    reason, choices = _choices(chosen, along[0])
    reason = reason or _layout(body, call, chosen, along[0], of)
    if reason:
        return reason, None
    lead = chosen.kind.dims[:-2]
    missing = [name for name in lead if name not in rows.kind.dims]
    rest = tuple(name for name in rows.kind.dims if name not in (*lead, *of))
    if missing or along[0] in rest or choices in rest:
        return f"rows are {rows.kind}, and `chosen` is {chosen.kind}", None
    op = Combine(along[0], choices, of, (*lead, *of, *rest))
    return "", Typed(Kind((*lead, along[0], *rest)), op, call.tensors, call.span)


def _expert_dot(body: Body, call: Call) -> Found:
    rows, weight, chosen = call.tensors
    (along,) = call.named["along"]
    reason, choices = _choices(chosen, along)
    if reason:
        return reason, None
    lead, experts = chosen.kind.dims[:-2], chosen.kind.index
    other = [name for name in rows.kind.dims if name not in (*lead, *call.dims)]
    if len(other) != 1 or len(rows.kind.dims) != len(lead) + 1 + len(call.dims):
        return f"rows are {rows.kind}: wanted are {', '.join(lead)}, rows, and what is summed", None
    if experts not in weight.kind.dims:
        return f"the weight is {weight.kind}: one matrix for each of `{experts}` is wanted", None
    own = tuple(n for n in weight.kind.dims if n != experts and n not in call.dims)
    if any(name in (*lead, *other) for name in own):
        return f"rows are {rows.kind} and the weight is {weight.kind}", None
    room = Requirement("product", other[0], f"{along} {choices}", call.span)
    body.requirements.append(room)
    op = ExpertDot(along, choices, experts, other[0], call.dims, lead)
    return "", Typed(Kind((*lead, other[0], *own)), op, call.tensors, call.span)


def _expert_take(body: Body, call: Call) -> Found:
    x, chosen = call.tensors
    (along,), to = call.named["along"], call.named["to"]
    reason, choices = _choices(chosen, along)
    if not reason and len(to) != 1:
        reason = "`to` is the one dim of rows; beside slots, what has `experts` needs no such call"
    reason = reason or _layout(body, call, chosen, along, to)
    if reason:
        return reason, None
    lead, experts = chosen.kind.dims[:-2], chosen.kind.index
    own = tuple(name for name in x.kind.dims if name != experts)
    if experts not in x.kind.dims or any(name in (*lead, *to, along, choices) for name in own):
        return f"this is {x.kind}: one value for each of `{experts}` is wanted", None
    op = ExpertTake(along, choices, experts, to[0], lead)
    return "", Typed(Kind((*lead, to[0], *own)), op, call.tensors, call.span)


def _tally(body: Body, call: Call) -> Found:
    (chosen,) = call.tensors
    (along,) = call.named["along"]
    reason, choices = _choices(chosen, along)
    if reason:
        return reason, None
    kind = Kind((*chosen.kind.dims[:-2], chosen.kind.index))
    return "", Typed(kind, Tally(along, choices, chosen.kind.index), call.tensors, call.span)


_RULES = {
    "combine": _combine,
    "dispatch": _dispatch,
    "expert_dot": _expert_dot,
    "expert_take": _expert_take,
    "tally": _tally,
    "top_k": _top_k,
    "top_k_indices": _top_k,
}
EXPERT_CALLS = tuple(_RULES)
