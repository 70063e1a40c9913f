"""A placed program means what the unplaced one means, whatever the mesh and the directives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError, InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Function, Init, Parameter, Program
from fllmc.ir.settings import Shard
from fllmc.ir.text import print_program
from fllmc.ir.types import HOST_SCALAR, Axis, Dim, Mesh, Sizes, indices, tensor
from fllmc.ir.verify import faults, verify
from fllmc.passes.base import Context
from fllmc.passes.place import Place
from tests.ir.programs import arguments_for, programs
from tests.passes.place_programs import DIMS, FSDP, MEGATRON, SEQUENCE, arguments, llama, mesh

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)]
EMBED = Shard(("embed",), ("tensor",), elsewhere=True)
EVERYWHERE = (*SEQUENCE, replace(EMBED, axes=("data",)))
WARNED: list[Diagnostic] = []


def place(program: Program, shards: Sequence[Shard], on: Mesh) -> Program:
    """The placed program, verified."""
    placed = Place(tuple(shards)).run(program, Context(on, WARNED.append))
    verify(placed)
    return placed


def agree(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    """Equal but for rounding."""
    assert set(a) == set(b)
    for name in a:
        scale = max(1e-300, float(np.abs(a[name]).max(initial=0.0)))
        assert np.abs(a[name] - b[name]).max(initial=0.0) <= 1e-12 * scale, name


@pytest.fixture(scope="module")
def step() -> Program:
    return llama()


@pytest.fixture(scope="module")
def given_values(step: Program) -> dict[str, np.ndarray]:
    return arguments(step)


@pytest.fixture(scope="module")
def expected(step: Program, given_values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return evaluate(step, "step", given_values)


def test_the_step_written_by_hand_is_a_gradient(
    step: Program, given_values: dict[str, np.ndarray]
) -> None:
    """Finite differences of the loss; the update without momentum is along the gradient."""
    verify(step)
    still = {k: np.zeros_like(v) if k.endswith(".m") else v for k, v in given_values.items()}
    base = evaluate(step, "step", still)
    rng = np.random.default_rng(1)
    for name in ("embedding", "head", "final_norm.scale", "body.attn.wk", "body.mlp.gate"):
        slope = base[f"{name}.m"] / min(1.0, 0.1 / base["norm"])
        along = rng.standard_normal(slope.shape)
        ends = [
            evaluate(step, "step", {**still, name: still[name] + h * along})["loss"]
            for h in (-1e-5, 1e-5)
        ]
        assert (ends[1] - ends[0]) / 2e-5 == pytest.approx((slope * along).sum(), rel=1e-6)


@pytest.mark.parametrize(
    "shards",
    [MEGATRON, FSDP, SEQUENCE, (*SEQUENCE, FSDP[-1]), (*MEGATRON, EMBED), (*EVERYWHERE, FSDP[-1])],
    ids=["megatron", "fsdp", "sequence", "sequence-fsdp", "embed", "everywhere"],
)
@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_llama_step_is_the_same_on_every_mesh(
    step: Program,
    given_values: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    sizes: tuple[int, int],
    shards: Sequence[Shard],
) -> None:
    placed = place(step, shards, mesh(*sizes))
    agree(expected, evaluate(placed, "step", given_values))


def test_stored_placements_of_single_parameters(
    step: Program, given_values: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    on = Mesh((Axis("data", 2), Axis("fsdp", 2), Axis("tensor", 2)))
    shards = (
        Shard(("batch",), ("data", "fsdp")),
        MEGATRON[1],
        Shard(("embed",), ("fsdp",), "body.*"),
        Shard(("vocab",), ("fsdp",), "{embedding, head}"),
    )
    placed = place(step, shards, on)
    stored = {p.name: str(p.type) for p in placed.parameters}
    assert stored["embedding"] == "f32[vocab@(tensor, fsdp), embed]"
    assert stored["body.mlp.up"] == "f32[layers, embed@fsdp, ffn@tensor]"
    assert stored["final_norm.scale"] == "f32[embed]"
    agree(expected, evaluate(placed, "step", given_values))


def test_one_device_changes_nothing_but_the_level(step: Program) -> None:
    for on in (Mesh(), mesh(1, 1)):
        assert place(step, FSDP, on) == replace(step, level="sharded", mesh=on)


def test_every_dropped_collective_is_noticed(
    step: Program, given_values: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    """Plant the bug: use the operand of one collective instead of its result, claiming the type."""
    placed = place(step, FSDP, mesh(2, 2))
    moves = (ops.AllReduce, ops.ReduceScatter, ops.AllGather)
    sites = [
        (function.name, number)
        for function in placed.functions
        for number, op in enumerate(function.ops)
        if isinstance(op.attrs, moves)
    ]
    assert len(sites) > 40
    for name, number in sites[::3]:
        broken = without(placed, name, number)
        assert next(iter(faults(broken)), None) is not None, (name, number)
    lying = pretending(placed, "step", ops.AllReduce)
    with pytest.raises((InternalError, AssertionError)):
        agree(expected, evaluate(lying, "step", given_values))


def without(program: Program, name: str, number: int) -> Program:
    """The program with one op's result replaced by its operand wherever it is used."""
    function = program.function(name)
    dropped = function.ops[number]
    (old,), (new,) = dropped.results, dropped.operands
    changed = tuple(
        replace(op, operands=tuple(new if v == old else v for v in op.operands))
        for op in function.ops
    )
    results = tuple(new if v == old else v for v in function.results)
    return program.with_functions(replace(function, ops=changed, results=results))


def pretending(program: Program, name: str, kind: type[ops.AllReduce]) -> Program:
    """The program whose first all_reduce of a function is a stop that claims the closed type."""
    function = program.function(name)
    number = next(n for n, op in enumerate(function.ops) if isinstance(op.attrs, kind))
    changed = list(function.ops)
    changed[number] = replace(changed[number], attrs=ops.Stop())
    return program.with_functions(replace(function, ops=tuple(changed)))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Shard, ...]:
    """Directives over the dims of random programs; some don't suit the program."""
    first, second, *_ = draw(st.permutations(("batch", "seq", "embed", "ffn")))
    stored = draw(st.sampled_from(("x0", "x1", "*")))
    return draw(
        st.sampled_from(
            (
                (Shard((first,), ("data",)), Shard((second,), ("tensor",))),
                (Shard((first,), ("data", "tensor")),),
                (Shard((first,), ("tensor",)),),
                (Shard((first,), ("data",)), Shard((second,), ("tensor",), stored)),
                (Shard((first,), ("data",)), Shard((first,), ("tensor",), stored)),
                (Shard((first,), ("data",), stored), Shard((second,), ("tensor",), stored)),
                (Shard((first,), ("data",)), Shard((second,), ("data", "tensor"), elsewhere=True)),
                (Shard((first,), ("tensor",), elsewhere=True), Shard((second,), ("tensor",))),
                (
                    Shard((first,), ("data",), elsewhere=True),
                    Shard((second,), ("data", "tensor"), elsewhere=True),
                    Shard((first,), ("tensor",), stored),
                ),
            )
        )
    )


def with_parameters(program: Program) -> Program:
    """The program with two of its inputs made parameters, and a last output that updates one."""
    function = program.function("main")
    inputs = tuple(
        replace(given, role="param") if given.name in ("x0", "x1") else given
        for given in function.inputs
    )
    alike = [v for v in function.results if function.types[v] == function.types[0]]
    parameters = tuple(Parameter(f"x{n}", function.types[n], Init("normal", 1.0)) for n in range(2))
    changed = replace(
        function,
        inputs=inputs,
        results=(*function.results, alike[-1]),
        outputs=(*function.outputs, "x0"),
    )
    return replace(program.with_functions(changed), parameters=parameters)


@given(programs(), layouts(), st.integers(0, 99))
@settings(max_examples=200)
def test_random_programs_mean_the_same_on_a_mesh(
    program: Program, shards: tuple[Shard, ...], seed: int
) -> None:
    program = with_parameters(program)
    try:
        placed = place(program, shards, mesh(2, 2))
    except DiagnosticError:
        return  # two dims of a value on one axis, or an op that needs a dim whole
    values = arguments_for(program, seed)
    plain = evaluate(program, "main", values)
    finite = {k: v for k, v in plain.items() if np.isfinite(v).all()}
    found = evaluate(placed, "main", values)
    close(finite, {name: found[name] for name in finite})


def close(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    """Equal but for rounding that an ill-conditioned random program may enlarge."""
    for name in a:
        scale = max(1.0, float(np.abs(a[name]).max(initial=0.0)))
        assert np.abs(a[name] - b[name]).max(initial=0.0) <= 1e-9 * scale, name


def test_placing_twice_gives_the_same_bytes(step: Program) -> None:
    texts = [print_program(place(llama(), FSDP, mesh(2, 2))) for _ in range(2)]
    assert texts[0] == texts[1]


def mlp(weights: tuple[str, ...] = ("embed", "ffn")) -> Program:
    """One linear map with squared outputs: a loss, and its gradient as an output."""
    dims = {"batch": 4, "embed": 8, "ffn": 8, "vocab": 8}
    b = Builder("step", Sizes(dims))
    w = b.input("w", tensor("f32", *weights), "param")
    x = b.input("x", tensor("f32", "batch", "embed"), "data")
    b.path = "forward"
    y = b.one(ops.Dot(("embed",)), x, w)
    loss = b.sum(b.mul(y, y), ("batch", "ffn"))
    b.path = "update"
    grad = b.mul(b.one(ops.Dot(("batch",)), x, y), b.constant(2.0))
    new = b.sub(w, b.mul(grad, b.constant(0.1)))
    function = b.finish([loss, new], ["loss", "w"])
    sized = tuple(DimSize(name, size) for name, size in dims.items())
    parameter = Parameter("w", tensor("f32", *weights), Init("normal", 1.0))
    return Program("training", sized, (function,), ("step",), (parameter,))


def kinds_of(function: Function) -> list[str]:
    """The collectives of a function with their axes, in order."""
    moves = (ops.AllReduce, ops.AllGather, ops.ReduceScatter, ops.LocalSlice)
    return [
        f"{op.kind} {'+'.join(op.attrs.axes)}" for op in function.ops if isinstance(op.attrs, moves)
    ]


def test_a_stored_parameter_is_gathered_once_and_its_gradient_scattered() -> None:
    shards = (Shard(("batch",), ("data",)), Shard(("ffn",), ("data",), "w"))
    placed = place(mlp(), shards, mesh(4, 1))
    found = sorted(kinds_of(placed.function("step")))
    assert found == ["all_gather data", "all_reduce data", "reduce_scatter data"]
    x = np.random.default_rng(0).standard_normal((4, 8))
    values = {"w": np.ones((8, 8)), "x": x}
    agree(evaluate(mlp(), "step", values), evaluate(placed, "step", values))


def test_a_gather_moves_the_narrow_copy(step: Program) -> None:
    placed = place(step, FSDP, mesh(2, 1))
    body = placed.function("forward")
    gathered = [body.types[op.results[0]] for op in body.ops if isinstance(op.attrs, ops.AllGather)]
    assert [kind.dtype for kind in gathered if len(kind.dims) > 1] == ["bf16"] * 7


def test_gradients_are_scattered_in_the_dtype_they_are_summed_in(step: Program) -> None:
    placed = place(step, FSDP, mesh(2, 1))
    body = placed.function("backward")
    summed = [
        body.types[op.operands[0]] for op in body.ops if isinstance(op.attrs, ops.ReduceScatter)
    ]
    assert [kind.dtype for kind in summed] == ["f32"] * 9


def test_host_scalars_stay_numbers(step: Program) -> None:
    function = place(step, MEGATRON, mesh(2, 2)).function("step")
    assert function.types[function.input_number("rate")] == HOST_SCALAR


def test_random_numbers_and_positions_do_not_depend_on_the_mesh() -> None:
    b = Builder("main", Sizes(DIMS))
    seed = b.input("seed", HOST_SCALAR, "host")
    sample = b.input("sample", replace(indices("batch", "batch"), index=""), "data")
    noise = b.one(ops.Random(3, (Dim("batch"), Dim("embed"))), seed, sample)
    table = b.one(ops.Iota(Dim("ffn")))
    hot = b.one(
        ops.Take("ffn"),
        b.one(ops.Put(Dim("ffn")), table, b.one(ops.Fill(2.0, "f32", (Dim("ffn"),)))),
        table,
    )
    function = b.finish([noise, hot], ["noise", "hot"])
    sized = tuple(DimSize(name, size) for name, size in DIMS.items())
    program = Program("training", sized, (function,), ("main",))
    values = {"seed": 7.0, "sample": np.arange(4)}
    shards = (Shard(("batch",), ("data",)), Shard(("embed",), ("tensor",)))
    placed = place(program, shards, mesh(2, 2))
    agree(evaluate(program, "main", values), evaluate(placed, "main", values))


@pytest.mark.parametrize("shards", [MEGATRON, FSDP], ids=["megatron", "fsdp"])
def test_entries_that_share_bodies(step: Program, shards: Sequence[Shard]) -> None:
    """A body is placed once for each set of types that it is run with; entries keep their names."""
    both = replace(step, entries=("step", "micro"))
    placed = place(both, shards, mesh(2, 2))
    names = {function.name for function in placed.functions}
    assert names == {"step", "micro", "micro.2", "forward", "backward"} | (
        {"backward.2"} if shards is MEGATRON else set[str]()
    )
    values = arguments_for(both, 3, "micro")
    agree(evaluate(both, "micro", values), evaluate(placed, "micro", values))
