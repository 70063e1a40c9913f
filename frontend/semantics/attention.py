"""The built-in functions `attend` and `rope`: the dims that they want and give."""

from __future__ import annotations

from typing import NamedTuple

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.matching import Given
from fllmc.frontend.semantics.typed import Kind, Requirement, Typed
from fllmc.frontend.semantics.typed_attention import Attend, Rope, Scaling
from fllmc.frontend.type_errors import BadAttention


def rope_call(body: Body, given: Given) -> Typed:
    """Rotary positions along a dim of x, of pairs of another."""
    (x,) = given.tensors
    along = given.words["along"]
    dim = given.words.get("dim") or (x.kind.dims[-1] if x.kind.dims else "")
    if dim == along:
        where = given.places.get("dim", given.places["along"])
        reason = f"rope turns pairs along a dim other than `{along}`, its last one by default"
        return body.broken(given.span, BadAttention(where, reason))
    rotary = given.amounts.get("rotary")
    behind = given.amounts.get("behind")
    if rotary is None:
        body.requirements.append(Requirement("even", dim, "", given.span))
    scaling = None if given.inner is None else scaled(given.inner)
    op = Rope(along, dim, given.amounts["theta"], given.words["layout"], rotary, scaling, behind)
    return Typed(Kind(x.kind.dims), op, given.tensors, given.span)


def scaled(given: Given) -> Scaling:
    """The scaling that a call names."""
    amounts, lists = tuple(given.amounts.items()), tuple(given.lists.items())
    return Scaling(given.form.name, amounts, lists, tuple(given.words.items()))


class Heads(NamedTuple):
    """How the dims of queries, keys and values go together; `reason` if they don't."""

    reason: str = ""
    heads: str = ""
    kv_heads: str = ""
    value: str = ""


def attend_call(body: Body, given: Given) -> Typed:
    """Attention of queries along one dim to keys along it or another."""
    q, k, v = given.tensors
    along = given.words["along"]
    keys = given.words.get("keys", along)
    dim = given.words.get("dim") or q.kind.dims[-1]
    found = heads_of(q.kind.dims, k.kind.dims, v.kind.dims, (along, keys, dim), given)
    sinks, bias = given.extras.get("sinks"), given.extras.get("bias")
    reason, far = found.reason, ""
    if not reason and sinks and sinks.kind.dims != (found.heads,):
        reason = f"`sinks` are [{found.heads}], one for each query head, not {sinks.kind}"
    if not reason and bias:
        others = [name for name in bias.kind.dims if name != found.heads]
        reason, far = distances(bias.kind, found.heads, q.kind.dims, others)
        what = f"{keys} {along}"
        body.requirements += [Requirement("distances", far, what, bias.span)] * (not reason)
    if reason:
        return body.broken(given.span, BadAttention(given.span, reason))
    if found.heads != found.kv_heads:
        body.requirements.append(Requirement("divides", found.kv_heads, found.heads, given.span))
    bound = given.words["mask"] == "causal" or "window" in given.amounts
    if keys != along and bound:
        body.requirements.append(Requirement("at_most_of", along, keys, given.span))
    op = Attend(
        along,
        found.heads,
        found.kv_heads,
        dim,
        given.words["mask"],
        given.amounts.get("scale"),
        keys if keys != along else "",
        found.value,
        sinks is not None,
        far,
        given.amounts.get("window"),
        given.amounts.get("cap"),
    )
    dims = tuple(found.value or name if name == dim else name for name in q.kind.dims)
    args = (*given.tensors, *(each for each in (sinks, bias) if each is not None))
    return Typed(Kind(dims), op, args, given.span)


def distances(bias: Kind, heads: str, q: tuple[str, ...], others: list[str]) -> tuple[str, str]:
    """(what is wrong with a bias, its dim of distances)."""
    if len(others) == 1 and len(bias.dims) == 2 and others[0] not in q:
        return "", others[0]
    return f"`bias` is [{heads}, DISTANCES], with a dim of its own for distances, not {bias}", ""


def heads_of(
    q: tuple[str, ...],
    k: tuple[str, ...],
    v: tuple[str, ...],
    special: tuple[str, str, str],
    given: Given,
) -> Heads:
    """The dims that q, k and v don't share: of heads, and of the width of values."""
    along, keys, dim = special
    for name in (keys, dim):
        if name not in k:
            return Heads(f"keys have no dim `{name}`")
    if dim in (along, keys):
        return Heads(f"`{dim}` can't be both the positions and what is multiplied")
    if along != keys and (keys in q or along in k):
        return Heads(f"queries stand along `{along}` alone, and keys along `{keys}`")
    own_k, own_v = ([n for n in a if n not in b] for a, b in ((k, v), (v, k)))
    if (own_k, len(own_v)) not in (([], 0), ([dim], 1)) or any(name in q for name in own_v):
        return Heads(f"keys are [{', '.join(k)}], values [{', '.join(v)}]")
    value = own_v[0] if own_v else ""
    only_q = [name for name in q if name not in (*k, along)]
    only_k = [name for name in k if name not in (*q, keys)]
    if len(only_q) == len(only_k) == 1:
        return Heads("", only_q[0], only_k[0], value)
    if only_q or only_k:
        apart = ", ".join(f"`{name}`" for name in (*only_q, *only_k))
        reason = f"queries and keys may differ in one dim each, the heads; here in {apart}"
        return Heads(reason)
    free = [name for name in q if name not in (along, dim)]
    stated = given.words.get("heads")
    if stated in free:
        return Heads("", stated, stated, value)
    return Heads("", free[-1], free[-1], value) if free else Heads("queries have no dim of heads")
