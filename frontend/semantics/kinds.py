"""Kinds compared, with words for the difference."""

from __future__ import annotations

from collections.abc import Iterable

from fllmc.frontend.semantics.typed import Kind


def union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The dims of a broadcast: those of the widest operand, then what the others add."""
    found = tuple(groups)
    widest = max(found, key=len)
    return tuple(dict.fromkeys((*widest, *(name for group in found for name in group))))


def differs(found: Kind, wanted: Kind) -> str:
    """How a kind is not what is wanted, apart from the order of dims; empty if it is."""
    if found.form != wanted.form:
        said = {"index": "indices of `{}`", "number": "numbers", "truth": "truth values"}
        return f"this holds {said.get(found.form, '').format(found.index)}"
    if found.index != wanted.index:
        return f"these are indices of `{found.index}`"
    missing = [name for name in wanted.dims if name not in found.dims]
    extra = [name for name in found.dims if name not in wanted.dims]
    lacks = f"lacks {_listed(missing, ', ')}" if missing else ""
    more = f"has {_listed(extra, ', ')} besides" if extra else ""
    return " and ".join(part for part in (lacks, more) if part)


def _listed(names: list[str], between: str) -> str:
    return between.join(f"`{name}`" for name in names)


def noun(kind: Kind) -> str:
    """What to call a value."""
    return "a number" if kind.host else "a tensor"


def misfit(source: tuple[str, ...], kind: Kind) -> str:
    """Why a value doesn't fit an arrow's source; empty if it does."""
    if kind.form == "index":
        return "" if source == (kind.index,) else f"this holds indices of `{kind.index}`"
    missing = [name for name in source if name not in kind.dims]
    if not missing:
        return ""
    shown = "a plain number" if kind.host else str(kind)
    return f"{shown} has no dim {_listed(missing, ' or ')}"
