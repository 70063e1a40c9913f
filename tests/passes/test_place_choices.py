"""Where collectives stand is a cheapest choice: held against all choices, one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, product
from math import prod

import numpy as np
import pytest

from fllmc.driver import compile_spec
from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Decision
from fllmc.ir.program import DimSize, Program
from fllmc.ir.settings import Shard
from fllmc.ir.types import Axis, Mesh, Sizes, tensor
from fllmc.ir.verify import verify
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place import Place
from fllmc.passes.place.cheapest import options, settle
from fllmc.passes.place.choices import Instance, Move
from fllmc.passes.place.classes import Classes
from fllmc.passes.place.instances import Known, instance_of
from fllmc.passes.place.reading import MOVES, read
from fllmc.passes.place.reshard import step_cost
from fllmc.passes.place.solve import solve
from fllmc.passes.place.sums import with_sums
from fllmc.passes.runner import run_pipeline
from tests.ir.programs import arguments_for
from tests.passes.place_programs import FSDP, MEGATRON, SEQUENCE, llama, mesh

DIMS = {"batch": 4, "seq": 8, "embed": 4, "ffn": 8}
ONE_AXIS = Mesh((Axis("tensor", 2),))
FOUR = Mesh((Axis("tensor", 4),))
TWO_AXES = Mesh((Axis("data", 2), Axis("tensor", 2)))
UNARY = (ops.Neg(), ops.Silu(), ops.Cast("bf16"), ops.Cast("f32"), ops.ReduceSum(("embed",)))
BINARY = (ops.Add(), ops.Mul(), ops.Sub(), ops.AddN())
INPUTS = (
    ("batch", "seq", "embed"),
    ("batch", "seq", "ffn"),
    ("embed", "ffn"),
    ("ffn", "embed"),
    ("embed",),
)


def elsewhere(dim: str, axis: str) -> Shard:
    return Shard((dim,), (axis,), elsewhere=True)


LAYOUTS = (
    (Shard(("ffn",), ("tensor",)), elsewhere("seq", "tensor")),
    (Shard(("ffn",), ("tensor",)),),
    (Shard(("ffn",), ("tensor",)), elsewhere("embed", "tensor")),
    (elsewhere("seq", "tensor"), elsewhere("embed", "tensor")),
    (Shard(("batch",), ("data",)), Shard(("ffn",), ("tensor",)), elsewhere("seq", "tensor")),
    (Shard(("batch",), ("data",)), elsewhere("seq", "tensor"), elsewhere("ffn", "tensor")),
    (Shard(("ffn",), ("data",)), elsewhere("seq", "data"), elsewhere("embed", "tensor")),
)


def small_program(source: random.Random) -> Program:
    """Six ops of which collectives follow; all values that nobody uses are results."""
    b = Builder("main", Sizes(DIMS))
    for number, dims in enumerate(INPUTS):
        b.input(f"x{number}", tensor("f32", *dims))
    used: set[int] = set()
    for _ in range(6):
        attrs, operands = source.choice(applicable(b))
        b.emit(attrs, *operands)
        used.update(operands)
    made = range(len(INPUTS), len(b.types))
    results = [value for value in made if value not in used]
    function = b.finish(results, [f"y{value}" for value in results])
    sized = tuple(DimSize(*pair) for pair in DIMS.items())
    return Program("training", sized, (function,), ("main",))


def drawn(count: int, seed: int) -> Iterator[tuple[Program, tuple[Shard, ...], Mesh]]:
    """Random programs with directives that suit them, and meshes."""
    source = random.Random(seed)
    while count:
        program, shards = small_program(source), source.choice(LAYOUTS)
        on = source.choice((ONE_AXIS, FOUR, TWO_AXES))
        try:
            Place(shards).run(program, Context(on, lambda _: None))
        except DiagnosticError:
            continue
        count -= 1
        yield program, shards, on


def applicable(b: Builder) -> list[tuple[ops.AnyAttrs, tuple[int, ...]]]:
    """All ops that fit the values so far; contractions and the newest values stand more often."""
    found: list[tuple[ops.AnyAttrs, tuple[int, ...]]] = []
    newest = len(b.types) - 1
    for one, two in product(range(len(b.types)), repeat=2):
        kinds = b.types[one], b.types[two]
        shared = [name for name in kinds[0].names if name in kinds[1].names]
        tries: list[tuple[ops.AnyAttrs, tuple[int, ...]]] = [
            (ops.Dot((name,)), (one, two)) for name in shared if name in ("embed", "ffn")
        ]
        if kinds[0].names == kinds[1].names:
            tries += [(attrs, (one, two)) for attrs in BINARY]
            tries += [(ops.AddN(), (one, two, newest))] * (kinds[0].names == b.types[-1].names)
        if one == two:
            tries += [(attrs, (one,)) for attrs in UNARY]
        for attrs, operands in tries:
            try:
                attrs.infer([b.types[v] for v in operands], ops.Env(b.sizes, {}))
            except ops.TypeRuleError:
                continue
            often = (1 + 3 * (newest in operands)) * (1 + 2 * (len(kinds[0].dims) == 3))
            found += [(attrs, operands)] * often
    return found


def instances(program: Program, shards: Sequence[Shard], on: Mesh) -> Iterator[Instance]:
    """The choices of each function as the rules place it."""
    ruled, layout = Place(tuple(shards)).ruled(program, Context(on, lambda _: None))
    classes, known = Classes(ruled, layout), Known()
    for function in ruled.functions:
        reading = with_sums(read(function))
        ways = options(reading, ruled, layout, classes)
        yield instance_of(reading, ways, ruled.sizes, known).instance


def brute_force(instance: Instance) -> Fraction:
    """The least cost over all options and all sets of moves."""
    tried: dict[object, Fraction | None] = {}
    best: Fraction | None = None
    for options_taken in product(*instance.steps):
        total: Fraction | None = Fraction(0)
        for number, stream in enumerate(instance.streams):
            source = next(f for o in options_taken for v, f in o.gives if v == number)
            wanted = frozenset(f for o in options_taken for v, f in o.takes if v == number)
            key = number, source, wanted
            if key not in tried:
                tried[key] = least_moves(stream.moves, source, wanted)
            cost = tried[key]
            total = None if total is None or cost is None else total + cost
        if total is not None and (best is None or total < best):
            best = total
    assert best is not None
    return best


def least_moves(moves: Sequence[Move], source: int, wanted: frozenset[int]) -> Fraction | None:
    """The cheapest set of moves that reaches all wanted forms, of all sets, smallest first."""
    best: Fraction | None = None
    ends = {move.end for move in moves} | {source}
    for count in range(min(len(moves), len(ends) - 1) + 1):
        for chosen in combinations(moves, count):
            have = {source}
            for _ in chosen:
                have |= {move.end for move in chosen if move.begin in have}
            cost = sum((move.cost for move in chosen), Fraction(0))
            if wanted <= have and (best is None or cost < best):
                best = cost
    return best


def test_no_choice_is_cheaper_than_the_solution_of_random_programs() -> None:
    counted: Counter[str] = Counter()
    for program, shards, on in drawn(300, seed=20):
        (instance,) = instances(program, shards, on)
        space = prod(len(step) for step in instance.steps)
        found, best = solve(instance), brute_force(instance)
        assert found.cost == best <= found.ruled
        assert found.bound == pytest.approx(float(best), rel=1e-6, abs=1e-6)
        counted["programs"] += 1
        counted["choices"] += space
        counted["with a choice"] += space > 1
        counted["with collectives"] += found.ruled > 0
        counted["rules dearer"] += found.cost < found.ruled

        counted["proved by relaxation"] += found.relaxed
    print(dict(counted))
    assert counted["with a choice"] > 100
    assert counted["rules dearer"] > 5


def test_chosen_placements_mean_the_same_and_cost_what_is_said() -> None:
    for program, shards, on in drawn(150, seed=21):
        ruled, layout = Place(shards).ruled(program, Context(on, lambda _: None))
        settled = settle(ruled, layout)
        verify(settled.program)
        values = arguments_for(program, 5)
        plain, found = (evaluate(p, "main", values) for p in (program, settled.program))
        for name, wanted in plain.items():
            scale = max(1.0, float(np.abs(wanted).max()))
            assert np.abs(found[name] - wanted).max() <= 1e-12 * scale
        for name, solution in settled.solutions.items():
            assert sent(settled.program, name) == solution.cost
            assert sent(ruled, name) == solution.ruled


def sent(program: Program, name: str) -> Fraction:
    """The bytes that a rank sends in one run of a function, by collectives whose result is used."""
    function = program.function(name)
    used, total = set(function.results), Fraction(0)
    for op in reversed(function.ops):
        if used.intersection(op.results):
            used.update(op.operands)
            if isinstance(op.attrs, MOVES):
                kinds = (function.types[op.operands[0]], function.types[op.results[0]])
                total += step_cost(op.attrs, *kinds, program.sizes)
    return total


def chain(length: int) -> Program:
    """An MLP after another, with what is between them."""
    b = Builder("main", Sizes(DIMS))
    x = b.input("x", tensor("f32", "batch", "seq", "embed"))
    for number in range(length):
        up = b.input(f"up{number}", tensor("f32", "embed", "ffn"))
        down = b.input(f"down{number}", tensor("f32", "ffn", "embed"))
        hidden = b.one(ops.Silu(), b.one(ops.Dot(("embed",)), x, up))
        x = b.neg(b.one(ops.Dot(("ffn",)), hidden, down))
    function = b.finish([x], ["y"])
    return Program(
        "training", tuple(DimSize(*pair) for pair in DIMS.items()), (function,), ("main",)
    )


@pytest.mark.parametrize("shards", LAYOUTS)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_relaxation_is_enough_on_chains(length: int, shards: tuple[Shard, ...]) -> None:
    for on in (ONE_AXIS, FOUR, TWO_AXES):
        for instance in instances(chain(length), shards, on):
            found = solve(instance)
            assert found.relaxed
            assert found.bound == pytest.approx(float(found.cost), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shards", [MEGATRON, FSDP, SEQUENCE, (*SEQUENCE, FSDP[-1])])
def test_a_llama_step_is_proved_to_move_least(shards: tuple[Shard, ...]) -> None:
    told: list[Decision] = []
    placed = Place(shards).run(llama(), Context(mesh(2, 2), lambda _: None, told.append))
    assert [each.subject for each in told] == ["what step moves"]
    assert "no placement that the directives allow moves less" in told[0].reason
    assert placed == Place(shards).run(llama(), Context(mesh(2, 2), lambda _: None))


def low_rank() -> Program:
    """A row-parallel map with a low-rank update beside it."""
    b = Builder("main", Sizes({**DIMS, "rank": 2}))
    x = b.input("x", tensor("f32", "batch", "seq", "ffn"))
    w, a, c = (
        b.input(name, tensor("f32", *dims))
        for name, dims in (
            ("w", ("ffn", "embed")),
            ("a", ("ffn", "rank")),
            ("c", ("rank", "embed")),
        )
    )
    update = b.one(ops.Dot(("rank",)), b.one(ops.Dot(("ffn",)), x, a), c)
    y = b.add(b.one(ops.Dot(("ffn",)), x, w), update)
    function = b.finish([y], ["y"])
    sized = tuple(DimSize(*pair) for pair in {**DIMS, "rank": 2}.items())
    return Program("training", sized, (function,), ("main",))


def test_an_open_sum_goes_through_the_second_matrix_of_a_low_rank_update() -> None:
    """The rules close it before that, and once more behind the sum; one reduction is enough."""
    shards = (Shard(("ffn",), ("tensor",)),)
    told: list[Decision] = []
    placed = Place(shards).run(low_rank(), Context(FOUR, lambda _: None, told.append))
    assert [op.kind for op in placed.function("main").ops].count("all_reduce") == 1
    ruled, _ = Place(shards).ruled(low_rank(), Context(FOUR, lambda _: None))
    assert [op.kind for op in ruled.function("main").ops].count("all_reduce") == 2
    assert told[0].rejected == "collectives where the rules put them: 384 B more, in `main`"
    values = arguments_for(low_rank(), 1)
    assert np.allclose(
        evaluate(placed, "main", values)["y"],
        evaluate(low_rank(), "main", values)["y"],
        rtol=1e-12,
        atol=1e-12,
    )


def test_terms_that_are_open_over_different_axes_join_on_the_way() -> None:
    """By the rules each is closed by itself; here what is open over one axis more joins first."""
    b = Builder("main", Sizes(DIMS))
    given = (("batch", "ffn", "embed"), ("ffn", "embed", "seq"), ("batch", "ffn"), ("ffn", "seq"))
    u, v, p, q = (b.input(f"x{n}", tensor("f32", *dims)) for n, dims in enumerate(given))
    c = b.input("c", tensor("f32", "batch", "seq"))
    both, one = b.one(ops.Dot(("ffn", "embed")), u, v), b.one(ops.Dot(("ffn",)), p, q)
    function = b.finish([b.one(ops.AddN(), both, one, c)], ["y"])
    sized = tuple(DimSize(*pair) for pair in DIMS.items())
    program = Program("training", sized, (function,), ("main",))
    place = Place((Shard(("ffn",), ("data",)), Shard(("embed",), ("tensor",))))
    ruled, _ = place.ruled(program, Context(TWO_AXES, lambda _: None))
    placed = place.run(program, Context(TWO_AXES, lambda _: None))
    whole = 4 * DIMS["batch"] * DIMS["seq"]
    assert sent(ruled, "main") == Fraction(5, 2) * whole
    assert sent(placed, "main") == 2 * whole
    values = arguments_for(program, 2)
    wanted = evaluate(program, "main", values)["y"]
    assert np.allclose(evaluate(placed, "main", values)["y"], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "on"),
    [
        ("llama3_8b", "data=8,tensor=4"),
        ("llama3_8b", "data=2,fsdp=16,tensor=8"),
        ("llama3_405b_pipeline", "pipe=16,data=128,tensor=8"),
        ("tiny_moe", "data=2,tensor=2"),
    ],
)
def test_models_that_ship_are_proved_to_move_least(model: str, on: str) -> None:
    spec, _ = load_spec(model, {})
    cx = Context(parse_mesh(on, spec.mesh)[0], lambda _: None)
    passes = standard_pipeline(spec)
    at = next(number for number, each in enumerate(passes) if isinstance(each, Place))
    before, _ = run_pipeline(spec.program, passes[:at], cx, lambda: 0.0)
    place = passes[at]
    assert isinstance(place, Place)
    ruled, layout = place.ruled(before, cx)
    settled = settle(ruled, layout)
    assert len(settled.solutions) > 4
    for name, solution in settled.solutions.items():
        assert sent(settled.program, name) == solution.cost <= solution.ruled == sent(ruled, name)
        assert solution.bound == pytest.approx(float(solution.cost), rel=1e-6)


def test_a_plan_says_what_an_entry_moves_and_that_it_is_least() -> None:
    plan = compile_spec("tiny_llama", "data=2,tensor=2").plan
    found = {each.subject: each for each in plan.decisions}["what train moves"]
    assert found.choice.startswith("a rank that runs all of it sends ")
    assert "no placement that the directives allow moves less, as its relaxation" in found.reason
    assert found.rejected.startswith("moving values anew for each use: ")
