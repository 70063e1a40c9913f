"""Syntax tree nodes from grammar rules: one small function per rule of `fllm.lark`.

Each function gets what the rule's parts were built to: tokens, nodes, or lists of nodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

from fllmc.frontend import ast
from fllmc.frontend.lexer import Token
from fllmc.frontend.syntax_errors import BadEscape, BadNumber, UnsupportedVersion
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

Parts = list[Any]
LARGEST = 2**63 - 1
UNITS = {
    "": (1, ""),
    **{name: (1000**power, "") for power, name in enumerate("kMBT", 1)},
    **{f"{name}iB": (1024**power, "bytes") for power, name in enumerate("KMGT", 1)},
    **{f"{name}B": (1000**power, "bytes") for power, name in enumerate("kMGT", 1)},
}
"""What may touch a number: its factor, and what it then counts."""
SUFFIXED = re.compile(
    r"(?P<digits>[0-9](?:_?[0-9]){0,30}(?:\.[0-9](?:_?[0-9]){0,30})?)(?P<unit>[A-Za-z]*)"
)
ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class Builder:
    """Builds the tree of one file and notes what is wrong with its numbers and strings."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def __call__(self, rule: str, parts: Parts, span: Span) -> Any:
        """The value of `rule`, which covers `span`; its name is that of a maker or a method."""
        maker = MAKERS.get(rule)
        return maker(span, parts) if maker else getattr(self, f"_{rule}")(parts, span)

    # Lists.

    def _empty(self, parts: Parts, span: Span) -> Any:
        return []

    def _one(self, parts: Parts, span: Span) -> Any:
        return parts[:1]

    def _append(self, parts: Parts, span: Span) -> Any:
        parts[0].append(parts[1])
        return parts[0]

    def _more(self, parts: Parts, span: Span) -> Any:
        parts[0].append(parts[2])
        return parts[0]

    def _first(self, parts: Parts, span: Span) -> Any:
        return parts[0]

    _path_more = _path_index = _more
    _names = _inputs = _parameters = _exprs = _arguments = _first
    _pairs = _values = _items = _selectors = _options = _layers = _axes = _first

    def _group(self, parts: Parts, span: Span) -> Any:
        return parts[1]

    _paren = _clause = _group
    _single = _one

    def _absent(self, parts: Parts, span: Span) -> Any:
        return None

    # The file.

    def _file(self, parts: Parts, span: Span) -> Any:
        token: Token = parts[1]
        version = self._value(token)
        if version != 1:
            self.found.append(UnsupportedVersion(token.span, token.text[:40]))
        return ast.File(span, int(version), tuple(parts[2]))

    def _file_bare(self, parts: Parts, span: Span) -> Any:
        return ast.File(span, None, tuple(parts[0]))

    # Words.

    def _number(self, parts: Parts, span: Span) -> Any:
        text = parts[0].text
        scaled = SUFFIXED.fullmatch(text)
        factor, unit = UNITS.get(scaled["unit"], (0, "")) if scaled else (0, "")
        if not scaled or not factor:
            return ast.Number(span, self._value(parts[0]), text)
        value = self._scaled(scaled["digits"], factor, parts[0])
        return ast.Quantity(span, value, unit, text) if unit else ast.Number(span, value, text)

    def _number_tokens(self, parts: Parts, span: Span) -> Any:
        number = self._number(parts[:1], parts[0].span)
        if isinstance(number, ast.Quantity):
            self.found.append(BadNumber(parts[0].span, number.text[:40]))
        return ast.Quantity(span, number.value, "tokens", f"{number.text} tokens")

    def _scaled(self, digits: str, scale: int, token: Token) -> int | float:
        """`digits` times a whole number, whole if it is."""
        value = Fraction(digits.replace("_", "")) * scale
        if value > LARGEST:
            self.found.append(BadNumber(token.span, token.text[:40]))
            return 1
        return value.numerator if value.denominator == 1 else float(value)

    def _number_negative(self, parts: Parts, span: Span) -> Any:
        return ast.Number(span, -self._value(parts[1]), "-" + parts[1].text)

    def _layer_repeated(self, parts: Parts, span: Span) -> Any:
        return ast.Layer(span, self._number(parts[:1], parts[0].span), parts[2])

    def _index_segment(self, parts: Parts, span: Span) -> Any:
        return ast.Index(span, int(self._value(parts[0])))

    def _value(self, token: Token) -> int | float:
        """The number that `token` stands for, or 1 when it can't be held."""
        text = token.text
        try:
            value = int(text) if text.replace("_", "").isdecimal() else float(text)
        except ValueError:
            value = math.inf
        if value > LARGEST and (isinstance(value, int) or math.isinf(value)):
            self.found.append(BadNumber(token.span, text[:40]))
            return 1
        return value

    def _string(self, parts: Parts, span: Span) -> Any:
        return ast.String(span, re.sub(r"\\(.)", self._escape(span), parts[0].text[1:-1]))

    def _escape(self, span: Span) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            if match[1] not in ESCAPES:
                self.found.append(BadEscape(span, match[0]))
            return ESCAPES.get(match[1], match[1])

        return replaced

    def _import_(self, parts: Parts, span: Span) -> Any:
        return ast.Import(span, self._string(parts[1:2], parts[1].span), tuple(parts[3]))

    # Selectors. A path grows as a list; it becomes a node where its end is known.

    def _path_start(self, parts: Parts, span: Span) -> Any:
        star = parts[0].kind == "STAR"
        return [ast.Star(span) if star else ast.Name(span, parts[0].text)]

    def _selector(self, parts: Parts, span: Span) -> Any:
        return ast.Selector(span, tuple(parts[0]))

    # Checkpoints.

    def _place(self, parts: Parts, span: Span) -> Any:
        return ast.Place(span, tuple(parts[0]))

    def _foreign(self, parts: Parts, span: Span) -> Any:
        return [self._string(parts, span)]

    def _foreign_same(self, parts: Parts, span: Span) -> Any:
        return [*parts[0], self._string(parts[2:], parts[2].span)]

    def _ignored(self, parts: Parts, span: Span) -> Any:
        return ast.Ignored(span, self._string(parts[1:], parts[1].span))

    def _config_value(self, parts: Parts, span: Span) -> Any:
        return ast.ConfigValue(span, self._string(parts[:1], parts[0].span), parts[2])

    def _factors(self, parts: Parts, span: Span) -> Any:
        return [*_listed(parts[0]), parts[1]]

    def _grouped(self, parts: Parts, span: Span) -> Any:
        return ast.LayoutGroup(span, tuple(_listed(parts[1])))

    def _layout_sum(self, parts: Parts, span: Span) -> Any:
        first = parts[0]
        terms = first.terms if isinstance(first, ast.LayoutSum) else (first,)
        return ast.LayoutSum(span, (*terms, parts[2]))

    def _path(self, parts: Parts, span: Span) -> Any:
        first = parts[0][0]
        if len(parts[0]) == 1 and isinstance(first, ast.Name):
            return ast.Ref(span, first.text)
        return self._selector(parts, span)


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _block(s: Span, p: Parts) -> ast.Block:
    inputs = tuple(each for each in p[3] if isinstance(each, ast.Input))
    numbers = tuple(each for each in p[3] if isinstance(each, ast.Parameter))
    return ast.Block(s, p[0].text, p[1], inputs, p[6], tuple(p[8]), numbers)


def _arrow(s: Span, p: Parts) -> ast.Arrow:
    return ast.Arrow(s, tuple(p[0]), tuple(p[2]))


def _call_dims(s: Span, p: Parts) -> ast.Call:
    return ast.Call(s, _ref(p[0].span, p), tuple(p[2]), tuple(p[5]))


def _ref(s: Span, p: Parts) -> ast.Ref:
    return ast.Ref(s, p[0].text)


def _binary(s: Span, p: Parts) -> ast.Binary:
    return ast.Binary(s, p[1].text, p[0], p[2])


def _train(s: Span, p: Parts) -> ast.Train:
    fields = tuple(item for item in p[5] if isinstance(item, ast.Field))
    stages = tuple(item for item in p[5] if isinstance(item, ast.Stage))
    return ast.Train(s, p[1], p[3], fields, stages)


def _shard(s: Span, p: Parts) -> ast.Shard:
    selector = p[5] if len(p) > 5 else None
    return ast.Shard(s, tuple(p[1]), tuple(p[3]), selector, elsewhere=len(p) == 5)


def _mapped_where(s: Span, p: Parts) -> ast.Mapped:
    split = ast.Split(p[2].span, p[2], p[4])
    return ast.Mapped(s, p[0].place, p[0].names, p[0].layout, (*p[0].splits, split))


def _zero(s: Span, p: Parts) -> ast.Zero:
    return ast.Zero(s, p[1], tuple(p[3]), p[5] if len(p) > 5 else None)


def _recompute(s: Span, p: Parts) -> ast.Recompute:
    keep = {2: None, 5: ()}.get(len(p), tuple(p[4]) if len(p) > 5 else None)
    return ast.Recompute(s, p[1], keep)


MAKERS: dict[str, Callable[[Span, Parts], Any]] = {
    "name": lambda s, p: ast.Name(s, p[0].text),
    # Sections.
    "dims": lambda s, p: ast.Dims(s, tuple(p[2])),
    "block": _block,
    "data": lambda s, p: ast.Data(s, p[1], tuple(p[3])),
    "train": _train,
    "stage": lambda s, p: ast.Stage(s, p[1], tuple(p[3])),
    "mesh": lambda s, p: ast.Mesh(s, p[1], tuple(p[3])),
    "target": lambda s, p: ast.Target(s, p[1], tuple(p[3])),
    "optimizer": lambda s, p: ast.Optimizer(s, p[1], tuple(p[3]), tuple(p[6])),
    "rate": lambda s, p: ast.Rate(s, p[1], tuple(p[3]), tuple(p[6])),
    "schedule": lambda s, p: ast.Schedule(s, p[1], p[2], p[3], tuple(p[5])),
    "adapter": lambda s, p: ast.Adapter(s, p[1], p[3], tuple(p[5])),
    "checkpoint": lambda s, p: ast.Checkpoint(s, p[1], p[3], tuple(p[5])),
    # Types.
    "arrow": _arrow,
    "scalar": lambda s, p: ast.TensorType(s, (), None),
    "dense": lambda s, p: ast.TensorType(s, tuple(p[1]), None),
    "index_scalar": lambda s, p: ast.TensorType(s, (), p[0]),
    "index": lambda s, p: ast.TensorType(s, tuple(p[2]), p[0]),
    # Items.
    "dim": lambda s, p: ast.Dim(s, p[0], None),
    "dim_sized": lambda s, p: ast.Dim(s, p[0], p[2]),
    "input": lambda s, p: ast.Input(s, p[0], p[2]),
    "input_number": lambda s, p: ast.Parameter(s, p[0], (), p[2]),
    "param": lambda s, p: ast.Param(s, p[1], p[3], None),
    "param_init": lambda s, p: ast.Param(s, p[1], p[3], p[5]),
    "sub": lambda s, p: ast.Sub(s, p[1], p[3]),
    "stack": lambda s, p: ast.Stack(s, p[1], p[3], p[5]),
    "stack_pattern": lambda s, p: ast.Stack(s, p[1], p[4][0].block, p[7], tuple(p[4])),
    "layer": lambda s, p: ast.Layer(s, None, p[0]),
    "state": lambda s, p: ast.State(s, p[1], p[3]),
    "state_shaped": lambda s, p: ast.State(s, p[1], p[5], p[3]),
    "repeat": lambda s, p: ast.Repeat(s, p[1], tuple(p[3])),
    "equation": lambda s, p: ast.Equation(s, p[0], p[2]),
    "block_state": lambda s, p: ast.BlockState(s, p[1], p[3], p[5]),
    "penalty": lambda s, p: ast.Penalty(s, p[1], p[3]),
    "total": lambda s, p: ast.Total(s, p[1], p[3]),
    "update": lambda s, p: ast.Update(s, p[1], p[3]),
    "return_": lambda s, p: ast.Return(s, p[1]),
    "require": lambda s, p: ast.Require(s, p[1], p[2].text, p[3]),
    "field": lambda s, p: ast.Field(s, p[0], p[2]),
    "field_in": lambda s, p: ast.FieldIn(s, p[0], p[4], p[2]),
    "parameter": lambda s, p: ast.Parameter(s, p[0], (), None),
    "parameter_default": lambda s, p: ast.Parameter(s, p[0], (), p[2]),
    "parameter_parts": lambda s, p: ast.Parameter(s, p[0], tuple(p[3]), None),
    "parameter_parts_default": lambda s, p: ast.Parameter(s, p[0], tuple(p[3]), p[6]),
    "shard": _shard,
    "shard_in": _shard,
    "shard_elsewhere": _shard,
    "zero": _zero,
    "zero_in": _zero,
    "offload": lambda s, p: ast.Offload(s, p[1]),
    "compress": lambda s, p: ast.Compress(s, p[1]),
    "recompute": _recompute,
    "recompute_none": _recompute,
    "recompute_keep": _recompute,
    "freeze": lambda s, p: ast.Freeze(s, p[1]),
    "freeze_rows": lambda s, p: ast.Freeze(s, p[1], tuple(p[3])),
    "tune": lambda s, p: ast.Tune(s, p[1]),
    "tune_rows": lambda s, p: ast.Tune(s, p[1], tuple(p[3])),
    "quantize": lambda s, p: ast.Quantize(s, p[1], tuple(p[3])),
    "quantize_plain": lambda s, p: ast.Quantize(s, p[1]),
    "lora": lambda s, p: ast.Lora(s, p[1], tuple(p[3])),
    "mapped": lambda s, p: ast.Mapped(s, p[0], tuple(p[2]), p[4]),
    "mapped_as": lambda s, p: ast.Mapped(s, p[0], tuple(p[2]), p[4]),
    "mapped_where": _mapped_where,
    "layout": lambda s, p: ast.Layout(s, tuple(p[1])),
    "layout_scalar": lambda s, p: ast.Layout(s, ()),
    "side": lambda s, p: ast.Side(s, p[0], p[2]),
    "config": lambda s, p: ast.Config(s, tuple(p[2])),
    "config_dim": lambda s, p: ast.ConfigDim(s, p[0], p[2]),
    # Expressions.
    "ref": _ref,
    "true": lambda s, p: ast.Boolean(s, True),
    "false": lambda s, p: ast.Boolean(s, False),
    "attribute": lambda s, p: ast.Attribute(s, p[0], p[2]),
    "argument": lambda s, p: ast.Argument(s, None, p[0]),
    "argument_key": lambda s, p: ast.Argument(s, p[0], p[2]),
    "call": lambda s, p: ast.Call(s, p[0], (), tuple(p[2])),
    "call_dims": _call_dims,
    "value_call": lambda s, p: ast.Call(s, _ref(p[0].span, p), (), tuple(p[2])),
    "pair": lambda s, p: ast.RenamePair(s, p[0], p[2]),
    "split": lambda s, p: ast.SplitPair(s, p[0], tuple(p[3])),
    "join": lambda s, p: ast.JoinPair(s, tuple(p[1]), p[4]),
    "rename": lambda s, p: ast.Rename(s, p[0], tuple(p[2])),
    "negative": lambda s, p: ast.Unary(s, "-", p[1]),
    "binary": _binary,
    "power": _binary,
    "tuple": lambda s, p: ast.Tuple(s, (p[1], *p[3])),
    "list_empty": lambda s, p: ast.List(s, ()),
    "list": lambda s, p: ast.List(s, tuple(p[1])),
    # Selectors.
    "star": lambda s, p: ast.Star(s),
    "alternatives": lambda s, p: ast.Alternatives(s, tuple(p[1])),
}
