"""A run's checkpoints: what is saved of it, and how it goes on from there on any mesh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint.changes import HeldRows
from fllmc.runtime.checkpoint.load import open_checkpoint, open_latest
from fllmc.runtime.checkpoint.manifest import Position
from fllmc.runtime.checkpoint.save import Gather, Shard, save
from fllmc.runtime.coding import blocks_of, fill_coded
from fllmc.runtime.data.dataset import Dataset
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import view_of
from fllmc.runtime.parts import Part, absent, expected, rows_held
from fllmc.runtime.run_errors import ResumeMismatch
from fllmc.runtime.run_folder import CHECKPOINTS


class Progress(msgspec.Struct, frozen=True):
    """How far a run is: steps done and samples consumed."""

    step: int = 0
    samples: int = 0


def facts_of(plan: Plan, dataset: Dataset) -> dict[str, str | int]:
    """What a resumed run must agree on besides the seed."""
    return {**dataset.digest(), "seq": plan.data.seq, "data_seed": plan.data.seed}


def save_run(
    folder: Path,
    plan_hash: str,
    seed: int,
    facts: dict[str, str | int],
    done: Progress,
    executor: Executor,
    parts: Sequence[Part],
    *,
    rank: int,
    gather: Gather,
    keep: int,
) -> Path:
    """Commit a checkpoint of everything that lasts. All ranks call this together."""
    position = Position(done.step, done.samples, plan_hash, seed, facts)
    kinds, rows = expected(executor.plan), rows_held(executor.plan)
    shards = [
        Shard(
            part.name,
            view_of(part, executor),
            part.shape,
            part.offsets,
            part.owned,
            kinds[part.name][0],
            _ends(part, rows),
        )
        for part in parts
    ]
    return save(folder / CHECKPOINTS, position, shards, rank=rank, gather=gather, keep=keep)


def _ends(part: Part, rows: HeldRows) -> tuple[int, ...]:
    """The ends of the stretches of its tensor's rows that no rank holds."""
    if part.name not in rows:
        return ()
    return tuple(end for gap in absent(part.shape[0], rows[part.name]) for end in gap)


class Resumed(msgspec.Struct, frozen=True):
    """Where a run goes on, and on rank 0 what was skipped and changed to get there."""

    done: Progress
    path: Path
    plan: str
    warnings: tuple[Diagnostic, ...]
    entered: bool = False
    """Whether it is where a stage of the run begins, with data of its own."""


def restore_run(
    folder: Path,
    plan: Plan,
    facts: dict[str, str | int],
    executor: Executor,
    parts: Sequence[Part],
    *,
    rank: int,
    gather: Gather,
) -> Resumed:
    """Fill the arena from the newest whole checkpoint. Rank 0 verifies it; all read their parts.

    Parameters are converted to the plan's dtype, quantised or dequantised, states that the
    checkpoint lacks begin at their initial values, and what differs otherwise is refused
    (`Checkpoint.changes` and `.faults`).
    """
    warnings: tuple[Diagnostic, ...] = ()
    name = ""
    if rank == 0:
        latest, wanted = open_latest(folder / CHECKPOINTS), expected(plan)
        name = latest.checkpoint.path.name
        latest.checkpoint.require(wanted)
        entering = 0 < plan.train.begin == latest.checkpoint.position.step
        own = {} if entering else facts
        _require_same(name, latest.checkpoint.position, plan.train.seed, own)
        changed = latest.checkpoint.changes(wanted, rows_held(plan))
        warnings = (*latest.skipped, *changed.warnings(name))
    path = folder / CHECKPOINTS / str(gather(name)[0])
    with open_checkpoint(path, hashes=False) as checkpoint:
        stored = set(checkpoint.names())
        for part in parts:
            out = view_of(part, executor)
            if part.stored.role == "state":
                out.fill_(part.stored.initial)
            if part.name in stored:
                checkpoint.read_into(part.name, out, part.slices)
            elif part.stored.role == "state":
                continue
            elif checkpoint.coded(part.name):
                out.copy_(checkpoint.read_value(part.name, part.slices))
            else:
                parameter = executor.plan.program.parameter(part.stored.name)
                base = blocks_of(part, parameter).name
                fill_coded(out, part, parameter, partial(checkpoint.read, base))
        position = checkpoint.position
    entered = 0 < plan.train.begin == position.step
    samples = plan.train.first_sample if entered else position.samples
    done = Progress(position.step, samples)
    return Resumed(done, path, position.plan, warnings, entered)


def _require_same(name: str, position: Position, seed: int, facts: dict[str, str | int]) -> None:
    was: dict[str, Any] = {**position.facts, "seed": position.seed}
    now: dict[str, Any] = {**facts, "seed": seed}
    differing = [fact for fact in sorted(now) if was.get(fact) != now[fact]]
    if differing:
        raise DiagnosticError(
            *(
                ResumeMismatch(NOWHERE, name, fact, str(was.get(fact, "absent")), str(now[fact]))
                for fact in differing
            )
        )
