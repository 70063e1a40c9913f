"""quantize-frozen: model -> model, behind `apply-adapter`. Frozen maps in 4 or 8 bits.

    quantize-frozen{quantize=[{selector=body.*,bits=4,block=64}]}

    func layer(%0 x: f32[seq, embed], %1 wq: f32[embed, heads] param) {
      %2: f32[seq, heads] = dot{contract=[embed]}(%0, %1) ...
    ->
    func layer(%0 x, %1 wq.codes: u8[embed.codes, heads] param,
               %2 wq.scales: f32[embed.blocks64, heads] param) {
      %3: f32[embed, heads] = dequantize{dim=embed, ..., bits=4, dtype=f32}(%1, %2)
      %4: f32[seq, heads] = dot{contract=[embed]}(%0, %3) ...

As QLoRA (Dettmers et al. 2023) stores a base. The value is made where it is used, a layer at a
time, in the dtype of computation, and of a table that is looked up only what is looked up. It is
not the value that was there before, so unlike all else that is said of storage this changes
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.coded import blocks_dim, coded, codes_dim
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.ops import Dequantize, Take
from fllmc.ir.program import Level, Parameter, Program
from fllmc.ir.select import selects_parameter
from fllmc.ir.settings import Quantize
from fllmc.passes.base import Context, Pass
from fllmc.passes.quantize_errors import BlocksDoNotFit, NothingQuantized, QuantizedTrains
from fllmc.passes.stored_forms import Form, restored


class Coded(Form, frozen=True):
    """Stored as codes and scales of blocks `along` a dim."""

    along: str
    block: int
    bits: int

    def value(self, b: Builder, parts: Sequence[int], dtype: str) -> int:
        """The levels times the scales."""
        dims = self.along, codes_dim(self.along, self.bits), blocks_dim(self.along, self.block)
        return b.one(Dequantize(*dims, self.bits, dtype), *parts)

    def taken(
        self, b: Builder, parts: Sequence[int], take: Take, index: int, dtype: str
    ) -> int | None:
        """Codes and scales of what is looked up alone, unless that cuts blocks."""
        if take.dim == self.along:
            return None
        return self.value(b, [b.one(take, part, index) for part in parts], dtype)


class QuantizeFrozen(Pass, frozen=True):
    """Store selected maps in few bits; of two directives for one the last counts."""

    name: ClassVar[str] = "quantize-frozen"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "new"

    quantize: tuple[Quantize, ...] = ()

    def run(self, program: Program, cx: Context) -> Program:
        """The program on codes; DiagnosticError with every directive that can't be followed."""
        wrong: list[Diagnostic] = []
        forms: dict[str, Form] = {}
        for parameter, directive in chosen(program, self.quantize, wrong):
            along = dim_of_blocks(parameter, directive, program)
            if parameter.trainable or parameter.rows:
                found = parameter.part_of or parameter.name, directive.selector, parameter.span
                wrong.append(QuantizedTrains(directive.span, *found))
            elif not along:
                wrong.append(misfit(parameter, directive, program))
            else:
                how = along, directive.block, directive.bits
                forms[parameter.name] = Coded(parameter, coded(parameter, *how), *how)
        if wrong:
            raise DiagnosticError(*dict.fromkeys(wrong))
        for form in forms.values():
            program = with_dims(program, form)
        return restored(program, forms)


def chosen(
    program: Program, directives: Sequence[Quantize], wrong: list[Diagnostic]
) -> list[tuple[Parameter, Quantize]]:
    """The maps that are selected, each with the directive that counts."""
    found: dict[str, tuple[Parameter, Quantize]] = {}
    for directive in directives:
        here = [
            p
            for p in program.parameters
            if selects_parameter(directive.selector, p) and not (p.updates or p.plain)
        ]
        found.update({p.name: (p, directive) for p in here})
        if not here:
            wrong.append(NothingQuantized(directive.span, directive.selector))
    return list(found.values())


def dim_of_blocks(parameter: Parameter, directive: Quantize, program: Program) -> str:
    """The dim along which blocks lie: the one asked for, or that has most powers of two of them.

    So blocks stay whole on as many ranks as may be. A dim that is looked up along is a last choice,
    for a look-up would make all of the value; of equal ones it is the last. Nothing if none is a
    multiple of the block. It does not depend on the mesh, as numbers must not.
    """
    tables = {op.attrs.dim for f in program.functions for op in f.ops if isinstance(op.attrs, Take)}
    best, found = (False, 0), ""
    for name in parameter.type.names:
        size = program.sizes.size(name)
        asked = name != parameter.stack and directive.along in ("", name)
        if asked and size % directive.block == 0 and directive.block * directive.bits % 8 == 0:
            blocks = size // directive.block
            key = (name not in tables, blocks & -blocks)
            if key >= best:
                best, found = key, name
    return found


def misfit(parameter: Parameter, directive: Quantize, program: Program) -> Diagnostic:
    """Why no dim can be cut into such blocks."""
    names = [name for name in parameter.type.names if name != parameter.stack]
    dims = tuple(f"{name}={program.sizes.size(name)}" for name in names)
    if directive.along and directive.along not in names:
        why = f"it has no dim `{directive.along}`"
    elif directive.block * directive.bits % 8:
        why = "two codes of 4 bits share a byte, so a block is even"
    elif directive.along:
        why = f"`{directive.along}` is no multiple of {directive.block}"
    else:
        why = f"no dim is a multiple of {directive.block}"
    return BlocksDoNotFit(directive.span, parameter.name, directive.block, why, dims)


def with_dims(program: Program, form: Form) -> Program:
    """The program with the dims of codes and scales."""
    assert isinstance(form, Coded)
    size = program.sizes.size(form.along)
    if form.bits < 8:
        program = program.with_dim(codes_dim(form.along, form.bits), size * form.bits // 8)
    return program.with_dim(blocks_dim(form.along, form.block), size // form.block)
