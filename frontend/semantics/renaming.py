"""Renamings: `x{seq = key}`, a dim split as `x{experts = (groups, members)}`, or two joined."""

from __future__ import annotations

from collections.abc import Iterable

from fllmc.frontend import ast
from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.typed import Join, Kind, Renamed, Requirement, Split, Typed
from fllmc.frontend.type_errors import DimTwice, NoSuchDim, WrongValue


def renamed(body: Body, node: ast.Rename) -> Typed:
    """The renaming, typed: plain pairs all at once, then what is split and joined, in order."""
    value = body.expr(node.value)
    if value.kind.broken:
        return value
    if not _good(body, node, value.kind):
        return body.broken(node.span)
    plain = [pair for pair in node.pairs if isinstance(pair, ast.RenamePair)]
    if plain:
        for pair in plain:
            body.requirements.append(Requirement("same", pair.old.text, pair.new.text, pair.span))
        pairs = {pair.old.text: pair.new.text for pair in plain}
        dims = tuple(pairs.get(name, name) for name in value.kind.dims)
        kind = Kind(dims, value.kind.index, value.kind.form)
        value = Typed(kind, Renamed(tuple(pairs.items())), (value,), node.span)
    for pair in node.pairs:
        if isinstance(pair, ast.SplitPair):
            value = _split(body, pair, value)
        elif isinstance(pair, ast.JoinPair):
            value = _joined(body, pair, value)
    for position, name in enumerate(value.kind.dims):
        if name in value.kind.dims[:position]:
            found = DimTwice(node.span, name, f"this has `{name}` already")
            return body.broken(node.span, found)
    return value


def _good(body: Body, node: ast.Rename, kind: Kind) -> bool:
    """Whether all old dims are there and stand once, and all new ones are declared."""
    seen: set[str] = set()
    for pair in node.pairs:
        for old in _names(pair.old):
            if old.text not in kind.dims:
                shown = str(kind)
                found = NoSuchDim(old.span, "this renaming", old.text, shown, kind.dims)
                body.found.append(found)
                return False
            if old.text in seen:
                twice = DimTwice(old.span, old.text, "second time", what="this renames")
                body.found.append(twice)
                return False
            seen.add(old.text)
        known = [body.dim(new) for new in _names(pair.new)]
        if not all(known):
            return False
        if isinstance(pair, ast.RenamePair):
            continue
        parts = pair.new if isinstance(pair, ast.SplitPair) else pair.old
        if len(parts) != 2 or kind.form != "number":
            what = f"{len(parts)} dims" if len(parts) != 2 else str(kind)
            wanted = "numbers, with a dim as two or two as one"
            body.found.append(WrongValue(pair.span, "what is split or joined", wanted, what))
            return False
    return True


def _names(given: ast.Name | tuple[ast.Name, ...]) -> Iterable[ast.Name]:
    return given if isinstance(given, tuple) else (given,)


def _split(body: Body, pair: ast.SplitPair, value: Typed) -> Typed:
    dim, (outer, inner) = pair.old.text, (name.text for name in pair.new)
    body.requirements.append(Requirement("parts", dim, f"{outer} {inner}", pair.span))
    dims = [new for old in value.kind.dims for new in ((outer, inner) if old == dim else (old,))]
    return Typed(Kind(tuple(dims)), Split(dim, outer, inner), (value,), pair.span)


def _joined(body: Body, pair: ast.JoinPair, value: Typed) -> Typed:
    dim, (outer, inner) = pair.new.text, (name.text for name in pair.old)
    body.requirements.append(Requirement("parts", dim, f"{outer} {inner}", pair.span))
    dims = tuple(dim if old == outer else old for old in value.kind.dims if old != inner)
    return Typed(Kind(dims), Join(outer, inner, dim), (value,), pair.span)
