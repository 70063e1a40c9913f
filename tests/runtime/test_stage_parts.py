"""Checkpoints of a pipelined run hold what those of one device hold, every element once."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from fllmc.driver import compile_spec
from fllmc.ir.plan import Plan
from fllmc.runtime.parts import expected, lasting_parts, parameter_count
from tests.oracle.small_specs import small_spec


def plan_of(folder: Path, model: str, mesh: str, *lines: str) -> Plan:
    """The plan of a small spec."""
    path = folder / "small.fllm"
    path.write_text(small_spec(model, "f32", 4, "\n  ".join(lines)))
    return compile_spec(str(path), mesh=mesh).plan


@pytest.mark.parametrize("order", ["1f1b", "zb_v"])
@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_each_element_has_one_owner(tmp_path: Path, model: str, order: str) -> None:
    lines = ("shard layers over pipe", f"pipeline: {order}", "zero 3 over data")
    plan = plan_of(tmp_path, model, "data=2,pipe=2", *lines)
    whole = plan_of(tmp_path, model, "1")
    assert expected(plan) == expected(whole)
    assert parameter_count(plan) == parameter_count(whole)
    owned: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for rank in range(4):
        for part in lasting_parts(plan, rank):
            if part.owned:
                owned.setdefault(part.name, []).append((part.offsets, part.local))
    assert sorted(owned) == sorted(expected(plan))
    for name, parts in owned.items():
        _, shape = expected(plan)[name]
        assert len(set(parts)) == len(parts)
        assert sum(prod(local) for _, local in parts) == prod(shape)


def test_a_tied_parameter_is_held_by_both_its_stages(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "gpt", "pipe=2", "shard layers over pipe")
    parts = [{part.name: part.owned for part in lasting_parts(plan, rank)} for rank in range(2)]
    assert parts[0]["embedding"] and not parts[1]["embedding"]
    assert not any(name in parts[1] for name in parts[0] if name.startswith("body.0"))
