"""ZeRO: what is divided at each stage, what moves and when, and that numbers stay the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.settings import Shard, Zero
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.base import Context
from fllmc.passes.decisions import placements
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place import Place
from tests.oracle.judge_of_bugs import difference
from tests.oracle.techniques import alone, combined
from tests.passes.place_programs import MEGATRON, llama, mesh
from tests.passes.traffic import Traffic, traffic
from tests.specs.evaluated import evaluated_step

MICROBATCHES = 4
"""Of the technique `accumulate`."""


def sharded(*techniques: str, compute: str = "bf16", reduce: str = "f32") -> Program:
    """The sharded program of a small Llama with f32 parameters."""
    case = combined(techniques, "f32")
    text = case.text.replace("compute: f32", f"compute: {compute}")
    spec, _, _ = load("zero.fllm", text=text.replace("reduce: f32", f"reduce: {reduce}"))
    assert spec is not None
    cx, program = Context(parse_mesh(case.mesh, Mesh())[0], lambda _: None), spec.program
    for step in standard_pipeline(spec):
        if step.name == "coalesce":
            return program
        program = step.run(program, cx)
    raise AssertionError


def elements(program: Program) -> int:
    """Elements of all parameters, whole."""
    return sum(int(np.prod(program.sizes.shape(p.type))) for p in program.parameters)


def moved(program: Program, kind: str, dtype: str = "") -> list[Traffic]:
    """The tensors that the step moves over `fsdp` in this way."""
    return [
        t
        for t in traffic(program)
        if t.entry == "train" and t.kind == kind and "fsdp" in t.axes and t.type.dims
        if dtype in ("", t.type.dtype)
    ]


OTHERS = [
    more for count in range(4) for more in combinations(("data", "tensor", "accumulate"), count)
]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    one = alone(())
    return evaluated_step(one.text, one.mesh)


@pytest.mark.parametrize("more", OTHERS, ids=" ".join)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_is_that_of_one_device(
    stage: int, more: tuple[str, ...], expected: dict[str, np.ndarray]
) -> None:
    case = combined((*more, f"zero {stage}"))
    found = evaluated_step(case.text, case.mesh)
    assert difference(found, expected, 1e-11) == ""


@pytest.mark.parametrize("model", ["llama3_8b", "gpt2"])
@pytest.mark.parametrize(
    "names",
    [
        ("context ring", "zero 2"),
        ("context gather", "zero 1", "accumulate"),
        ("zero 3", "accumulate", "recompute"),
        ("zero 1", "accumulate", "frozen"),
        ("zero 2", "accumulate", "lora"),
        ("zero 3", "frozen"),
    ],
    ids=" + ".join,
)
def test_zero_goes_with_other_techniques(names: tuple[str, ...], model: str) -> None:
    case, one = combined(names, model=model), alone(names, model=model)
    wanted = evaluated_step(one.text, one.mesh)
    assert difference(evaluated_step(case.text, case.mesh), wanted, 1e-11) == ""


@pytest.mark.parametrize("more", [(), ("accumulate",)], ids=["at once", "in parts"])
@pytest.mark.parametrize("stage", [1, 2])
def test_parameters_are_gathered_once_in_the_compute_dtype(
    stage: int, more: tuple[str, ...]
) -> None:
    program = sharded(*more, f"zero {stage}")
    found = moved(program, "all_gather")
    assert {(t.function, t.calls, t.type.dtype) for t in found} == {("train", 1, "bf16")}
    assert sum(t.total for t in found) == 2 * elements(program)


def test_stage_3_gathers_a_layer_forward_and_backward_for_each_microbatch() -> None:
    program = sharded("zero 3", "accumulate")
    found = moved(program, "all_gather")
    layers = program.sizes.size("layers")
    of_layers = [t for t in found if t.function.startswith("layer.")]
    assert {t.calls for t in of_layers} == {MICROBATCHES * layers}
    stack = sum(int(np.prod(program.sizes.shape(p.type))) for p in program.parameters if p.stack)
    assert sum(t.total for t in of_layers) == 2 * 2 * stack * MICROBATCHES
    rest = [t for t in found if t not in of_layers]
    assert sum(t.total for t in rest) == 2 * (elements(program) - stack) * MICROBATCHES


@pytest.mark.parametrize("more", [(), ("data",)], ids=["alone", "hybrid"])
@pytest.mark.parametrize(("stage", "times"), [(1, 1), (2, MICROBATCHES), (3, MICROBATCHES)])
def test_gradients_are_scattered_each_microbatch_or_once(
    stage: int, times: int, more: tuple[str, ...]
) -> None:
    program = sharded(*more, "accumulate", f"zero {stage}")
    found = moved(program, "reduce_scatter")
    assert sum(t.total for t in found) == 4 * elements(program) * times
    assert moved(program, "all_reduce") == []
    shares = [t for t in traffic(program) if t.axes == ("data",) and t.type.dims]
    assert {(t.kind, t.calls) for t in shares} <= {("all_reduce", 1)}
    assert sum(t.total for t in shares) == (4 * elements(program) // 2 if more else 0)


def test_without_zero_each_gradient_is_reduced_once() -> None:
    program = sharded("data", "accumulate")
    found = [t for t in traffic(program) if t.type.dims and t.entry == "train"]
    assert {(t.kind, t.calls) for t in found} == {("all_reduce", 1)}
    assert sum(t.total for t in found) == 4 * elements(program)


@pytest.mark.parametrize("more", [(), ("accumulate",)], ids=["at once", "in parts"])
@pytest.mark.parametrize("names", [("zero 1",), ("zero 2",), ("zero 3",), ("data",)], ids=str)
@pytest.mark.parametrize("reduce", ["bf16", "f32"])
def test_ranks_sum_gradients_in_the_precision_that_is_asked_for(
    names: tuple[str, ...], more: tuple[str, ...], reduce: str
) -> None:
    program = sharded(*names, *more, reduce=reduce)
    sums = [
        t
        for t in traffic(program)
        if t.entry == "train" and t.kind != "all_gather" and len(t.type.dims) > 1
    ]
    assert sums and {t.type.dtype for t in sums} == {reduce}


@pytest.mark.parametrize(("stage", "parts"), [(1, 1), (2, 2), (3, 2)])
def test_sums_of_gradients_are_divided_from_stage_2(stage: int, parts: int) -> None:
    program = sharded("accumulate", f"zero {stage}")
    micro = program.function("micro")
    kinds = zip(micro.inputs, micro.types, strict=False)
    sums = [kind for given, kind in kinds if given.name.startswith("sum.grad.")]
    held = sum(program.sizes.local_bytes(kind) for kind in sums)
    assert held * parts == 4 * elements(program)
    assert all(("fsdp" in kind.partial) == (stage == 1) for kind in sums)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_state_is_divided_at_every_stage(stage: int) -> None:
    program = sharded(f"zero {stage}", "data")
    train = program.function("train")
    kinds = zip(train.inputs, train.types, strict=False)
    stored = [k for given, k in kinds if given.role in ("param", "state")]
    assert sum(map(program.sizes.local_bytes, stored)) == 12 * elements(program) // 2
    used = sum(
        program.sizes.local_bytes(kind)
        for given, kind in zip(train.inputs, train.types, strict=False)
        if given.role == "param"
    )
    assert used == 4 * elements(program) // 2


def test_what_is_frozen_stays_whole_and_never_moves_below_stage_3() -> None:
    for stage in (1, 2):
        program = sharded(f"zero {stage}", "frozen", "accumulate")
        frozen = [p for p in program.parameters if not p.trainable]
        assert frozen and not any(p.type.axes for p in frozen)
        paths = {p.name for p in frozen}
        assert paths.isdisjoint(t.path for t in moved(program, "all_gather"))
        trained = sum(
            int(np.prod(program.sizes.shape(p.type))) for p in program.parameters if p.trainable
        )
        assert sum(t.total for t in moved(program, "all_gather")) == 2 * trained


def placed(zeros: Sequence[Zero], on: Mesh, found: list[Diagnostic]) -> Program:
    """The program written by hand, with these directives."""
    return Place(MEGATRON, zero=tuple(zeros)).run(llama(), Context(on, found.append))


def test_the_largest_free_dim_is_divided() -> None:
    on = Mesh((Axis("data", 2), Axis("fsdp", 4), Axis("tensor", 2)))
    program = Place(MEGATRON[1:], zero=(Zero(3, ("data", "fsdp")),)).run(
        llama(), Context(on, lambda _: None)
    )
    stored = {p.name: str(p.type) for p in program.parameters}
    assert stored["body.mlp.up"] == "f32[layers, embed@(data, fsdp), ffn@tensor]"
    assert stored["embedding"] == "f32[vocab@tensor, embed@(data, fsdp)]"
    assert stored["body.attn_norm.scale"] == "f32[layers, embed@(data, fsdp)]"


def test_what_the_axes_do_not_divide_stays_whole_and_the_decision_says_so() -> None:
    on = Mesh((Axis("data", 1), Axis("fsdp", 3)))
    zeros = (Zero(2, ("fsdp",), "body.*"),)
    program = placed(zeros, on, [])
    stored = {p.name: str(p.type) for p in program.parameters}
    assert stored["body.attn_norm.scale"] == "f32[layers, embed]"
    assert stored["body.mlp.up"] == "f32[layers, embed, ffn@fsdp]"
    spec = combined(("zero 2",))
    loaded, _, _ = load("zero.fllm", text=spec.text)
    assert loaded is not None
    found = {d.subject: d for d in placements(program, replace(loaded.schedule, zero=zeros))}
    scale, up = found["body.attn_norm.scale"], found["body.mlp.up"]
    assert "leaves it whole: no dim of it is a multiple of 3" in scale.reason
    assert "gathered to `f32[layers, embed, ffn]` once a step" in up.choice
    assert "`zero 2 over fsdp in body.*` puts ffn on fsdp" in up.reason


def test_of_two_directives_the_last_holds() -> None:
    on = Mesh((Axis("data", 2), Axis("fsdp", 2)))
    zeros = (Zero(3, ("fsdp",)), Zero(1, ("data", "fsdp"), "body.*.mlp.*"))
    stored = {p.name: str(p.type) for p in placed(zeros, on, []).parameters}
    assert stored["body.mlp.up"] == "f32[layers, embed, ffn@(data, fsdp)]"
    assert stored["head"] == "f32[embed, vocab@fsdp]"


def span(line: int) -> Span:
    return Span("s.fllm", 10 * line, 10 * line + 5, line, 3, line, 8)


def test_an_axis_that_divides_the_parameter_already_is_refused_with_both_lines() -> None:
    with pytest.raises(DiagnosticError) as raised:
        shards = (MEGATRON[0], Shard(MEGATRON[1].dims, ("tensor",), span=span(4)))
        zeros = (Zero(1, ("tensor",), span=span(7)),)
        Place(shards, zero=zeros).run(llama(), Context(mesh(1, 2), lambda _: None))
    found = raised.value.diagnostics[0]
    assert found.code == "E0311"
    assert {found.span.line, *(label.span.line for label in found.secondary())} == {4, 7}


def test_a_selector_that_matches_nothing_is_refused() -> None:
    with pytest.raises(DiagnosticError) as raised:
        placed((Zero(1, ("data",), "body.*.mlp.upp", span(3)),), mesh(2, 1), [])
    (found,) = raised.value.diagnostics
    assert (found.code, found.span) == ("E0313", span(3))
    assert "`body.*.mlp.up`" in " ".join(found.helps())


def test_an_axis_that_the_mesh_lacks_is_told_and_nothing_is_divided() -> None:
    told: list[Diagnostic] = []
    program = placed((Zero(2, ("fsdp",), span=span(3)),), mesh(2, 1), told)
    assert [(each.code, each.span) for each in told] == [("W0315", span(3))]
    assert "`zero 2 over fsdp`" in told[0].message()
    assert not any(p.type.axes for p in program.parameters)


def test_reading_what_moves_tells_gathers_from_scatters() -> None:
    found = Counter(t.kind for t in traffic(sharded("zero 2")) if t.entry == "evaluate")
    assert found["all_gather"] == 12 and "reduce_scatter" not in found
