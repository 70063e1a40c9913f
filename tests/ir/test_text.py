"""The text form parses back to the same program, and anything else is a diagnostic."""

from __future__ import annotations

import random
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import fields, replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.errors import InvalidProgram, Misnumbered, MissingAttribute, Repeated, UnknownWord
from fllmc.ir.program import DimSize, Function, Init, Input, Op, Parameter, Program
from fllmc.ir.span import Span
from fllmc.ir.text import load_program, parse_program, print_program, print_type
from fllmc.ir.text_parse import Reader
from fllmc.ir.types import Axis, Dim, Mesh, Sizes, Type
from tests.ir.programs import DIMS, MESH, program_of, programs

PLACE = Span('C:\\a "b".fllm', 3, 9, 1, 4, 2, 1)
ODD_NAMES = (
    "",
    "a b",
    "ünï",
    '"',
    "\\",
    "return",
    "spans",
    "func",
    "inf",
    "nan",
    "of",
    "7",
    "x\n",
    "f32",
)
TEXT = """
program sharded
mesh data=2, tensor=2
dims batch=4, seq=4, embed=4
entries main

param w: f32[embed@tensor] = normal(std=0.125) {trainable=false, decays=false} !1

func main(
    %0 x: f32[batch@data, seq, embed@tensor], // a comment
    %1 w: f32[embed@tensor] param,
) -> (y, w) !1 {
  %2: f32[batch@data, seq]+tensor = dot{contract=[embed]}(%0, %1)  # attn.wq !2
  %3: f32[batch@data, seq] = all_reduce{axes=[tensor]}(%2)
  return %3, %1
}

spans {
  !1 = "model.fllm" 0 12 1:1 1:13
  !2 = "model.fllm" 20 31 3:5 3:16
}
"""


def round_trip(program: Program) -> str:
    text = print_program(program)
    again = parse_program(text)
    assert again == program
    assert print_program(again) == text
    return text


@given(programs())
def test_random_programs(program: Program) -> None:
    round_trip(program)
    assert load_program(print_program(program)) == program


@given(programs(placed=True))
def test_random_placed_programs(program: Program) -> None:
    round_trip(program)


@given(st.data())
def test_types(data: st.DataObject) -> None:
    """Any type at all, also such as no program may have."""
    names = st.sampled_from((*ODD_NAMES, "batch", "embed'", "body.7"))
    dims = st.tuples(names, st.lists(names, max_size=3)).map(lambda p: Dim(p[0], tuple(p[1])))
    kind = Type(
        data.draw(st.sampled_from(("f32", "bf16", "i64", "what"))),
        tuple(data.draw(st.lists(dims, max_size=3))),
        tuple(data.draw(st.lists(names, max_size=2))),
        data.draw(st.sampled_from(("sum", "max"))),
        data.draw(names),
    )
    reader = Reader(print_type(kind), "text")
    assert reader.type() == kind
    assert reader.next.kind == "end"


def some(hint: Any, seed: random.Random) -> Any:
    """A value of a field's type."""
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return tuple(some(get_args(hint)[0], seed) for _ in range(seed.randrange(4)))
    if get_origin(hint) is tuple:
        return tuple(some(part, seed) for part in get_args(hint))
    if hint is Dim:
        return Dim(some(str, seed), tuple(some(str, seed) for _ in range(seed.randrange(3))))
    if hint is float:
        return seed.choice((0.0, -0.0, 1e-300, 1 / 3, -2.5e17, float("inf"), float("-inf")))
    if hint is int:
        return seed.randrange(-5, 1 << 40)
    if hint is bool:
        return seed.random() < 0.5
    assert hint is str, f"no way to make a {hint}: see ir/text_words.py"
    return seed.choice((*ODD_NAMES, "plain", "a.b"))


@pytest.mark.parametrize("kind", sorted(ops.OPS))
def test_every_op_with_any_attributes(kind: str) -> None:
    seed = random.Random(kind)
    cls: Any = ops.OPS[kind]
    for _ in range(20):
        attrs = cls(**{field.name: some(field.type, seed) for field in fields(cls)})
        count = seed.randrange(3)
        op = Op(attrs, (0,) * seed.randrange(3), tuple(range(1, 1 + count)), some(str, seed), PLACE)
        types = (Type("f32"),) * (1 + count)
        function = Function(some(str, seed), (Input("x"),), (op,), (0,), ("y",), types)
        round_trip(program_of(function))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_everywhere(name: str) -> None:
    kind = Type("f32", (Dim(name, (name,)),), index="")
    parameter = Parameter(name, kind, Init("ones", 0.5), False, name, 3, False, PLACE)
    inputs = (Input(name, "state"), Input(name + "'", "param"))
    function = Function(name, inputs, (), (0,), (name,), (kind, kind), PLACE)
    mesh = Mesh((Axis(name, 2),))
    dims = (DimSize(name, 2),)
    round_trip(Program("plan", dims, (function,), (name,), (parameter,), mesh))


def test_an_empty_program() -> None:
    round_trip(Program("model", (), (), ()))


def test_scans_and_calls() -> None:
    sizes = Sizes(DIMS)
    layer = Builder("layer", sizes)
    x = layer.input("x", Type("f32", (Dim("embed"),)))
    body = layer.finish([layer.neg(x), x], ["x", "saved"])
    main = Builder("main", sizes, {"layer": body.signature})
    start = main.input("x", Type("f32", (Dim("embed"),)))
    main.emit(ops.Scan("layer", "layers", 1, 0, reverse=True), start)
    text = round_trip(program_of(body, main.finish([1], ["y"])))
    assert "scan{function=layer, over=layers, carries=1, slices=0, reverse=true}(%0)" in text


def test_the_form_is_as_documented() -> None:
    program = load_program(TEXT)
    assert program.function("main").ops[0].path == "attn.wq"
    assert program.function("main").ops[0].span == Span("model.fllm", 20, 31, 3, 5, 3, 16)
    assert program.parameter("w").trainable is False
    round_trip(program)


@pytest.mark.parametrize(
    ("old", "new", "kind", "shown"),
    [
        ("dot{", "dto{", UnknownWord, "dto"),
        ("contract=", "contact=", UnknownWord, "contact"),
        ("w: f32[embed@tensor] param", "w: f32[embed@tensor] parm", UnknownWord, "parm"),
        ("attn.wq !2", "attn.wq !3", UnknownWord, "!3"),
        ("{contract=[embed]}", "", MissingAttribute, "dot"),
        ("%3: f32", "%4: f32", Misnumbered, "%4"),
        ("!2 =", "!1 =", Repeated, "!1"),
        ("std=0.125", "std=0.125, std=1.0", Repeated, "std"),
        ("seq]+tensor", "seq]", InvalidProgram, "dot{contract=[embed]}(%0, %1)"),
        ("return %3, %1", "return %2, %1", InvalidProgram, "func main"),
        ("embed=4", "embed=5", InvalidProgram, "param"),
        ("mesh data=2", "mesh data=0", InvalidProgram, "program"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(
    old: str, new: str, kind: type[Struct], shown: str
) -> None:
    assert TEXT.count(old) == 1 or old == "embed=4"
    text = TEXT.replace(old, new)
    with pytest.raises(DiagnosticError) as caught:
        load_program(text, "a.fllmir")
    first = caught.value.diagnostics[0]
    assert isinstance(first, kind)
    assert first.span.file == "a.fllmir"
    at = text[first.span.start : first.span.end]
    assert shown in at or (kind is InvalidProgram and shown == "param" and at)


def test_mutated_text_never_brings_a_traceback() -> None:
    seed = random.Random(7)
    pieces = Reader(TEXT, "text").tokens[:-1]
    words = [token.text for token in pieces] + ["inf", "-9", "1e999", "%99999999999999999999", '"']
    words += ["\\", "\x00", "é", "scan", "call", "9" * 5000, "^", "(", "take", "attend", "fused"]
    good = 0
    for _ in range(2000):
        tokens = [token.text for token in pieces]
        for _ in range(seed.randint(1, 3)):
            at, how = seed.randrange(len(tokens)), seed.randrange(4)
            if how == 0:
                tokens[at] = seed.choice(words)
            elif how == 1:
                tokens.insert(at, seed.choice(words))
            elif how == 2:
                del tokens[at]
            else:
                other = seed.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
        good += accepted(" ".join(tokens))
    assert 0 < good < 1000


def test_cut_text_never_brings_a_traceback() -> None:
    for end in range(0, len(TEXT), 3):
        accepted(TEXT[:end])
        accepted(TEXT[end:])


def accepted(text: str) -> bool:
    try:
        program = load_program(text)
    except DiagnosticError as error:
        for diagnostic in error.diagnostics:
            assert diagnostic.message() and diagnostic.primary()
            assert 0 <= diagnostic.span.start <= diagnostic.span.end <= len(text)
            diagnostic.helps()
        return False
    round_trip(program)
    return True


def test_all_fields_are_printed() -> None:
    """A field added to a Struct of the program must be added to the text form too."""
    assert [f.name for f in fields(Program)] == [
        "level", "dims", "functions", "entries", "parameters", "mesh"
    ]  # fmt: skip
    assert [f.name for f in fields(Function)] == [
        "name", "inputs", "ops", "results", "outputs", "types", "span"
    ]  # fmt: skip
    assert [f.name for f in fields(Op)] == ["attrs", "operands", "results", "path", "span"]
    assert [f.name for f in fields(Input)] == ["name", "role"]
    assert [f.name for f in fields(Type)] == ["dtype", "dims", "partial", "combine", "index"]
    assert [f.name for f in fields(Dim)] == ["name", "axes"]
    assert [f.name for f in fields(Axis)] == ["name", "size"]
    assert [f.name for f in fields(DimSize)] == ["name", "size"]


def test_text_on_a_mesh_names_its_axes() -> None:
    builder = Builder("main", Sizes(DIMS, MESH))
    x = builder.input("x", Type("f32", (Dim("batch", ("data", "tensor")),)))
    function = builder.finish([builder.sum(x, ["batch"])], ["y"])
    text = round_trip(program_of(function, level="sharded", mesh=MESH))
    assert "%1: f32[]+data+tensor = sum{dims=[batch]}(%0)" in text
    renamed = replace(function, name="layer one")
    assert 'func "layer one"(' in print_program(program_of(renamed))
