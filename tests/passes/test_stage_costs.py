"""What stages cost on a target, and what is chosen by it."""

from __future__ import annotations

import pytest
from msgspec import structs

from fllmc.frontend.targets import load_target
from fllmc.ir.evaluate import evaluate
from fllmc.ir.evaluate_stages import evaluate_stages
from fllmc.ir.program import Program
from fllmc.ir.settings import Pipeline, Shard
from fllmc.ir.target import Target
from fllmc.ir.types import Axis, Mesh
from fllmc.ir.verify import verify
from fllmc.passes.stages.casts import weight_casts
from fllmc.passes.stages.costs import fused_seconds, link_rate, stage_costs, unit_costs
from fllmc.passes.stages.cut_stages import Cut, entry_body, stage_programs
from fllmc.passes.stages.decisions import stage_decisions
from fllmc.passes.stages.directives import Asked
from tests.oracle.small_specs import small_spec
from tests.passes.pipelined import CPU, arguments, plan_of, sharded, table

PIPE = Mesh((Axis("pipe", 2),))
MICROS = 4
DEEP = small_spec("llama", "f64", MICROS).replace("layers = 3", "layers = 8")


@pytest.fixture(scope="module")
def program() -> Program:
    return sharded(DEEP, PIPE)


def cut_by(program: Program, order: Pipeline, target: Target) -> tuple[Cut, Asked]:
    """The small Llama in two ranks' stages."""
    asked = Asked("pipe", ("layers",), order, Shard(("layers",), ("pipe",)))
    return stage_programs(program, asked, MICROS, target), asked


def chunks_of(cut: Cut) -> int:
    """How many stages a rank has."""
    assert cut.work is not None
    return cut.work.timetable.stages // cut.work.timetable.ranks


def test_fast_links_have_more_stages_that_compute_what_one_device_does(program: Program) -> None:
    fast = structs.replace(CPU, link_gbps=1e6, network_gbps=1e6)
    cut, asked = cut_by(program, Pipeline("auto", 2, memory=2.0), fast)
    assert chunks_of(cut) == 2
    for stage in cut.programs:
        verify(stage)
    whole = sharded(DEEP, Mesh())
    given = arguments(whole, "train")
    wanted = evaluate(whole, "train", given)
    got = evaluate_stages(cut.programs, "pipe", "train", given)
    assert set(got) == set(wanted)
    assert max(abs(got[name] - wanted[name]).max() for name in wanted) < 1e-11
    (first, *_) = stage_decisions(cut, asked, fast)
    assert ", 2 stages a rank" in first.choice
    assert "as reckoned for cpu" in first.reason


def test_slow_links_have_fewer_stages(program: Program) -> None:
    slow = structs.replace(CPU, link_gbps=1e-3, network_gbps=1e-3)
    assert chunks_of(cut_by(program, Pipeline("auto", 2, memory=2.0), slow)[0]) == 1


def test_a_search_of_a_spec_tells_its_bound(program: Program) -> None:
    cut, asked = cut_by(program, Pipeline("auto", exact=True), CPU)
    (first, *_) = stage_decisions(cut, asked, CPU)
    assert "no order that keeps no more makes that less than" in first.reason


def test_layers_move_off_a_stage_whose_ends_are_slow_on_the_target(program: Program) -> None:
    """The head is bound by products, so it weighs more where products are slow."""
    _, body = entry_body(program, "train", plan_of(table(2, MICROS)))
    weights: list[float] = []
    for flops in (1e6, 1e-3):
        target = structs.replace(CPU, f32_tflops=flops, bf16_tflops=flops)
        groups, (layers,) = unit_costs(program, body, target)
        assert len(layers) == 8 and len(set(layers)) == 1
        weights.append(groups[-1] / layers[0])
    assert weights[0] != pytest.approx(weights[1], rel=0.1)


def test_elementwise_ops_take_the_time_of_what_comes_in_and_goes_out(program: Program) -> None:
    function = program.function("train")
    times = [fused_seconds(program, function, [op], CPU) for op in function.ops]
    assert fused_seconds(program, function, function.ops, CPU) <= sum(times) * (1 + 1e-12)


def test_collectives_inside_stages_cost_time() -> None:
    both = Mesh((Axis("tensor", 2), Axis("pipe", 2)))
    placed = sharded(small_spec("llama", "f64", MICROS), both)
    free = structs.replace(CPU, link_gbps=1e9, network_gbps=1e9)
    plan = plan_of(table(2, MICROS))
    _, body = entry_body(placed, "train", plan)
    assert unit_costs(placed, body, CPU)[1][0][0] > 1.01 * unit_costs(placed, body, free)[1][0][0]


def test_links_between_nodes_are_the_network() -> None:
    h100 = load_target("h100")
    inner = Mesh((Axis("data", 8), Axis("pipe", 4), Axis("tensor", 2)))
    outer = Mesh((Axis("pipe", 4), Axis("tensor", 8)))
    assert link_rate(inner, "pipe", h100) == 450e9
    assert link_rate(outer, "pipe", h100) == 50e9


def test_handing_on_takes_the_time_of_its_bytes(program: Program) -> None:
    (first, _) = cut_by(program, Pipeline("1f1b"), CPU)
    work = first.work
    assert work is not None
    rows = work.timetable.rows
    gap = work.begins[rows[1][0]] - work.ends[rows[0][0]]
    sizes = program.sizes
    carry = sizes.size("batch") * sizes.size("seq") * sizes.size("embed") * 8
    assert gap == pytest.approx(carry / (CPU.link_gbps * 1e9))
    assert stage_costs(program, [], CPU).transfer == 0.0


def test_casts_of_weights_are_counted_and_told() -> None:
    """Each of two layers and the embedding is cast in each of four forwards, layers also back."""
    text = small_spec("llama", "f32", MICROS).replace("compute: f32", "compute: bf16")
    cut, asked = cut_by(sharded(text, PIPE), Pipeline("1f1b"), CPU)
    (rank, _) = cut.programs
    assert rank.sizes.size("layers") == 2
    sizes = {p.name: program_elements(rank, p.name) for p in rank.parameters}
    embedding = sizes.pop("embedding")
    found = weight_casts(rank, "train", CPU)
    assert found.bytes == 2 * (sum(sizes.values()) + embedding)
    again = (2 * MICROS - 1) * sum(sizes.values()) + (MICROS - 1) * embedding
    assert found.seconds == pytest.approx(6 * again / (CPU.memory_gbps * 1e9))
    told = [d for d in stage_decisions(cut, asked, CPU) if d.subject == "casts of weights"]
    assert len(told) == 1 and "a rank's copies take" in told[0].rejected
    plain, asked = cut_by(sharded(DEEP, PIPE), Pipeline("1f1b"), CPU)
    assert all(d.subject != "casts of weights" for d in stage_decisions(plain, asked, CPU))


def program_elements(program: Program, name: str) -> int:
    """How many elements a rank has of an input of `train`."""
    function = program.function("train")
    at = [given.name for given in function.inputs].index(name)
    return program.sizes.local_elements(function.types[at])
