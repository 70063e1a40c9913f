"""Selectors: `body.*.attn.{wq, wk}`. A `*` stands for one or more path parts.

Paths are matched as users write them, with the position in a stack as a part of its own; since one
tensor holds all layers of a stack, a selector must speak of all of them or of none.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fllmc.ir.program import Parameter


@lru_cache(maxsize=1024)
def pattern(selector: str) -> re.Pattern[str]:
    """The selector as a regular expression over dotted paths."""
    text = ""
    for token in re.findall(r"\*|\{[^}]*\}|[^*{]+", selector.replace(" ", "")):
        if token == "*":
            text += r"[^.]+(?:\.[^.]+)*"
        elif token.startswith("{"):
            text += "(?:" + "|".join(re.escape(part) for part in token[1:-1].split(",")) + ")"
        else:
            text += re.escape(token)
    return re.compile(text)


def within(stack: str, layer: str, inner: str) -> str:
    """The path of what has the path `inner` in that layer of a stack.

    In a pattern the inner path begins with the number of one of its layers, and that stands for it.
    """
    numbered = inner.split(".", 1)[0].isdecimal()
    return ".".join(part for part in (stack, "" if numbered else layer, inner) if part)


def selects(selector: str, path: str) -> bool:
    """Whether the path, or a path that it lies under, is selected."""
    parts = path.split(".")
    found = pattern(selector)
    return any(found.fullmatch(".".join(parts[:count])) for count in range(len(parts), 0, -1))


def selects_parameter(selector: str, parameter: Parameter) -> bool:
    """Whether the whole parameter is selected; a stack counts when an arbitrary layer is."""
    if not parameter.stack:
        return selects(selector, parameter.name)
    return selects(selector, parameter.layer_name(0)) and selects(selector, parameter.layer_name(1))
