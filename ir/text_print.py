"""Printing programs: the text form that `inspect` shows and tests compare, and that parses back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from fllmc.ir import text_words as words
from fllmc.ir.program import Function, Input, Op, Parameter, Program
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.types import DTYPE_BYTES, Type


def print_program(program: Program) -> str:
    """The whole program. Equal programs print alike, and the text parses back to an equal one."""
    marks = _Marks()
    lines = [f"program {program.level}"]
    for word, listed in (
        ("mesh", [f"{words.name(axis.name)}={axis.size}" for axis in program.mesh.axes]),
        ("dims", [f"{words.name(dim.name)}={dim.size}" for dim in program.dims]),
        ("entries", [words.name(entry) for entry in program.entries]),
    ):
        lines += [f"{word} {', '.join(listed)}"] if listed else []
    if program.parameters:
        lines += ["", *(_parameter(parameter, marks) for parameter in program.parameters)]
    for function in program.functions:
        lines += ["", *_function(function, marks)]
    if marks.numbers:
        lines += ["", "spans {", *marks.table(), "}"]
    return "\n".join(lines) + "\n"


def print_type(kind: Type) -> str:
    """A type; one that breaks the type's own rules is spelt out, so that it parses back too."""
    dims = f"[{', '.join(words.dim(dim) for dim in kind.dims)}]"
    mark = "+" if kind.combine == "sum" else "^"
    open_axes = "".join(mark + words.name(axis) for axis in kind.partial)
    if kind.combine != "sum" and not kind.partial:
        open_axes = f"{mark}()"
    return f"{_element(kind)}{dims}{open_axes}"


def _element(kind: Type) -> str:
    if not kind.index and kind.dtype in DTYPE_BYTES:
        return kind.dtype
    if kind.index and kind.dtype == "i64" and kind.index not in DTYPE_BYTES:
        return words.name(kind.index)
    return f"{words.name(kind.dtype)} of {words.name(kind.index)}"


def print_op(op: Op, types: Sequence[Type], mark: str = "") -> str:
    """One op on one line; `types` are its function's. Works on broken ops too."""
    results = ", ".join(
        f"%{n}: {print_type(types[n]) if 0 <= n < len(types) else 'unknown'}" for n in op.results
    )
    attrs = words.fields(op.attrs)
    braces = f"{{{attrs}}}" if attrs else ""
    operands = ", ".join(f"%{number}" for number in op.operands)
    path = f"  # {words.name(op.path)}" if op.path else ""
    equals = " = " if results else ""
    return f"{results}{equals}{op.kind}{braces}({operands}){path}{mark}"


class _Marks:
    """Spans met so far, numbered in order, so that the body stays readable."""

    def __init__(self) -> None:
        self.numbers: dict[Span, int] = {}

    def mark(self, span: Span) -> str:
        """` !3`, or nothing for no place."""
        if span == NOWHERE:
            return ""
        return f" !{self.numbers.setdefault(span, len(self.numbers) + 1)}"

    def table(self) -> Iterator[str]:
        """A line a span: file, start and end as characters, then as line:column."""
        for s, n in self.numbers.items():
            places = f"{s.start} {s.end} {s.line}:{s.column} {s.end_line}:{s.end_column}"
            yield f"  !{n} = {json.dumps(s.file)} {places}"


def _parameter(parameter: Parameter, marks: _Marks) -> str:
    rest = words.fields(parameter, skip=("name", "type", "init", "span"))
    braces = f" {{{rest}}}" if rest else ""
    settings = words.fields(parameter.init, skip=("kind",))
    init = f"{words.name(parameter.init.kind)}({settings})"
    head = f"param {words.name(parameter.name)}: {print_type(parameter.type)}"
    return f"{head} = {init}{braces}{marks.mark(parameter.span)}"


def _function(function: Function, marks: _Marks) -> Iterator[str]:
    pairs = zip(function.inputs, function.types, strict=False)
    inputs = [f"%{n} {_input(given, kind)}" for n, (given, kind) in enumerate(pairs)]
    outputs = ", ".join(words.name(output) for output in function.outputs)
    head = f"func {words.name(function.name)}("
    tail = f") -> ({outputs}){marks.mark(function.span)} {{"
    line = head + ", ".join(inputs) + tail
    if len(line) <= 100:
        yield line
    else:
        yield head
        yield from (f"    {given}," for given in inputs)
        yield tail
    for op in function.ops:
        yield "  " + print_op(op, function.types, marks.mark(op.span))
    results = ", ".join(f"%{number}" for number in function.results)
    yield f"  return {results}".rstrip()
    yield "}"


def _input(given: Input, kind: Type) -> str:
    role = f" {given.role}" if given.role != "value" else ""
    return f"{words.name(given.name)}: {print_type(kind)}{role}"
