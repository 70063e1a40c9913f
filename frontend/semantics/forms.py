"""The forms of the built-in functions, and calls matched against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Wanted = Literal["dim", "dims", "new", "number", "amount", "amounts", "call", "word"]


class Option(Struct, frozen=True):
    """A named argument that is not a tensor. `default` is the text of the default, if any.

    `new` wants dims that the first tensor need not have; `amount` is a number that may be made of
    sizes, `amounts` several, and `call` one of the `forms` with options of its own, or one
    of the words.
    """

    wanted: Wanted
    default: str | None = None
    words: tuple[str, ...] = ()
    forms: Mapping[str, Form] = {}


class Form(Struct, frozen=True):
    """How a function is called: dims in brackets, tensors in order, then options by name.

    `free` are the tensors that may hold other things than numbers; `optional` those that may be
    left out, and are given by name.
    """

    name: str
    tensors: tuple[str, ...]
    options: Mapping[str, Option] = {}
    brackets: bool = False
    free: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [*self.tensors, *(f"[{name}: TENSOR]" for name in self.optional)]
        for key, option in self.options.items():
            shown = " or ".join(option.words or option.forms) or option.default
            shown = shown or {"amount": "NUMBER"}.get(option.wanted, option.wanted.upper())
            parts.append(f"[{key}: {shown}]" if option.default == "" else f"{key}: {shown}")
        return f"{self.name}{'[DIMS]' if self.brackets else ''}({', '.join(parts)})"


UNARY = ("abs", "cos", "erf", "exp", "log", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "tanh")
"""Elementwise functions of one argument, also of plain numbers."""

_OVER = {"over": Option("dims")}
_EPS = {**_OVER, "eps": Option("number", "1e-5")}

_TO = {"over": Option("dim"), "to": Option("new")}
_ALONG = {"along": Option("new")}
_CHOSEN = ("chosen",)

_STATE = {
    "along": Option("dim"),
    "dim": Option("dim", ""),
    "value": Option("new", ""),
    "heads": Option("new", ""),
}

_FACTOR = {"factor": Option("amount")}
_ORIGINAL = {**_FACTOR, "original": Option("amount")}

SCALINGS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("linear", (), _FACTOR),
        Form("ntk", (), _FACTOR),
        Form(
            "llama3", (), {**_ORIGINAL, "low": Option("amount", "1"), "high": Option("amount", "4")}
        ),
        Form(
            "yarn",
            (),
            {
                **_ORIGINAL,
                "fast": Option("amount", "32"),
                "slow": Option("amount", "1"),
                "bounds": Option("word", "whole", ("whole", "exact")),
                "magnitude": Option("amount", ""),
            },
        ),
        Form(
            "longrope",
            (),
            {
                **_ORIGINAL,
                "short": Option("amounts"),
                "long": Option("amounts"),
                "magnitude": Option("amount", ""),
            },
        ),
    )
}
"""How rotary positions are stretched beyond the lengths that a model was trained on."""

ROPE = Form(
    "rope",
    ("x",),
    {
        "along": Option("dim"),
        "theta": Option("amount", "10000"),
        "layout": Option("word", "half", ("half", "interleaved")),
        "dim": Option("dim", ""),
        "rotary": Option("amount", ""),
        "behind": Option("amount", ""),
        "scaling": Option("call", "", forms=SCALINGS),
    },
)
PART = {"of": Option("dim"), "to": Option("new"), "first": Option("amount", "0")}
ATTEND = Form(
    "attend",
    ("q", "k", "v"),
    {
        "along": Option("dim"),
        "keys": Option("new", ""),
        "mask": Option("word", "causal", ("causal", "none")),
        "window": Option("amount", ""),
        "scale": Option("amount", ""),
        "cap": Option("amount", ""),
        "dim": Option("dim", ""),
        "heads": Option("dim", ""),
    },
    optional=("sinks", "bias"),
)

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        *(Form(name, ("x",)) for name in UNARY),
        Form("stop", ("x",)),
        Form("min", ("a", "b")),
        Form("less", ("a", "b")),
        Form("where", ("condition", "a", "b"), free=("condition",)),
        Form("relu", ("x",)),
        Form("silu", ("x",)),
        Form("gelu", ("x",), {"approximate": Option("word", "none", ("none", "tanh"))}),
        Form("swiglu", ("gate", "up")),
        Form("softmax", ("x",), _OVER),
        Form("log_softmax", ("x",), _OVER),
        Form("logsumexp", ("x",), _OVER),
        Form("rms_norm", ("x",), _EPS),
        Form("layer_norm", ("x",), _EPS),
        Form("sum", ("x",), brackets=True),
        Form("mean", ("x",), brackets=True),
        Form("dot", ("a", "b"), brackets=True),
        ROPE,
        ATTEND,
        Form(
            "conv",
            ("x", "weight"),
            {
                "taps": Option("new"),
                "over": Option("dims", ""),
                "to": Option("new", ""),
                "stride": Option("amounts", ""),
                "pad": Option("amounts", "", ("causal", "same")),
            },
            brackets=True,
            free=("weight",),
        ),
        Form("linear_attend", ("q", "k", "v", "decay"), _STATE),
        Form("delta_attend", ("q", "k", "v", "decay", "rate"), _STATE),
        Form("top_k", ("x",), _TO),
        Form("top_k_indices", ("x",), _TO),
        Form("dispatch", ("x", "chosen"), {**_ALONG, "to": Option("new")}, free=_CHOSEN),
        Form("combine", ("x", "chosen"), {**_ALONG, "of": Option("dims")}, free=_CHOSEN),
        Form("expert_dot", ("x", "weight", "chosen"), _ALONG, brackets=True, free=_CHOSEN),
        Form("expert_take", ("x", "chosen"), {**_ALONG, "to": Option("new")}, free=_CHOSEN),
        Form("pick", ("x", "index"), free=("index",)),
        Form("shift", ("x",), {"along": Option("dim"), "by": Option("number", "1")}, free=("x",)),
        Form("one_hot", ("index",), free=("index",)),
        Form("tally", ("chosen",), _ALONG, free=_CHOSEN),
        Form("number", ("index",), free=("index",)),
        Form("part", ("x",), PART),
        Form("concat", ("a", "b"), {"over": Option("new"), "to": Option("new")}),
        Form("positions", (), {"along": Option("dim")}),
        Form("max", ("a", "b")),
    )
}
MAX_REDUCE = Form("max", ("x",), brackets=True)
HOST_FUNCTIONS = frozenset((*UNARY, "min", "max", "less", "where"))
"""What a rate may use."""
MATRIX_FUNCTIONS = HOST_FUNCTIONS | {"dot", "mean", "sum"}
"""What an optimizer may use."""
