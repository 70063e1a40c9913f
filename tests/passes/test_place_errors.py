"""What is said about directives that do not suit the mesh or the program."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.render import render
from fllmc.ir.settings import Shard, Zero
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.base import Context
from fllmc.passes.place import Place
from tests.passes.place_programs import llama, mesh


def line(number: int) -> Span:
    """A place in line `number` of a schedule."""
    return Span("s.fllm", 10 * number, 10 * number + 5, number, 3, number, 8)


def shard(dims: str, axes: str, selector: str = "", at: int = 1) -> Shard:
    """A directive in line `at`."""
    return Shard(tuple(dims.split()), tuple(axes.split()), selector, line(at))


def refuse(program: Program, on: Mesh, *shards: Shard) -> Sequence[Diagnostic]:
    """The diagnostics that the directives lead to."""
    with pytest.raises(DiagnosticError) as raised:
        Place(shards).run(program, Context(on, lambda _: None))
    return raised.value.diagnostics


def text(diagnostic: Diagnostic) -> str:
    """All words of a diagnostic."""
    places = [f"{label.span.line}: {label.text}" for label in diagnostic.secondary()]
    parts = (diagnostic.message(), diagnostic.primary(), *places, *diagnostic.notes())
    return "\n".join((*parts, *diagnostic.helps()))


@pytest.fixture(scope="module")
def program() -> Program:
    spanned = llama()
    functions = [
        replace(f, ops=tuple(replace(op, span=line(90)) for op in f.ops)) for f in spanned.functions
    ]
    return spanned.with_functions(*functions)


def test_an_axis_that_does_not_divide_lists_sizes_for_all_its_dims(program: Program) -> None:
    (found,) = refuse(program, mesh(1, 8), shard("ffn vocab embed", "tensor"))[:1]
    assert found.code == "E0310" and found.span == line(1)
    assert "axis `tensor` of size 8 does not divide `ffn` of size 12" in text(found)
    assert "size 1, 2 or 4 divides all of ffn=12, vocab=12, embed=8" in text(found)


def test_the_batch_is_divided_by_all_its_axes_together(program: Program) -> None:
    on = Mesh((Axis("data", 2), Axis("fsdp", 4)))
    (found,) = refuse(program, on, shard("batch", "data fsdp"))
    assert "axis `fsdp` of size 4 does not divide `batch` of size 4" in text(found)
    assert "`fsdp` of size 1 or 2 divides `batch`" in text(found)


def test_an_indivisible_stored_placement(program: Program) -> None:
    (found,) = refuse(program, mesh(3, 1), shard("embed", "data", "*"))
    assert found.code == "E0310"
    assert "size 1, 2, 4 or 8 divides `embed`" in text(found)


def test_an_axis_on_two_dims_of_a_value(program: Program) -> None:
    found = refuse(program, mesh(1, 2), shard("embed", "tensor"), shard("ffn", "tensor", at=2))
    assert [d.code for d in found] == ["E0311"]
    assert "`tensor` would divide both `embed` and `ffn` of parameter `body.mlp.gate`" in text(
        found[0]
    )
    assert found[0].span == line(2) and found[0].secondary()[0].span == line(1)


def test_an_axis_on_two_dims_of_a_stored_parameter(program: Program) -> None:
    shards = (shard("heads kv_heads ffn", "tensor"), shard("embed", "tensor", "body.*", at=2))
    found = refuse(program, mesh(1, 2), *shards)
    assert {d.code for d in found} == {"E0311"}
    assert found[0].span == line(2) and found[0].secondary()[0].span == line(1)


def test_a_dim_on_one_axis_twice(program: Program) -> None:
    shards = (shard("batch", "data"), shard("batch", "data", at=2))
    found = refuse(program, mesh(2, 1), *shards)
    assert {d.code for d in found} == {"E0311"}
    assert "`batch` and `batch` again" in text(found[0])


@pytest.mark.parametrize("dim", ["head_dim", "layers"])
def test_a_dim_that_an_op_needs_whole(program: Program, dim: str) -> None:
    found = [d for d in refuse(program, mesh(1, 2), shard(dim, "tensor")) if d.code == "E0312"]
    assert len(found) == 1
    assert f"`{dim}` can't be divided over `tensor`" in text(found[0])
    assert found[0].secondary()[0].span == line(90)


def test_an_axis_on_one_dim_both_always_and_elsewhere(program: Program) -> None:
    twice = replace(shard("vocab", "tensor", at=2), elsewhere=True)
    found = refuse(program, mesh(1, 2), shard("vocab ffn", "tensor"), twice)
    assert [d.code for d in found] == ["E0311"]
    assert found[0].span == line(2) and found[0].secondary()[0].span == line(1)


@pytest.mark.parametrize(
    "first",
    [
        shard("ffn", "tensor"),
        shard("embed", "tensor", "*"),
        replace(shard("embed", "tensor"), elsewhere=True),
    ],
    ids=["shard", "stored", "elsewhere"],
)
def test_zero_over_an_axis_that_another_directive_uses_is_told_once(
    program: Program, first: Shard
) -> None:
    zero = Zero(3, ("tensor",), span=line(2))
    with pytest.raises(DiagnosticError) as raised:
        Place((first,), zero=(zero,)).run(program, Context(mesh(1, 2), lambda _: None))
    (found,) = raised.value.diagnostics
    assert found.code == "E0311"
    assert found.span == line(2) and found.secondary()[0].span == line(1)
    assert "take `tensor` out of one of them" in text(found)


def test_a_stack_does_not_yield(program: Program) -> None:
    found = refuse(program, mesh(1, 2), replace(shard("layers", "tensor"), elsewhere=True))
    assert [d.code for d in found] == ["E0312"] and found[0].span == line(1)


def test_an_axis_that_does_not_divide_a_dim_elsewhere(program: Program) -> None:
    elsewhere = replace(shard("seq", "tensor", at=2), elsewhere=True)
    found = refuse(program, mesh(1, 12), shard("ffn vocab", "tensor"), elsewhere)
    assert [d.code for d in found] == ["E0310"] and found[0].span == line(2)
    assert "size 1, 2 or 4 divides all of ffn=12, vocab=12, seq=4" in text(found[0])


def test_heads_that_yield_apart_from_key_heads(program: Program) -> None:
    found = refuse(program, mesh(1, 2), replace(shard("heads", "tensor"), elsewhere=True))
    assert [d.code for d in found] == ["E0314"]


def test_a_dim_that_attention_needs_whole_names_its_path(program: Program) -> None:
    found = refuse(program, mesh(1, 2), shard("head_dim", "tensor"))
    assert "rope at `attn` needs it whole" in text(found[0])


def test_a_sequence_that_does_not_make_two_stretches_for_each_rank(program: Program) -> None:
    on = Mesh((Axis("context", 4),))
    (found,) = refuse(program, on, shard("seq", "context"))
    assert found.code == "E0325"
    assert "`seq` of size 4 does not make two stretches for each of 4 ranks" in text(found)
    assert "`seq` of size 8 works\n`context` of size 1 or 2 works" in text(found)
    assert found.span == line(1) and found.secondary()[0].span == line(90)


def test_too_few_heads_to_exchange(program: Program) -> None:
    long = replace(
        program, dims=tuple(replace(d, size=8) if d.name == "seq" else d for d in program.dims)
    )
    on = Mesh((Axis("context", 8), Axis("tensor", 2)))
    shards = (shard("heads kv_heads", "tensor", at=2), shard("seq", "context"))
    with pytest.raises(DiagnosticError) as raised:
        Place(shards, "exchange").run(long, Context(on, lambda _: None))
    (found,) = raised.value.diagnostics
    assert found.code == "E0326"
    assert "`heads` of size 8 can't be divided over `tensor` and `context` of 16" in text(found)
    assert found.span == line(1) and found.secondary()[0].span == line(90)


def test_a_stack_can_not_be_stored_in_parts(program: Program) -> None:
    (found,) = refuse(program, mesh(2, 1), shard("layers", "data", "body.*"))
    assert found.code == "E0312" and found.span == line(1)


def test_a_selector_of_nothing_names_the_nearest(program: Program) -> None:
    (found,) = refuse(program, mesh(2, 1), shard("embed", "data", "body.*.mlp.gat"))
    assert found.code == "E0313"
    assert "did you mean `body.*.mlp.gate`?" in text(found)


def test_heads_apart(program: Program) -> None:
    found = refuse(program, mesh(1, 2), shard("heads", "tensor"))
    assert [d.code for d in found] == ["E0314"]
    assert "`heads` is on `tensor`, and `kv_heads` is not" in text(found[0])
    assert "`shard (heads, kv_heads) over tensor` works with `tensor` of size 1, 2 or 4" in text(
        found[0]
    )
    found = refuse(program, mesh(2, 2), shard("heads", "tensor"), shard("kv_heads", "data", at=2))
    assert "they are on tensor and on data" in text(found[0])


def test_key_heads_fewer_than_ranks_are_told_to_be_copied(program: Program) -> None:
    told: list[Diagnostic] = []
    Place((shard("heads kv_heads", "tensor"),)).run(program, Context(mesh(1, 8), told.append))
    assert [d.code for d in told] == ["W0327"] and told[0].span == line(1)
    assert "`kv_heads` of size 4 stays whole: axis `tensor` of size 8 does not divide" in text(
        told[0]
    )


def test_an_axis_that_the_mesh_lacks_is_one_warning(program: Program) -> None:
    told: list[Diagnostic] = []
    shards = (shard("batch", "data fsdp"), shard("embed", "fsdp", "*", at=2))
    Place(shards).run(program, Context(mesh(2, 1), told.append))
    assert [d.code for d in told] == ["W0315"]
    assert "no axis `fsdp`, so `batch`, `embed` stay undivided on it" in text(told[0])
    told.clear()
    Place(shards).run(program, Context(Mesh(), told.append))
    assert told == []


def test_dims_that_the_program_lacks_are_ignored(program: Program) -> None:
    shards = (shard("batch experts", "data"),)
    found = Place(shards).run(program, Context(mesh(2, 1), lambda _: None))
    assert str(found.function("forward").types[0]) == "bf16[batch@data, seq, embed]"


def test_all_of_them_render(program: Program) -> None:
    shards = (shard("ffn", "tensor"), shard("embed", "data", "nothing", at=2))
    shown = str(render(refuse(program, mesh(5, 5), *shards), {}))
    assert "E0310" in shown and "E0313" in shown
