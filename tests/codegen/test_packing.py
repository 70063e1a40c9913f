"""What collectives copy beside moving is what cannot be avoided, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fllmc.codegen.packing import packed_bytes
from fllmc.ir.ops import Coalesced
from fllmc.ir.plan import Collective, Plan
from tests.codegen.test_buckets import compiled


def coalesced(plan: Plan, kind: str) -> Iterator[tuple[Collective, int]]:
    """The joined collectives of a kind in a training step, with what packing all would copy."""
    for each in plan.collectives:
        function = plan.program.function(each.function)
        op = function.ops[each.op]
        if each.entry == "train" and each.kind == kind and isinstance(op.attrs, Coalesced):
            apart = packed_bytes(op, function, plan.program.sizes, lambda a, b: False)
            yield each, 2 * apart if kind == "all_reduce" else apart


@pytest.mark.parametrize("techniques", [("data",), ("data", "accumulate"), ("data", "tensor")])
def test_gradients_are_summed_over_ranks_where_they_lie(
    tmp_path: Path, techniques: tuple[str, ...]
) -> None:
    plan = compiled(tmp_path, *techniques)
    grads = {bucket.bytes for bucket in plan.buckets if bucket.holds == "grad"}
    found = [(each, apart) for each, apart in coalesced(plan, "all_reduce") if each.bytes in grads]
    assert len(found) == len(grads)
    for each, apart in found:
        assert each.copied == 0 < apart


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
def test_a_layer_is_copied_once(tmp_path: Path, kind: str) -> None:
    plan = compiled(tmp_path, "zero 3", "accumulate", precision="bf16")
    found = [(each, apart) for each, apart in coalesced(plan, kind) if "layer" in each.function]
    assert found
    for each, apart in found:
        assert each.copied == each.bytes < apart
