"""The collectives of a training step: which, over what, how many, how many bytes."""

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.program import Program
from fllmc.ir.settings import Shard
from fllmc.ir.span import Span
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.place import Place
from fllmc.passes.place.summary import decisions
from tests.passes.place_programs import (
    DIMS,
    FSDP,
    LAYER,
    MEGATRON,
    PARAMETERS,
    SEQUENCE,
    llama,
    mesh,
)
from tests.passes.traffic import Traffic, traffic


def moved(shards: Sequence[Shard], on: Mesh) -> tuple[Traffic, ...]:
    """The collectives of the step on a mesh."""
    return traffic(placed(shards, on))


def placed(shards: Sequence[Shard], on: Mesh) -> Program:
    return Place(tuple(shards)).run(llama(), Context(on, lambda _: None))


def large(found: Sequence[Traffic], function: str) -> list[tuple[str, tuple[str, ...], str]]:
    """The collectives of a function that move more than scalars and rows of scalars."""
    return [
        (t.kind, t.axes, t.path)
        for t in found
        if t.function == function and not set(t.type.names) <= {"batch", "seq"}
    ]


def test_a_layer_has_two_reductions_forward_and_two_backward() -> None:
    found = moved(MEGATRON, mesh(2, 2))
    pair = [("all_reduce", ("tensor",), "attn"), ("all_reduce", ("tensor",), "mlp")]
    assert large(found, "forward") == pair
    assert large(found, "backward") == pair[::-1]


def test_a_layer_parallel_over_the_sequence_gathers_twice_and_scatters_twice() -> None:
    """Megatron-LM's g and its conjugate (Korthikanti et al. 2022, figure 5), and nothing else.

    Backward, the input of a matrix is gathered once more for the gradient of its weights.
    """
    found = moved(SEQUENCE, mesh(2, 2))
    whole = DIMS["batch"] // 2 * DIMS["seq"] * DIMS["embed"] * 2
    layer = [t for t in found if t.function in ("forward", "backward")]
    assert {(t.bytes, t.calls, t.axes) for t in layer} == {
        (whole, DIMS["microbatches"] * DIMS["layers"], ("tensor",))
    }
    half = ["all_gather", "reduce_scatter"]
    assert [t.kind for t in layer if t.function == "forward"] == half * 2
    assert [t.kind for t in layer if t.function == "backward"] == ["all_gather", *half] * 2


def test_what_is_kept_is_divided_where_tensor_parallelism_keeps_it_whole() -> None:
    body = placed(SEQUENCE, mesh(2, 2)).function("forward")
    kinds = dict(zip(body.outputs, (str(k) for k in body.signature.results), strict=True))
    assert kinds["x"] == kinds["h"] == "bf16[batch@data, seq@tensor, embed]"
    assert all("@tensor" in kind for kind in kinds.values())
    whole = placed(MEGATRON, mesh(2, 2)).function("forward")
    assert "bf16[batch@data, seq, embed]" in map(str, whole.signature.results)


def test_the_gradient_of_a_norm_is_summed_over_the_sequence_after_all_microbatches() -> None:
    found = [t for t in moved(SEQUENCE, mesh(2, 2)) if t.type.names[-1:] == ("embed",)]
    scales = [t for t in found if t.function == "step" and len(t.type.dims) < 3]
    assert [str(t.type.names) for t in scales].count("('layers', 'embed')") == 2
    assert {t.axes for t in scales if "vocab" not in t.type.names} == {("data", "tensor")}


def test_embedding_and_loss_are_parallel_over_the_vocabulary() -> None:
    found = [t for t in moved(MEGATRON, mesh(2, 2)) if t.function == "micro"]
    assert [(t.kind, t.axes, str(t.type)) for t in found] == [
        ("all_reduce", ("tensor",), "bf16[batch@data, seq, embed]+tensor"),
        ("all_reduce", ("tensor",), "f32[batch@data, seq]^tensor"),
        ("all_reduce", ("tensor",), "f32[batch@data, seq]+tensor"),
        ("all_reduce", ("tensor",), "f32[batch@data, seq]+tensor"),
        ("all_reduce", ("tensor",), "bf16[batch@data, seq, embed]+tensor"),
    ]


def test_each_gradient_is_reduced_once_over_data_after_all_microbatches() -> None:
    found = [t for t in moved(MEGATRON, mesh(2, 2)) if t.axes == ("data",)]
    assert {t.function for t in found} == {"step"}
    tensors = Counter(t.type.names for t in found)
    assert tensors.pop(()) == 1  # the loss
    assert tensors == Counter(PARAMETERS.values())
    assert all(t.calls == 1 for t in found)


def test_the_norm_is_one_scalar_for_each_way_of_being_divided() -> None:
    found = [t for t in moved(MEGATRON, mesh(2, 2)) if t.path == "clip" and not t.type.dims]
    assert [t.axes for t in found] == [("tensor",)]
    found = [t for t in moved(FSDP, mesh(2, 2)) if t.path == "clip" and not t.type.dims]
    assert sorted(t.axes for t in found) == [("data",), ("tensor",)]


def test_pure_data_parallel_moves_gradients_alone() -> None:
    found = moved(MEGATRON, mesh(4, 1))
    assert all((t.kind, t.axes, t.function) == ("all_reduce", ("data",), "step") for t in found)
    assert len(found) == len(PARAMETERS) + 1


def test_stored_shards_are_gathered_by_layer_and_gradients_scattered() -> None:
    found = moved(FSDP, mesh(2, 1))
    assert Counter(t.kind for t in found if t.function == "forward") == {"all_gather": len(LAYER)}
    assert Counter(t.kind for t in found if t.function == "backward") == {
        "all_gather": len(LAYER),
        "reduce_scatter": len(LAYER),
    }
    assert {t.calls for t in found if t.function == "backward"} == {4}
    after = [t for t in found if t.function == "step"]
    assert [(t.kind, str(t.type)) for t in after] == [("all_reduce", "f32[]+data")] * 2


def test_accumulators_are_stored_like_their_parameter_and_open_over_the_rest() -> None:
    program = placed((*MEGATRON, Shard(("embed",), ("tensor",), "{final_norm.scale}")), mesh(2, 2))
    body = program.function("micro")
    kinds = {g.name: str(k) for g, k in zip(body.inputs, body.types, strict=False)}
    assert kinds["acc.body.mlp.up"] == "f32[layers, embed, ffn@tensor]+data"
    assert kinds["acc.final_norm.scale"] == "f32[embed@tensor]+data"
    assert kinds["loss"] == "f32[]+data"


def test_bytes_and_calls() -> None:
    by_function = {(t.function, t.path): t for t in moved(MEGATRON, mesh(2, 2))}
    one = by_function[("forward", "mlp")]
    rows = DIMS["batch"] // 2 * DIMS["seq"]
    assert one.bytes == rows * DIMS["embed"] * 2
    assert one.calls == DIMS["microbatches"] * DIMS["layers"]
    assert one.total == one.bytes * one.calls
    fsdp = [t for t in moved(FSDP, mesh(2, 1)) if t.function == "backward"]
    gate = [t for t in fsdp if set(t.type.names) == {"embed", "ffn"}]
    whole = DIMS["embed"] * DIMS["ffn"]
    assert {(t.kind, t.bytes) for t in gate} == {
        ("all_gather", whole * 2),
        ("reduce_scatter", whole * 4),
    }


def test_decisions_name_the_directive() -> None:
    line = Span("a.fllm", 5, 9, 3, 1, 3, 5)
    shards = (MEGATRON[0], replace(MEGATRON[1], span=line), *FSDP[2:])
    found = {d.parameter: d for d in decisions(placed(shards, mesh(2, 2)), shards)}
    down = found["body.mlp.down"]
    assert str(down.stored) == "f32[layers, ffn@tensor, embed@data]"
    assert str(down.compute) == "f32[layers, ffn@tensor, embed]"
    assert [(r.dim, r.axis, r.stored) for r in down.reasons] == [
        ("ffn", "tensor", False),
        ("embed", "data", True),
    ]
    assert down.reasons[0].span == line
    assert down.reasons[1].directive == "shard embed over data in *"


def test_the_same_move_of_a_value_is_made_once() -> None:
    for function in placed(FSDP, mesh(2, 2)).functions:
        steps = [
            (op.operands, op.attrs)
            for op in function.ops
            if isinstance(op.attrs, (*ops.COLLECTIVES, ops.LocalSlice))
        ]
        assert len(set(steps)) == len(steps)
