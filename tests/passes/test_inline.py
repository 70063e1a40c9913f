"""inline: no calls are left, paths are nested, numbers are the same."""

from fllmc.ir.ops import Call
from fllmc.passes.inline import Inline
from tests.passes.stack_programs import applied, equal, model_program


def test_flattens_bodies_and_entries() -> None:
    before = model_program()
    after = applied(Inline(), before)
    assert not [op for f in after.functions for op in f.ops if isinstance(op.attrs, Call)]
    paths = [op.path for op in after.function("layer").ops]
    assert paths == ["norm", "mlp.up", "mlp.silu.gate", "mlp.silu.gate", "mlp.down", "mlp"]
    equal(before, after, "model")


def test_keeps_what_later_passes_look_up() -> None:
    after = applied(Inline(), model_program())
    assert [f.name for f in after.functions] == ["layer", "model", "rate"]
    assert after.function("rate") == model_program().function("rate")


def test_a_second_time_changes_nothing() -> None:
    once = applied(Inline(), model_program())
    assert applied(Inline(), once) == once
