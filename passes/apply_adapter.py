"""apply-adapter: model -> model, behind `inline`. Which parameters train, and low-rank updates.

    apply-adapter{freeze=["*"],lora=[{selector=body.*,rank=8,alpha=16.0}],tune=[body.*.norm]}

    %3 = dot{contract=[embed]}(%0, %1)  # attn.wq
    ->
    %4 = dot{contract=[embed]}(%0, %1)  # attn.wq
    %5 = dot{contract=[embed]}(%0, %2)  # attn.wq.lora_a
    %6 = dot{contract=[body_attn_wq_rank]}(%5, %3)  # attn.wq.lora_b
    %7 = fill{value=2.0}(); %8 = mul(%6, %7); %9 = add(%4, %8)

The updates are parameters of their own, `body.attn.wq.lora_a` and `body.attn.wq.lora_b`, and always
train. The base trains on unless `freeze` selects it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Level, Parameter, Program
from fllmc.ir.select import selects, selects_parameter
from fllmc.ir.settings import Lora
from fllmc.ir.span import NOWHERE, Span
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import AdapterSelectsNothing, NoArrow, WrongOption
from fllmc.passes.lora_rewrite import add_updates
from fllmc.passes.lora_uses import arrows, own_bodies


def shown_path(parameter: Parameter) -> str:
    """The parameter's path as a selector of all layers."""
    return parameter.shown_name


def nothing(verb: str, selector: str, span: Span, program: Program) -> Diagnostic:
    """The mistake of a selector that matches no parameter."""
    paths = tuple(shown_path(parameter) for parameter in program.parameters)
    parts = [p for p in program.parameters if selects_a_layer(selector, p, program)]
    part_of = shown_path(parts[0]) if parts else ""
    return AdapterSelectsNothing(span, verb, selector, paths, part_of)


def selects_a_layer(selector: str, parameter: Parameter, program: Program) -> bool:
    """Whether the selector matches some layer of a stacked parameter."""
    if not parameter.stack:
        return False
    layers = range(program.sizes.size(parameter.stack))
    return any(selects(selector, parameter.layer_name(layer)) for layer in layers)


def selected(selector: str, program: Program) -> list[Parameter]:
    """The parameters that the selector matches."""
    return [p for p in program.parameters if selects_parameter(selector, p)]


def set_trainable(program: Program, selectors: Iterable[str], trainable: bool) -> Program:
    """The program with `trainable` of all selected parameters set."""
    names = {p.name for selector in selectors for p in selected(selector, program)}
    changed = tuple(
        msgspec.structs.replace(p, trainable=trainable) if p.name in names else p
        for p in program.parameters
    )
    return msgspec.structs.replace(program, parameters=changed)


class ApplyAdapter(Pass, frozen=True):
    """Freeze, then tune, then add low-rank updates; of two updates for one map the last counts."""

    name: ClassVar[str] = "apply-adapter"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "new"

    freeze: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    lora: tuple[Lora, ...] = ()

    def run(self, program: Program, cx: Context) -> Program:
        """The adapted program; DiagnosticError names every selector that matches nothing."""
        wrong = self.mistakes(program)
        if wrong:
            raise DiagnosticError(*wrong)
        updates = {p.name: lora for lora in self.lora for p in selected(lora.selector, program)}
        program = set_trainable(program, self.freeze, False)
        program = set_trainable(program, self.tune, True)
        if not updates:
            return program
        return add_updates(own_bodies(program), updates)

    def mistakes(self, program: Program) -> list[Diagnostic]:
        """Selectors that match nothing, or no linear map."""
        plain = [("freeze", s, NOWHERE) for s in self.freeze]
        plain += [("tune", s, NOWHERE) for s in self.tune]
        plain += [("lora", lora.selector, lora.span) for lora in self.lora]
        found = [nothing(*one, program) for one in plain if not selected(one[1], program)]
        maps = arrows(own_bodies(program)) if self.lora else {}
        for lora in self.lora:
            if lora.rank < 1 or not 0.0 <= lora.dropout < 1.0:
                why = "`rank` is at least 1, and `dropout` from 0 to below 1"
                found.append(WrongOption(lora.span, self.name, why))
            names = [p.name for p in selected(lora.selector, program)]
            if names and not any(name in maps for name in names):
                listed = ", ".join(f"`{name}`" for name in names[:3])
                found.append(NoArrow(lora.span, lora.selector, listed))
        return found
