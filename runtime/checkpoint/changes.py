"""How a plan may store what a checkpoint holds otherwise: frozen parameters and trained ones.

A trained parameter lies in a checkpoint in the dtype of `params` with its optimizer's states, a
frozen one in the compute dtype without, a quantised one as codes and scales. Any is read as any
other, and so are rows of one, but no codes as codes of another block or number of bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint import change_errors
from fllmc.runtime.checkpoint.boxes import Shape
from fllmc.runtime.checkpoint.coded import Kind, held_as_codes, names_of
from fllmc.runtime.checkpoint.files import TORCH_DTYPES
from fllmc.runtime.checkpoint.manifest import TensorEntry
from fllmc.runtime.checkpoint.names import STATE_MARK

RowRange: TypeAlias = tuple[int, int, str]
"""Rows [first, stop) of a tensor, and the dtype in which they are held."""

HeldRows: TypeAlias = Mapping[str, Sequence[RowRange]]
"""By tensor, the rows that are held."""

FLOATING: Final = {name for name, kind in TORCH_DTYPES.items() if kind.is_floating_point}


class Changes(msgspec.Struct, frozen=True):
    """What reading for a plan changes, by sorted names.

    Parameters `converted` and how, as `f32 to bf16`; states that are `begun` at their initial
    values; states that are `dropped`; parameters that are `quantized`, and that are `dequantized`.
    """

    converted: Mapping[str, str]
    begun: tuple[str, ...]
    dropped: tuple[str, ...]
    quantized: tuple[str, ...] = ()
    dequantized: tuple[str, ...] = ()

    @property
    def settled(self) -> set[str]:
        """The names of tensors of the plan that the checkpoint has in another form."""
        coded = (part for name in self.quantized for part in names_of(name))
        return {*self.converted, *self.begun, *self.dequantized, *coded}

    @property
    def used_up(self) -> set[str]:
        """The names of tensors of the checkpoint that the plan has in another form or not."""
        coded = (part for name in self.dequantized for part in names_of(name))
        return {*self.dropped, *self.quantized, *coded}

    def warnings(self, checkpoint: str) -> Iterator[Diagnostic]:
        """One for each kind of change that there is."""
        if self.converted:
            kinds = ", ".join(sorted(set(self.converted.values())))
            yield change_errors.ParametersConverted(NOWHERE, checkpoint, len(self.converted), kinds)
        if self.quantized:
            found = len(self.quantized), self.quantized[0]
            yield change_errors.ParametersQuantized(NOWHERE, checkpoint, *found)
        if self.dequantized:
            found = len(self.dequantized), self.dequantized[0]
            yield change_errors.ParametersDequantized(NOWHERE, checkpoint, *found)
        if self.begun:
            yield change_errors.StatesBegun(NOWHERE, checkpoint, len(self.begun), self.begun[0])
        if self.dropped:
            yield change_errors.StatesDropped(
                NOWHERE, checkpoint, len(self.dropped), self.dropped[0]
            )


def changes(
    stored: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[str, Shape]],
    rows: HeldRows = {},  # noqa: B006 - never changed
) -> Changes:
    """What differs between a checkpoint and a plan and need not be a fault.

    States begin or are dropped only where both have their parameter. `rows` are those that the plan
    holds of tensors whose rows train in part; of such a tensor some rows may change.
    """
    converted = {
        name: f"{stored[name].dtype} to {dtype}"
        for name, (dtype, shape) in sorted(expected.items())
        if name in stored
        and stored[name].shape == shape
        and stored[name].dtype != dtype
        and converts(name, stored[name].dtype, dtype)
    }
    held = {name: (entry.dtype, entry.shape) for name, entry in stored.items()}
    quantized = in_other_form(held, expected)
    dequantized = in_other_form(expected, held)
    both = stored.keys() & expected.keys()
    shared = both | {*quantized, *dequantized}
    begun = set(_states_of(shared, expected.keys() - stored.keys()))
    dropped = set(_states_of(shared, stored.keys() - expected.keys()))
    for name in sorted(both):
        entry, (dtype, shape) = stored[name], expected[name]
        if entry.shape != shape or not (name in rows or entry.absent or entry.mixed):
            continue
        wanted = rows.get(name, ((0, shape[0], dtype),))
        if STATE_MARK in name:
            begun |= {name} if _lacking(wanted, entry.rows) else set()
            dropped |= {name} if _lacking(entry.rows, wanted) else set()
        elif kinds := sorted(_conversions(entry.rows, wanted)):
            converted[name] = ", ".join(kinds)
    settled = dict(sorted(converted.items())), tuple(sorted(begun)), tuple(sorted(dropped))
    return Changes(*settled, quantized, dequantized)


def in_other_form(plain: Mapping[str, Kind], coded: Mapping[str, Kind]) -> tuple[str, ...]:
    """The parameters that `coded` tensors hold as codes and `plain` ones as they are."""
    return tuple(
        name
        for name, shape in sorted(held_as_codes(coded).items())
        if name in plain and plain[name][0] in FLOATING and plain[name][1] == shape
    )


def converts(name: str, found: str, wanted: str) -> bool:
    """Whether a tensor may be read in another dtype: parameters in floating-point dtypes.

    To a narrower dtype it is rounded to the nearest, ties to even.
    """
    return STATE_MARK not in name and {found, wanted} <= FLOATING


def _lacking(wanted: Sequence[RowRange], held: Sequence[RowRange]) -> bool:
    """Whether some wanted row is not held."""
    for first, stop, _ in wanted:
        for start, end, _ in sorted(held):
            if start <= first < end:
                first = end
        if first < stop:
            return True
    return False


def _conversions(held: Sequence[RowRange], wanted: Sequence[RowRange]) -> set[str]:
    """The ways in which rows change their dtype."""
    return {
        f"{found} to {kind}"
        for first, stop, found in held
        for start, end, kind in wanted
        if found != kind and first < end and start < stop
    }


def _states_of(parameters: set[str], names: set[str]) -> tuple[str, ...]:
    split = ((name, *name.partition(STATE_MARK)[:2]) for name in sorted(names))
    return tuple(name for name, path, mark in split if mark and path in parameters)
