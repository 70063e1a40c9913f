"""Optimizers and rates: equations over plain numbers, one element of one parameter at a time."""

from __future__ import annotations

from fllmc.frontend import ast
from fllmc.frontend.errors import BadRule, Unused
from fllmc.frontend.semantics.forms import HOST_FUNCTIONS
from fllmc.frontend.semantics.infer import Body, Entity
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import HOST, Kind, Rule, RuleParameter, Step, Typed
from fllmc.frontend.type_errors import NoReturn
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError

OPTIMIZER_INPUTS = ("param", "grad", "rate", "step")
RATE_INPUTS = ("step", "steps")


def typed_rule(section: ast.Optimizer | ast.Rate) -> tuple[Rule, tuple[Diagnostic, ...]]:
    """The rule with all kinds, and every mistake in it."""
    typer = _Typer(section)
    return typer.run(), tuple(typer.body.found)


class _Typer:
    """Types one optimizer or rate."""

    def __init__(self, section: ast.Optimizer | ast.Rate) -> None:
        self.section = section
        self.is_optimizer = isinstance(section, ast.Optimizer)
        self.body = Body((), lambda name: False, HOST_FUNCTIONS)
        self.parameters: list[RuleParameter] = []
        self.states: dict[str, float] = {}
        self.steps: list[Step] = []
        self.returned: Typed | None = None

    def run(self) -> Rule:
        """The typed rule."""
        for name in OPTIMIZER_INPUTS if self.is_optimizer else RATE_INPUTS:
            self.body.entities[name] = Entity("input", self.section.name.span, HOST)
        for parameter in self.section.parameters:
            self._parameter(parameter)
        for item in self.section.items:
            if isinstance(item, ast.State):
                self._state(item)
        for item in self.section.items:
            if not isinstance(item, ast.State):
                self._equation(item)
        self._end()
        return Rule(
            self.section.name.text,
            tuple(self.parameters),
            tuple(self.states.items()),
            tuple(self.steps),
            self.returned,
            self.section.name.span,
        )

    def _parameter(self, node: ast.Parameter) -> None:
        truth = isinstance(node.default, ast.Boolean)
        kind = Kind(form="truth", host=True) if truth else HOST
        if node.parts:
            for part in node.parts:
                self.body.give(part, Entity("parameter", part.span, HOST))
        else:
            self.body.give(node.name, Entity("parameter", node.name.span, kind))
        parts = tuple(part.text for part in node.parts)
        default = None if node.default is None else self._default(node, node.default)
        self.parameters.append(RuleParameter(node.name.text, parts, default, truth, node.name.span))

    def _default(self, node: ast.Parameter, default: ast.Expr) -> tuple[float, ...] | None:
        if isinstance(default, ast.Boolean) and not node.parts:
            return (float(default.value),)
        items = default.items if isinstance(default, ast.Tuple) and node.parts else (default,)
        if len(items) != max(len(node.parts), 1):
            reason = f"{len(node.parts)} numbers in parentheses are wanted"
            what = f"the default of `{node.name.text}` doesn't fit it"
            self.body.found.append(BadRule(default.span, what, reason))
            return None
        values = [self._number(item, f"the default of `{node.name.text}`") for item in items]
        return tuple(value for value in values if value is not None)

    def _number(self, node: ast.Expr, what: str) -> float | None:
        def named(ref: ast.Ref) -> float:
            reason = f"only numbers can stand here, not `{ref.name}`"
            raise DiagnosticError(BadRule(ref.span, f"{what} is not a number", reason))

        try:
            return float(evaluate(node, named, what))
        except DiagnosticError as error:
            self.body.found.extend(error.diagnostics)
            return None

    def _state(self, node: ast.State) -> None:
        if not self.is_optimizer:
            what = "a rate has no state"
            self.body.found.append(BadRule(node.span, what, "only optimizers have"))
            return
        value = self._number(node.init, f"the start of `{node.name.text}`")
        if self.body.give(node.name, Entity("state", node.name.span, HOST)):
            self.states[node.name.text] = value or 0.0

    def _equation(self, node: ast.Equation | ast.Return) -> None:
        value = self.body.numbers(node.value, "an equation of numbers")
        if isinstance(node, ast.Return):
            if self.is_optimizer or self.returned is not None:
                what = "an optimizer returns nothing" if self.is_optimizer else "a second `return`"
                reason = "its result is the new `param`" if self.is_optimizer else "never reached"
                self.body.found.append(NoReturn(node.span, what, reason))
            self.returned = self.returned or value
            return
        name = node.target.text
        kept = name in self.states or (self.is_optimizer and name == "param")
        if kept or self.body.give(node.target, Entity("equation", node.target.span, HOST)):
            self.steps.append(Step(name, value))

    def _end(self) -> None:
        name, given = self.section.name, {step.name for step in self.steps}
        if self.is_optimizer and "param" not in given:
            what = f"optimizer `{name.text}` never gives `param` a new value"
            self.body.found.append(BadRule(name.span, what, "needs an equation `param = ...`"))
        if not self.is_optimizer and self.returned is None:
            what = f"rate `{name.text}` returns nothing"
            self.body.found.append(NoReturn(name.span, what, "has no `return`"))
        if self.body.found:
            return
        for each, entity in self.body.entities.items():
            if each not in self.body.used and entity.what in ("equation", "parameter", "state"):
                self.body.found.append(Unused(entity.span, each, entity.what))
