"""The text form of programs: `parse_program(print_program(p)) == p`, for every program.

    program sharded
    mesh data=2, tensor=2
    dims batch=8, seq=128, embed=64, heads=4
    entries forward

    param wq: f32[embed, heads@tensor] = normal(std=0.125) !1

    func forward(%0 x: f32[batch@data, seq, embed], %1 wq: f32[embed, heads@tensor] param) -> (y) {
      %2: f32[batch@data, seq, heads@tensor] = dot{contract=[embed]}(%0, %1)  # attn.wq !2
      return %2
    }

    spans {
      !1 = "model.fllm" 120 140 3:5 3:25
      !2 = "model.fllm" 180 190 5:9 5:19
    }

Line breaks mean nothing, and `//` begins a comment.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.errors import InvalidProgram, Misnumbered, MissingAttribute, Repeated, UnknownWord
from fllmc.ir.ops import OPS, AnyAttrs
from fllmc.ir.program import (
    LEVELS,
    DimSize,
    Function,
    Init,
    Input,
    Op,
    Parameter,
    Program,
    Role,
)
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.text_parse import Reader
from fllmc.ir.text_print import print_op, print_program, print_type
from fllmc.ir.types import Axis, Mesh, Type
from fllmc.ir.verify import faults

__all__ = ["load_program", "parse_program", "print_op", "print_program", "print_type"]

ROLES: tuple[str, ...] = get_args(Role)
INITS: tuple[str, ...] = get_args(msgspec.structs.fields(Init)[0].type)


def parse_program(text: str, file: str = "text") -> Program:
    """The program that the text spells; DiagnosticError with the place where it spells none.

    Only the form is checked: see `load_program` for text of which nothing is known.
    """
    return _Parser(text, file).program()


def load_program(text: str, file: str = "text") -> Program:
    """A program that keeps all rules; DiagnosticError for one that can't be read or breaks any."""
    parser = _Parser(text, file)
    program = parser.program()
    found = [
        InvalidProgram(parser.places.get((fault.function, fault.op), NOWHERE), fault.text)
        for fault in faults(program)
    ]
    if found:
        raise DiagnosticError(*found)
    return program


class _Values(NamedTuple):
    """A function's values while it is read: the types by number."""

    types: list[Type]


class _Parser(Reader):
    """Reads a whole program. The spans' table comes last, so it is looked up first."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text, file)
        self.spans: dict[int, Span] = {}
        self.places: dict[tuple[str, int | None], Span] = {}

    def program(self) -> Program:
        self.footer()
        start = self.here()
        self.expect("program")
        level: Any = self.word("level", LEVELS)
        head = self.head()
        if any(dim.size < 1 for dim in (*head.dims, *head.axes)):
            self.unlike("sizes of at least 1")
        parameters: list[Parameter] = []
        while self.sees("param"):
            parameters.append(self.parameter())
        functions: list[Function] = []
        while self.sees("func"):
            functions.append(self.function())
        if self.next.kind != "end" and not self.sees("spans"):
            self.unlike("`func`, `spans` or the end of the text")
        self.places[("", None)] = start
        mesh = Mesh(head.axes)
        return Program(level, head.dims, tuple(functions), head.entries, tuple(parameters), mesh)

    def head(self) -> _Head:
        axes = dims = ()
        entries: tuple[str, ...] = ()
        if self.skip("mesh"):
            axes = self.listed(lambda: Axis(*self.sized()))
        if self.skip("dims"):
            dims = self.listed(lambda: DimSize(*self.sized()))
        if self.skip("entries"):
            entries = self.listed(self.name)
        return _Head(axes, dims, entries)
