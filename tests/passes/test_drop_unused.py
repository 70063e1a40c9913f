"""drop-unused: what nobody needs goes, in scan bodies too; what a run stores stays."""

import msgspec

from fllmc.ir.ops import Dot, Exp, Scan
from fllmc.ir.program import Program
from fllmc.ir.types import HOST_SCALAR, indices, tensor
from fllmc.passes.drop_unused import DropUnused
from tests.passes.stack_programs import (
    DIMS,
    X,
    applied,
    builder,
    equal,
    model_program,
    parameters,
    training_program,
)

WEIGHT = tensor("f32", "embed", "ffn")


def test_ops_functions_and_inputs() -> None:
    b = builder("f")
    x = b.input("x", X, "data")
    b.input("tokens", indices("vocab", "batch"), "data")
    b.input("step", HOST_SCALAR, "host")
    b.input("w", WEIGHT, "param")
    b.input("w.m", WEIGHT, "state")
    unused = b.exp(x)
    b.exp(unused)
    lone = builder("lone")
    program = Program(
        "training",
        DIMS,
        (lone.finish([lone.constant(1.0)], ["out"]), b.finish([b.neg(x)], ["out"])),
        ("f",),
    )
    after = applied(DropUnused(), program)
    (function,) = after.functions
    assert [given.name for given in function.inputs] == ["x", "w", "w.m"]
    assert [op.kind for op in function.ops] == ["neg"]
    equal(program, after, "f")


def scanned(used: list[str]) -> Program:
    """A scan with three carries (x; c, which feeds itself; d, which x needs), and two outputs."""
    body = builder("body")
    x, c, d = (body.input(name, X) for name in "xcd")
    w = body.input("w", WEIGHT, "param")
    v = body.input("v", WEIGHT, "param")
    s = body.input("s", X)
    new_c = body.add(c, s)
    new_d = body.mul(d, d)
    y = body.one(Dot(("embed",)), x, w)
    z = body.one(Exp(), body.one(Dot(("embed",)), x, v))
    inner = body.finish([body.add(x, d), new_c, new_d, y, z], ["x", "c", "d", "y", "z"])
    top = builder("top", inner)
    x, c, d, s = (top.input(name, X, "data") for name in "xcds")
    w = top.input("w", tensor("f32", "layers", "embed", "ffn"), "param")
    v = top.input("v", tensor("f32", "layers", "embed", "ffn"), "param")
    made = top.emit(Scan("body", "layers", 3, 2), x, c, d, w, v, s)
    by_name = dict(zip("xcdyz", made, strict=True))
    entry = top.finish([by_name[name] for name in used], used)
    return Program("training", DIMS, (inner, entry), ("top",), parameters(entry))


def test_a_carry_that_only_feeds_itself_goes() -> None:
    before = scanned(["x"])
    after = applied(DropUnused(), before)
    assert [given.name for given in after.function("body").inputs] == ["x", "d"]
    assert after.function("body").outputs == ("x", "d")
    assert after.function("top").ops[0].attrs == Scan("body", "layers", 2, 0)
    assert [g.name for g in after.function("top").inputs] == ["x", "d", "w", "v"]
    equal(before, after, "top")


def test_stacked_results_go_with_what_they_alone_need() -> None:
    before = scanned(["y"])
    after = applied(DropUnused(), before)
    assert [given.name for given in after.function("body").inputs] == ["x", "d", "w"]
    assert after.function("body").outputs == ("x", "d", "y")
    equal(before, after, "top")


def test_everything_used_stays() -> None:
    before = scanned(["x", "c", "d", "y", "z"])
    assert applied(DropUnused(), before) == before


def test_a_body_serves_all_scans_that_run_it() -> None:
    before = scanned(["x"])
    entry = before.function("top")
    second = scanned(["c", "z"]).function("top")
    other = msgspec.structs.replace(second, name="other")
    both = msgspec.structs.replace(before.with_functions(entry, other), entries=("top", "other"))
    after = applied(DropUnused(), both)
    assert after.function("body").outputs == ("x", "c", "d", "z")
    equal(both, after, "top")
    equal(both, after, "other")


def test_whole_programs() -> None:
    for entry, before in (("model", model_program()), ("step", training_program())):
        after = applied(DropUnused(), before)
        assert "lone" not in [f.name for f in after.functions]
        assert after.function(entry) == before.function(entry)
        assert applied(DropUnused(), after) == after
        equal(before, after, entry)


def test_equations_stay_until_values_are_placed() -> None:
    before = model_program()
    assert "rate" in [f.name for f in applied(DropUnused(), before).functions]
    training = applied(DropUnused(), training_program())
    placed = msgspec.structs.replace(
        training.with_functions(before.function("rate")), level="sharded"
    )
    assert "rate" not in [f.name for f in applied(DropUnused(), placed).functions]
