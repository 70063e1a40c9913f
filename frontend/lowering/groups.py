"""Which parameters an optimizer steps at which rate, and the equations of both."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.frontend.lowering.rules import lower_optimizer, lower_rate, lower_states
from fllmc.frontend.sections.selectors import Paths, selector_text
from fllmc.frontend.sections.train import Choice, TrainSection
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.matrices import SIDES, equations_of
from fllmc.ir.program import Function, Program


def grouped(
    program: Program, paths: Paths, train: TrainSection
) -> tuple[Program, list[Diagnostic]]:
    """The program with the equations of its optimizers, and each parameter in its group.

    A group is an optimizer with a rate; of several that select a parameter the last holds.
    """
    if train.optimizer is None or train.rate is None:
        return program, []
    found: list[Diagnostic] = []
    chosen = {each.name: (train.optimizer, train.rate) for each in program.parameters}
    for part in train.parts:
        for selector in part.selectors:
            found += paths.parameters(selector)
            for name in paths.selected(selector_text(selector)):
                optimizer, rate = chosen[name]
                chosen[name] = (part.optimizer or optimizer, part.rate or rate)
    groups = [(train.optimizer, train.rate)]
    groups += [pair for pair in chosen.values() if pair not in groups]
    groups = [pair for at, pair in enumerate(groups) if pair not in groups[:at]]
    parameters = tuple(
        structs.replace(each, group=groups.index(chosen[each.name])) for each in program.parameters
    )
    program = structs.replace(program, parameters=parameters)
    rules = _rules(groups)
    for side in SIDES if any(kind.names for rule in rules for kind in rule.types) else ():
        program = program.with_dim(side, 1)
    return program.with_functions(*rules), found


def _rules(groups: Sequence[tuple[Choice, Choice]]) -> list[Function]:
    """The equations of all groups; those of the first have plain names."""
    found: list[Function] = []
    for group, (optimizer, rate) in enumerate(groups):
        plain = {**optimizer.arguments}
        if "weight_decay" in plain:
            plain["weight_decay"] = 0.0
        rule = optimizer.rule
        found += (
            lower_optimizer(rule, optimizer.arguments, equations_of(group)),
            lower_optimizer(rule, plain, equations_of(group, "no_decay")),
            lower_rate(rate.rule, rate.arguments, equations_of(group, "rate")),
        )
    rules = [optimizer.rule for optimizer, _ in groups]
    return [*found, lower_states(rules)]
