"""One rank's arena: as large as planned, filled the same on every mesh, fed its own part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.plan import ALIGNMENT, Plan
from fllmc.runtime.checkpoint.boxes import Box, cover_fault
from fllmc.runtime.data.documents import plain
from fllmc.runtime.data.windows import Windows
from fllmc.runtime.executor import Executor
from fllmc.runtime.feeding import Feeder
from fllmc.runtime.initialise import initialise, view_of
from fllmc.runtime.parts import expected, lasting_parts, offsets_of, parameter_count
from tests.runtime.small_run import Made, made


class NoOne:
    """Stands for a communicator where nothing is communicated."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"no {name} expected")


def executor_of(run: Made, rank: int = 0) -> Executor:
    nobody: Any = NoOne()
    return Executor(run.plan, run.source, rank, nobody)


def initial(run: Made) -> dict[str, torch.Tensor]:
    """Parameters and states as all ranks together begin with them."""
    whole = {n: torch.full(shape, torch.nan) for n, (_, shape) in expected(run.plan).items()}
    for rank in range(run.plan.program.mesh.size):
        executor = executor_of(run, rank)
        parts = lasting_parts(run.plan, rank)
        initialise(run.plan, executor, parts)
        for part in parts:
            whole[part.name][part.slices] = view_of(part, executor)
    return whole


def test_allocates_what_is_planned(tmp_path: Path) -> None:
    run = made(tmp_path)
    executor = executor_of(run)
    assert executor.allocated_bytes == run.plan.arena_bytes + ALIGNMENT
    assert executor.arena.numel() == run.plan.arena_bytes
    assert executor.arena.data_ptr() % ALIGNMENT == 0
    for stored in run.plan.stored:
        assert executor.tensor(stored.name).data_ptr() % ALIGNMENT == 0


def test_a_plan_for_several_ranks_needs_a_communicator(tmp_path: Path) -> None:
    run = made(tmp_path, "1x2")
    with pytest.raises(InternalError, match="communicator"):
        Executor(run.plan, run.source)


@pytest.mark.parametrize("mesh", ["2x1", "1x2", "2x2"])
def test_begins_the_same_on_every_mesh(tmp_path: Path, mesh: str) -> None:
    alone, divided = initial(made(tmp_path)), initial(made(tmp_path, mesh))
    assert alone.keys() == divided.keys()
    assert [name for name in alone if not torch.equal(alone[name], divided[name])] == []
    assert alone["body.1.attn.wq"].std() > 0
    assert not torch.equal(alone["body.0.attn.wq"], alone["body.1.attn.wq"])


@pytest.mark.parametrize("mesh", ["", "2x2"])
def test_owned_parts_cover_every_tensor_once(tmp_path: Path, mesh: str) -> None:
    plan = made(tmp_path, mesh).plan
    boxes: dict[str, list[Box]] = {name: [] for name in expected(plan)}
    for rank in range(plan.program.mesh.size):
        for part in lasting_parts(plan, rank):
            if part.owned:
                boxes[part.name].append(Box(part.offsets, part.local))
    faults = {name: cover_fault(expected(plan)[name][1], found) for name, found in boxes.items()}
    assert set(faults.values()) == {None}


def test_counts_parameters(tmp_path: Path) -> None:
    plan = made(tmp_path).plan
    shapes = [shape for name, (_, shape) in expected(plan).items() if "#" not in name]
    assert parameter_count(plan) == sum(int(np.prod(shape)) for shape in shapes)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("mesh", ["", "2x2", "4x1"])
def test_ranks_are_fed_the_global_batch(tmp_path: Path, mesh: str, microbatches: int) -> None:
    plan = made(tmp_path, mesh, microbatches).plan
    run = Made(plan, made(tmp_path, mesh, microbatches).source, tmp_path)
    windows = Windows(plain((np.arange(1000) % 251).astype(np.uint8)), plan.data.seq, 3)
    wanted = windows.batch(24, plan.data.batch)
    for field in ("tokens", "targets"):
        found = _whole_input(plan, run, field, windows)
        assert found.reshape(wanted.tokens.shape).tolist() == getattr(wanted, field).tolist()


def _whole_input(plan: Plan, run: Made, field: str, windows: Windows) -> torch.Tensor:
    stored = next(s for s in plan.stored if s.name == field)
    sizes = plan.program.sizes
    whole = torch.full(sizes.shape(stored.type), -1)
    for rank in range(plan.program.mesh.size):
        executor = executor_of(run, rank)
        Feeder(plan, executor, "train", rank).fill(24, windows.batch)
        part = executor.tensor(field)
        starts = offsets_of(stored.type, sizes, rank)
        cut = [slice(o, o + n) for o, n in zip(starts, part.shape, strict=True)]
        whole[tuple(cut)] = part
    return whole
