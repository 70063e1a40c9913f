"""The words of the text form: how names, numbers and attribute values are written.

A bare name is letters, digits, `_`, primes and dots, or these with a `~` behind; every other string
is quoted as in JSON.
Attribute values are written by the types of the fields that hold them, and read by the same.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, get_args, get_origin

import msgspec

from fllmc.ir.types import Dim

NAME = r"[A-Za-z_][A-Za-z0-9_']*(?:\.[A-Za-z0-9_']+)*~?"
_BARE = re.compile(NAME)


def name(text: str) -> str:
    """A string, bare where it can be."""
    return text if _BARE.fullmatch(text) else json.dumps(text)


def dim(value: Dim) -> str:
    """A dim with its axes: `heads@tensor`, `batch@(pod, data)`."""
    if not value.axes:
        return name(value.name)
    axes = [name(axis) for axis in value.axes]
    return f"{name(value.name)}@{axes[0] if len(axes) == 1 else '(' + ', '.join(axes) + ')'}"


def is_sequence(hint: Any) -> bool:
    """Whether a field's type is a tuple of any length."""
    return get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis


def is_pair(hint: Any) -> bool:
    """Whether a field's type is a tuple of two names, written `old=new`."""
    return get_origin(hint) is tuple and get_args(hint) == (str, str)


def value(hint: Any, held: Any) -> str:
    """A field's value, as its type says."""
    if is_sequence(hint):
        return f"[{', '.join(value(get_args(hint)[0], item) for item in held)}]"
    if is_pair(hint):
        return f"{name(held[0])}={name(held[1])}"
    if hint is Dim:
        return dim(held)
    if hint is bool:
        return "true" if held else "false"
    if hint is float or hint is int:
        return repr(hint(held))
    if isinstance(held, str):
        return name(held)
    return json.dumps(msgspec.json.encode(held).decode())


@cache
def declared(cls: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a struct. To find them is slow: it compiles the text of each annotation."""
    return msgspec.structs.fields(cls)


def fields(struct: msgspec.Struct, skip: tuple[str, ...] = ()) -> str:
    """The fields that differ from their defaults: `contract=[embed], dtype=bf16`."""
    shown: list[str] = []
    for info in declared(type(struct)):
        held = getattr(struct, info.name)
        if info.name not in skip and (info.required or held != info.default):
            shown.append(f"{info.name}={value(info.type, held)}")
    return ", ".join(shown)
