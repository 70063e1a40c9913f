"""Weights of a run with its low-rank updates added to them, and taken off again.

    merged = base + factor * (a b), summed over the rank

Both are computed in f64 from what the newest checkpoint holds, one tensor at a time, and rounded
once to the dtype in which the base is stored.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fllmc.ir.coded import uncut
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import DTYPE_BYTES
from fllmc.runtime import errors
from fllmc.runtime.checkpoint.coded import held_as_codes, names_of
from fllmc.runtime.checkpoint.files import DTYPE_NAMES, TORCH_DTYPES, write_streamed
from fllmc.runtime.checkpoint.load import Checkpoint, Expected, open_latest
from fllmc.runtime.checkpoint.manifest import describe
from fllmc.runtime.checkpoint.names import STATE_MARK
from fllmc.runtime.parts import Part, expected, whole_tensors
from fllmc.runtime.run_folder import CHECKPOINTS


class Merged(msgspec.Struct, frozen=True):
    """What was written: from the checkpoint of which step, with how many updates."""

    step: int
    tensors: int
    updates: int
    skipped: tuple[Diagnostic, ...]


class Updated(msgspec.Struct, frozen=True):
    """A tensor, or its codes, with both parts of its update, and the factor of their product."""

    base: Part
    parts: tuple[Part, ...]
    factor: float

    def delta(self, checkpoint: Checkpoint) -> Tensor:
        """What the update adds to the base, in f64."""
        dims = [[uncut(name) for name in part.dims] for part in (*self.parts, self.base)]
        letters: dict[str, str] = {}
        for name in (name for names in dims for name in names):
            letters.setdefault(name, string.ascii_letters[len(letters)])
        a, b, base = ("".join(letters[name] for name in names) for names in dims)
        first, second = (checkpoint.read(part.name).double() for part in self.parts)
        return torch.einsum(f"{a},{b}->{base}", first, second) * self.factor


def updated(plan: Plan) -> dict[str, Updated]:
    """By name, the tensors of a checkpoint that have an update."""
    parameters = {p.name: p for stage in plan.by_stage for p in stage.program.parameters}
    whole = whole_tensors(plan)
    found: dict[str, Updated] = {}
    for name, part in whole.items():
        parameter = parameters.get(part.stored.name)
        if parameter and parameter.updates:
            base = name.removesuffix(parameter.name.removeprefix(parameter.updates))
            before = found[base].parts if base in found else ()
            held = whole.get(base) or whole[names_of(base)[0]]
            found[base] = Updated(held, (*before, part), parameter.factor)
    return found


def bases(plan: Plan) -> Expected:
    """Dtypes and shapes of the model's own parameters, without updates and optimizer states.

    What is stored as codes is written in full, as frozen parameters are.
    """
    kinds, precision = expected(plan), plan.train.precision
    coded = held_as_codes(kinds)
    left = {part.name for each in updated(plan).values() for part in each.parts}
    left.update(part for name in coded for part in names_of(name))
    narrow = min((precision.params, precision.compute), key=lambda dtype: DTYPE_BYTES[dtype])
    own = {n: kind for n, kind in kinds.items() if n not in left and STATE_MARK not in n}
    return dict(sorted({**own, **{n: (narrow, shape) for n, shape in coded.items()}}.items()))


def merge(plan: Plan, folder: Path, out: Path) -> Merged:
    """Write the weights of a run with all updates added. Raises DiagnosticError and OSError."""
    latest = open_latest(folder / CHECKPOINTS)
    with latest.checkpoint as checkpoint:
        return _write(plan, checkpoint, checkpoint.read_value, 1, out, latest.skipped)


def unmerge(plan: Plan, folder: Path, file: Path, out: Path) -> Merged:
    """Write merged weights with the run's updates taken off. Raises DiagnosticError and OSError."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            _require(opened, bases(plan), file.name)
            latest = open_latest(folder / CHECKPOINTS)
            with latest.checkpoint as checkpoint:
                read = opened.get_tensor
                return _write(plan, checkpoint, read, -1, out, latest.skipped)
    except SafetensorError as error:
        bad = errors.CheckpointHeader(NOWHERE, str(file.parent), file.name, str(error))
        raise DiagnosticError(bad) from error


def _write(
    plan: Plan,
    checkpoint: Checkpoint,
    read: Callable[[str], Tensor],
    sign: int,
    out: Path,
    skipped: tuple[Diagnostic, ...],
) -> Merged:
    checkpoint.require(expected(plan))
    kinds = bases(plan)
    changed = _changed(plan, checkpoint, read, sign)
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write_streamed(fresh, kinds, changed)
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    return Merged(checkpoint.position.step, len(kinds), len(updated(plan)), skipped)


def merged_reader(plan: Plan, checkpoint: Checkpoint) -> Callable[[str], Tensor]:
    """Gives weights by name, with all updates added. DiagnosticError if it is of another plan."""
    checkpoint.require(expected(plan))
    return _changed(plan, checkpoint, checkpoint.read_value, 1)


def _changed(
    plan: Plan, checkpoint: Checkpoint, read: Callable[[str], Tensor], sign: int
) -> Callable[[str], Tensor]:
    """Gives weights by name, with all updates added, or with the sign -1 taken off."""
    updates, kinds = updated(plan), bases(plan)

    def changed(name: str) -> Tensor:
        weight = read(name)
        if name not in updates:
            return weight.to(TORCH_DTYPES[kinds[name][0]])
        exact = weight.double() + sign * updates[name].delta(checkpoint)
        return exact.to(TORCH_DTYPES[kinds[name][0]])

    return changed


def _require(opened: Any, kinds: Expected, place: str) -> None:
    """Raise where a file does not hold these tensors and no others."""
    stored = set(opened.keys())
    extra = sorted(stored - kinds.keys())
    found: list[Diagnostic] = [errors.TensorExtra(NOWHERE, place, name) for name in extra]
    for name, kind in kinds.items():
        if name not in stored:
            found.append(errors.TensorMissing(NOWHERE, place, name, tuple(extra)))
            continue
        tensor = opened.get_tensor(name)
        held = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
        if held != kind:
            kinds_differ = describe(*held), describe(*kind)
            found.append(errors.TensorMismatch(NOWHERE, place, name, *kinds_differ))
    if found:
        raise DiagnosticError(*found)
