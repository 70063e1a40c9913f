"""The verifier finds each planted fault, and says which op it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.legality import FORBIDDEN, objection
from fllmc.ir.program import LEVELS, Function, Init, Op, Parameter, Program
from fllmc.ir.types import Dim, Mesh, Sizes, Type
from fllmc.ir.verify import faults, verify
from tests.ir.programs import DIMS, MESH, program_of

BATCH, EMBED = Dim("batch", ("data",)), Dim("embed", ("tensor",))
TWICE = Dim("embed", ("data",))


def good() -> Program:
    """step(x, w) on a 2x2 mesh: a gradient-like sum over the batch, reduced, then w - sum."""
    layer = Builder("layer", Sizes(DIMS, MESH))
    carry = layer.input("x", Type("f32", (BATCH, EMBED)))
    body = layer.finish([layer.one(ops.Tanh(), carry)], ["x"])
    b = Builder("step", Sizes(DIMS, MESH), {"layer": body.signature})
    x = b.input("x", Type("f32", (BATCH, EMBED)), "data")
    w = b.input("w", Type("f32", (EMBED,)), "param")
    b.path = "body"
    (y,) = b.emit(ops.Scan("layer", "layers", 1, 0), x)
    b.path = "grad"
    part = b.sum(y, ["batch"])
    total = b.one(ops.AllReduce(("data",)), part)
    step = b.finish([b.sub(w, total)], ["w"])
    parameter = Parameter("w", Type("f32", (EMBED,)), Init("ones"))
    return program_of(body, step, level="sharded", mesh=MESH, parameters=(parameter,))


def step_with(**fields: Any) -> Callable[[Program], Program]:
    """The program with fields of its entry replaced."""
    return lambda p: p.with_functions(replace(p.function("step"), **fields))


def op_with(position: int, **fields: Any) -> Callable[[Program], Program]:
    """The program with fields of one op of its entry replaced."""

    def change(program: Program) -> Program:
        found = list(program.function("step").ops)
        found[position] = replace(found[position], **fields)
        return step_with(ops=tuple(found))(program)

    return change


def type_of(number: int, kind: Type) -> Callable[[Program], Program]:
    """The program with the type of one value of its entry replaced."""

    def change(program: Program) -> Program:
        found = list(program.function("step").types)
        found[number] = kind
        return step_with(types=tuple(found))(program)

    return change


def unreduced(program: Program) -> Program:
    """The gradient is stored as it is on each rank."""
    b = Builder("step", program.sizes)
    b.input("x", Type("f32", (BATCH, EMBED)), "data")
    b.input("w", Type("f32", (EMBED,)), "param")
    return program.with_functions(b.finish([b.sum(0, ["batch"])], ["w"]))


def squared(program: Program) -> Program:
    """A partial value is squared before it is reduced."""
    step = program.function("step")
    square = Op(ops.Mul(), (3, 3), (4,), "grad")
    rest = replace(step.ops[2], operands=(4,), results=(5,))
    last = replace(step.ops[3], operands=(1, 5), results=(6,))
    types = (*step.types[:4], step.types[3], *step.types[4:])
    new = replace(step, ops=(*step.ops[:2], square, rest, last), types=types, results=(6,))
    return program.with_functions(new)


def recursive(program: Program) -> Program:
    """The scanned function scans itself."""
    layer = program.function("layer")
    again = Op(ops.Scan("layer", "layers", 1, 0), (0,), (1,))
    return program.with_functions(replace(layer, ops=(again,)))


def second_entry(program: Program) -> Program:
    """Another entry holds the parameter whole."""
    b = Builder("eval", program.sizes)
    b.input("w", Type("f32", (Dim("embed"),)), "param")
    changed = program.with_functions(b.finish([0], ["y"]))
    return replace(changed, entries=(*program.entries, "eval"))


def whole_dim(program: Program) -> Program:
    """Rotary positions along a divided dim."""
    b = Builder("step", program.sizes)
    x = b.input("x", Type("f32", (BATCH, EMBED)))
    return program.with_functions(b.finish([b.one(ops.Rope("batch", "embed"), x)], ["y"]))


def of(dtype: str, *dims: Dim, **fields: Any) -> Type:
    return Type(dtype, dims, **fields)


FAULTS: list[tuple[str, Callable[[Program], Program], str]] = [
    ("an unresolved sum is stored", unreduced, "output w: .* still partial over data"),
    ("an unresolved sum is squared", squared, "two operands are unresolved"),
    ("an operand made later", op_with(1, operands=(4,)), r"operands \(4,\) are not all made"),
    ("results misnumbered", op_with(1, results=(9,)), r"numbered \(9,\), next is 3"),
    ("a wrong result type", type_of(3, of("f32", EMBED)), r"should be \(f32\[embed@tensor\]\+d"),
    ("a wrong dtype", type_of(4, of("bf16", EMBED)), "should be"),
    ("a wrong number of operands", op_with(3, operands=(1,)), "sub takes 2 operands, not 1"),
    ("a missing callee", op_with(0, attrs=ops.Scan("gone", "layers", 1, 0)), "no function gone"),
    ("recursion", recursive, "functions run themselves: layer"),
    ("a missing entry", lambda p: replace(p, entries=("main",)), "entry main is no function"),
    ("a repeated entry", lambda p: replace(p, entries=("step", "step")), "entry step stands twice"),
    ("a call", op_with(1, attrs=ops.Call("layer")), "call does not belong to level sharded"),
    ("placed too early", lambda p: replace(p, level="training"), "placed at level training"),
    ("an unknown axis", lambda p: replace(p, mesh=Mesh(MESH.axes[:1])), "no axis tensor"),
    ("an undeclared dim", lambda p: replace(p, dims=p.dims[:1]), "dim embed is not declared"),
    ("an uneven dim", lambda p: p.with_dim("embed", 5), "embed@tensor does not divide embed=5"),
    ("an axis twice", type_of(0, of("f32", BATCH, TWICE)), "an axis stands twice"),
    ("an input of no dtype", type_of(0, of("f8", BATCH, EMBED)), "no dtype f8"),
    ("an index of no dim", type_of(0, of("i64", BATCH, EMBED, index="x")), "indices of x"),
    ("open axes out of order", type_of(1, of("f32", partial=("tensor", "data"))), "not sorted"),
    ("a wrong replacement", step_with(results=(0,)), r"output w is f32\[batch@data"),
    ("outputs of one name", step_with(results=(0, 5), outputs=("y", "y")), "y stands twice"),
    ("a result from nowhere", step_with(results=(17,)), r"results \(17,\) are not all made"),
    ("too few output names", step_with(outputs=()), "0 output names for 1 results"),
    ("one stored tensor with two types", second_entry, "in another entry"),
    ("a divided dim that must be whole", whole_dim, "rope needs embed whole"),
    ("a missing dim", op_with(1, attrs=ops.ReduceSum(("seq",))), "lacks one of"),
]  # fmt: skip


def test_a_good_program_passes() -> None:
    verify(good())


@pytest.mark.parametrize(("change", "says"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_found(change: Callable[[Program], Program], says: str) -> None:
    with pytest.raises(InternalError, match=says):
        verify(change(good()))


def test_a_fault_shows_its_op() -> None:
    with pytest.raises(InternalError) as caught:
        verify(type_of(4, Type("bf16", (EMBED,)))(good()))
    assert "function step, op 2" in str(caught.value)
    assert "%4: bf16[embed@tensor] = all_reduce{axes=[data]}(%3)  # grad" in str(caught.value)


def test_all_faults_are_listed() -> None:
    broken = type_of(4, Type("bf16", (EMBED,)))(good())
    assert [fault.op for fault in faults(broken)] == [2, 3]


def test_the_legality_table_names_levels_and_ops() -> None:
    assert tuple(FORBIDDEN) == LEVELS
    for table in FORBIDDEN.values():
        for kind, reason in table.items():
            assert kind in ops.OPS.values()
            assert reason and reason[0].islower() and not reason.endswith(".")
    assert objection("plan", ops.Fused("f", ())) is None
    assert objection("model", ops.Call("f")) is None
    assert objection("training", ops.AllReduce(("data",))) is not None


def test_a_function_without_ops_is_fine() -> None:
    empty = Function("main", (), (), (), (), ())
    verify(program_of(empty))
