"""What frozen parameters cost, read off plans, equals closed formulas; and the figures can fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import frozen as seven_b
from fllmc.codegen.frozen import costs, frozen_lines
from fllmc.codegen.report import report_html
from fllmc.driver import compile_spec
from fllmc.ir.plan import Frozen, Plan
from tests.oracle.small_specs import small_spec

Total = Callable[[Frozen], int]


@lru_cache
def planned(text: str, mesh: str) -> Plan:
    """The plan of a spec's text."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.fllm"
        path.write_text(text)
        return compile_spec(str(path), mesh).plan


def seven(stored: str = seven_b.WHOLE, bits: int = 16) -> Frozen:
    """The figures of the 7B on eight ranks."""
    found = planned(seven_b.spec(stored, bits), f"fsdp={seven_b.RANKS}").frozen
    assert found is not None
    return found


def total(found: Frozen, field: str) -> int:
    """One figure of all frozen parameters together."""
    return sum(getattr(group, field) for group in found.groups)


def test_two_bytes_for_each_frozen_parameter_and_nothing_beside() -> None:
    found = seven()
    assert total(found, "elements") == seven_b.PARAMETERS
    assert total(found, "stored") == 2 * seven_b.PARAMETERS
    assert total(found, "beside") == total(found, "gradients") == 0


def test_whole_frozen_parameters_do_not_move() -> None:
    found = seven()
    assert total(found, "moved") == total(found, "calls") == 0
    updates = 4 * seven_b.UPDATES  # their gradients in f32, reduced once
    assert updates <= found.moved < updates + 1024
    assert found.full_moved > 4 * seven_b.PARAMETERS


def test_divided_frozen_parameters_are_stored_and_moved_in_the_compute_dtype() -> None:
    found = seven(seven_b.DIVIDED)
    assert total(found, "stored") * seven_b.RANKS == 2 * seven_b.PARAMETERS
    assert total(found, "beside") == total(found, "gradients") == 0
    square = 2 * seven_b.EMBED**2
    norm = 2 * seven_b.EMBED
    # All matrices of a stack forward and backward, less those of queries, keys and values in the
    # first layer, and its norm is needed again; embedding, head and last norm once.
    stack = 2 * seven_b.LAYERS * (2 * seven_b.PER_LAYER + 2 * norm) - 3 * square
    assert total(found, "moved") == stack + 2 * 2 * seven_b.EMBED * seven_b.VOCAB + norm


@pytest.mark.parametrize(("bits", "stage"), [(4, 1), (8, 2)])
def test_quantised_maps_take_their_bits_and_a_scale_a_block_and_do_not_move(
    bits: int, stage: int
) -> None:
    found = seven(f"zero {stage} over fsdp", bits)
    norms = 2 * (seven_b.PARAMETERS - seven_b.MAPS)
    assert total(found, "elements") == seven_b.PARAMETERS
    assert (total(found, "stored") - norms) * 8 * 64 == seven_b.MAPS * (bits * 64 + 32)
    assert total(found, "beside") == total(found, "gradients") == 0
    assert total(found, "moved") == total(found, "calls") == 0
    whole = seven(f"zero {stage} over fsdp")
    assert (found.moved, found.kept) == (whole.moved, whole.kept)
    assert (found.forward, found.backward) == (whole.forward, whole.backward)


@pytest.mark.parametrize(("bits", "stored"), [(8, seven_b.DIVIDED), (4, "zero 3 over fsdp")])
def test_divided_quantised_maps_are_stored_and_moved_as_codes(bits: int, stored: str) -> None:
    found, plain = seven(stored, bits), seven(stored)
    norms = 2 * (seven_b.PARAMETERS - seven_b.MAPS)
    assert total(found, "stored") * 8 == seven_b.stored_bytes(bits)
    # Norms move as before: twice in each layer but the first, whose own is needed again, and once.
    moved_norms = 2 * norms - 2 * seven_b.EMBED
    ratio = (bits * 64 + 32, 16 * 64)
    moved = total(found, "moved") - moved_norms, total(plain, "moved") - moved_norms
    assert moved[0] * ratio[1] == moved[1] * ratio[0]
    assert found.kept == plain.kept


@pytest.mark.parametrize("stored", [seven_b.WHOLE, seven_b.DIVIDED])
def test_work_is_what_the_formula_gives(stored: str) -> None:
    found = seven(stored)
    assert found.forward == seven_b.forward()
    assert found.backward == seven_b.backward()
    plain = 2 * seven_b.TOKENS * seven_b.MATRICES
    assert found.full_forward == plain + seven_b.ATTENTION
    assert found.full_backward == 2 * plain + seven_b.ATTENTION * 5 // 2


def test_the_same_measures_show_what_training_costs() -> None:
    found = seven()
    assert total(found, "full_stored") == 2 * seven_b.PARAMETERS
    assert total(found, "full_beside") == 10 * seven_b.PARAMETERS
    assert total(found, "full_gradients") == 4 * seven_b.PARAMETERS


def adapted(model: str, line: str, microbatches: int = 2) -> str:
    """A small spec in bf16 with an adapter."""
    text = small_spec(model, "bf16", microbatches).replace("params: bf16", "params: f32")
    name = "llama3_8b" if model == "llama" else "gpt2"
    adapter = f"adapter changed on {name} {{\n  {line}\n}}\n\ntrain run: changed"
    return text.replace(f"train run: {name}", adapter)


@pytest.mark.parametrize("mesh", ["1", "2x2"])
@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_each_frozen_parameter_is_free(model: str, mesh: str) -> None:
    plan = planned(adapted(model, "freeze *\n  tune body.*.attn.wo"), mesh)
    assert plan.frozen is not None
    for group in plan.frozen.groups:
        assert group.beside == group.gradients == group.moved == group.calls == 0, group.name
        assert 0 < group.stored == group.full_stored
        assert group.full_beside > 0 and group.full_gradients > 0, group.name
    assert plan.frozen.backward < plan.frozen.full_backward


def test_what_is_kept_shrinks_with_what_trains() -> None:
    """What slopes read is kept for input gradients too; without these, nothing is."""
    last = planned(adapted("gpt", "freeze *\n  tune body.*.mlp.down_bias"), "1").frozen
    head = planned(adapted("llama", "freeze *\n  tune final_norm"), "1").frozen
    assert last is not None and head is not None
    assert 0 < last.kept <= last.full_kept
    assert head.kept == 0 < head.full_kept


def test_what_trains_costs_by_the_same_measure() -> None:
    plan = planned(adapted("llama", "freeze body"), "2x2")
    trained = [p.name for p in plan.program.parameters if p.trainable]
    assert trained
    for name, cost in costs(plan, trained).items():
        assert cost.beside > 0 and cost.gradients > 0, name


def test_the_report_tells() -> None:
    plan = planned(adapted("llama", "freeze *\n  tune final_norm"), "2x2")
    lines = list(frozen_lines(plan))
    assert any(line.startswith("body.mlp.down ") for line in lines)
    page = report_html("small", plan, {})
    assert all(line in page for line in lines)
