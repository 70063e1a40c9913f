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

from typing import Any, get_args

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.errors import InvalidProgram, Misnumbered, Repeated, UnknownWord
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


class _Parser(Reader):
    """Reads a whole program. `places` tells where each function and op stands in the text."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text, file)
        self.spans: dict[int, Span] = {}
        self.names: set[str] = set()
        self.places: dict[tuple[str, int | None], Span] = {}

    def program(self) -> Program:
        self.footer()
        self.places["", None] = self.here()
        self.expect("program")
        level: Any = self.word("level", LEVELS)
        axes = self.listed(lambda: Axis(*self.sized())) if self.skip("mesh") else ()
        dims = self.listed(lambda: DimSize(*self.sized())) if self.skip("dims") else ()
        entries = self.listed(self.name) if self.skip("entries") else ()
        parameters: list[Parameter] = []
        while self.skip("param"):
            parameters.append(self.parameter())
        functions: list[Function] = []
        while self.skip("func"):
            functions.append(self.function())
        if self.next.kind != "end" and not self.sees("spans"):
            self.unlike("`func`, `spans` or the end of the text")
        return Program(level, dims, tuple(functions), entries, tuple(parameters), Mesh(axes))

    def sized(self) -> tuple[str, int]:
        """`batch=8`."""
        name = self.name()
        self.expect("=")
        return name, self.integer()

    def footer(self) -> None:
        """The table of spans. It comes last but is read first."""
        pairs = zip(self.tokens, self.tokens[1:], strict=False)
        starts = [i for i, (a, b) in enumerate(pairs) if (a.text, b.text) == ("spans", "{")]
        if not starts:
            return
        self.at = starts[0] + 2
        self.items_of_table()
        if self.next.kind != "end":
            self.unlike("the end of the text")
        self.at = 0

    def items_of_table(self) -> None:
        """`!1 = "file" 120 140 3:5 3:25`, up to and with the closing brace."""
        while not self.skip("}"):
            place = self.here()
            number = self.integer("mark", "a mark such as `!1`")
            if number in self.spans:
                self.wrong(Repeated(place, "mark", f"!{number}"))
            self.expect("=")
            file, start, end = self.name("a file"), self.integer(), self.integer()
            self.spans[number] = Span(file, start, end, *self.line_column(), *self.line_column())

    def line_column(self) -> tuple[int, int]:
        """`3:5`."""
        line = self.integer()
        self.expect(":")
        return line, self.integer()

    def mark(self) -> Span:
        """`!3` as the span it stands for; no mark is no place."""
        if self.next.kind != "mark":
            return NOWHERE
        place = self.here()
        number = self.integer("mark")
        if number not in self.spans:
            known = tuple(f"!{n}" for n in self.spans)
            self.wrong(UnknownWord(place, "mark", f"!{number}", known))
        return self.spans[number]

    def parameter(self) -> Parameter:
        """`wq: f32[embed] = normal(std=0.125) {trainable=false} !1`, behind `param`."""
        name = self.name()
        self.expect(":")
        kind = self.type()
        self.expect("=")
        init: Any = self.word("initial value", INITS)
        self.expect("(")
        begins = Init(init, **self.fields(Init, ")", init, ("kind",)))
        own = ("name", "type", "init", "span")
        rest = self.fields(Parameter, "}", "a parameter", own) if self.skip("{") else {}
        return Parameter(name, kind, begins, **rest, span=self.mark())

    def function(self) -> Function:
        """`layer(%0 x: type, ...) -> (y) !3 { ops return %5 }`, behind `func`."""
        first = self.at - 1
        name = self.name("the name of a function")
        types: list[Type] = []
        self.expect("(")
        inputs = self.items(")", lambda: self.input(types))
        self.expect("->")
        self.expect("(")
        outputs = self.items(")", lambda: self.name("the name of an output"))
        span = self.mark()
        if name in self.names:
            self.wrong(Repeated(self.span(first), "function", name))
        self.names.add(name)
        self.places[name, None] = self.span(first)
        self.expect("{")
        ops: list[Op] = []
        while not self.skip("return"):
            start = self.at
            ops.append(self.op(types))
            self.places[name, len(ops) - 1] = self.span(start)
        results = () if self.sees("}") else self.listed(lambda: self.operand(len(types)))
        self.expect("}")
        return Function(name, inputs, tuple(ops), results, outputs, tuple(types), span)

    def input(self, types: list[Type]) -> Input:
        """`%0 x: type role`."""
        self.defined(types)
        name = self.name("the name of an input")
        self.expect(":")
        types.append(self.type())
        role: Any = self.word("role", ROLES) if self.next.kind == "name" else "value"
        return Input(name, role)

    def defined(self, types: list[Type]) -> int:
        """The number of a value that begins here: the next one."""
        place = self.here()
        number = self.integer("value", "a value such as `%0`")
        if number != len(types):
            self.wrong(Misnumbered(place, number, len(types)))
        return number

    def operand(self, before: int) -> int:
        """The number of one of the `before` values made before."""
        number = self.integer("value", "a value such as `%0`")
        if number >= before:
            self.at -= 1
            self.unlike("a value made before")
        return number

    def op(self, types: list[Type]) -> Op:
        """`%2: type = dot{contract=[embed]}(%0, %1)  # path !2`."""
        before = len(types)
        results: tuple[int, ...] = ()
        if self.next.kind == "value":
            results = self.listed(lambda: self.result(types))
            self.expect("=")
        attrs = self.attributes()
        self.expect("(")
        operands = self.items(")", lambda: self.operand(before))
        path = self.name("a path") if self.skip("#") else ""
        return Op(attrs, operands, results, path, self.mark())

    def result(self, types: list[Type]) -> int:
        """`%2: type`."""
        number = self.defined(types)
        self.expect(":")
        types.append(self.type())
        return number

    def attributes(self) -> AnyAttrs:
        """`dot{contract=[embed]}`."""
        first = self.at
        kind = self.word("op", tuple(OPS))
        cls: Any = OPS[kind]
        if self.skip("{"):
            return cls(**self.fields(cls, "}", kind))
        self.complete(cls, {}, kind, self.span(first))
        return cls()
