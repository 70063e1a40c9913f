"""Optimizers and rates: equations over one element of a parameter, or over it as a matrix.

An optimizer sees each parameter as a matrix: of its two sides, what it takes and what it gives,
`short` is the smaller and `long` the larger, and `twin` is a second name of `short`. A vector has
`long` alone. `inputs` and `outputs` are the sizes of the sides, and `matrix` says whether there
are two.
"""

from __future__ import annotations

from fllmc.frontend import ast
from fllmc.frontend.errors import BadRule, Unused
from fllmc.frontend.semantics.forms import HOST_FUNCTIONS, MATRIX_FUNCTIONS
from fllmc.frontend.semantics.infer import Body, Entity
from fllmc.frontend.semantics.kinds import differs
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import (
    HOST,
    Kind,
    Step,
    Typed,
)
from fllmc.frontend.semantics.typed_rules import Repeat, Rule, RuleParameter, State
from fllmc.frontend.type_errors import NoReturn
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError

RATE_INPUTS = ("step", "steps")
SIDES = ("short", "long")
DIMS = (*SIDES, "twin")
WHOLE = Kind(SIDES)
TRUTH = Kind(form="truth", host=True)
OPTIMIZER_INPUTS = {
    "param": WHOLE,
    "grad": WHOLE,
    "rate": HOST,
    "step": HOST,
    "inputs": HOST,
    "outputs": HOST,
    "matrix": TRUTH,
}


def typed_rule(section: ast.Optimizer | ast.Rate) -> tuple[Rule, tuple[Diagnostic, ...]]:
    """The rule with all kinds, and every mistake in it."""
    typer = _Typer(section)
    return typer.run(), tuple(typer.body.found)


class _Typer:
    """Types one optimizer or rate."""

    def __init__(self, section: ast.Optimizer | ast.Rate) -> None:
        self.section = section
        self.is_optimizer = isinstance(section, ast.Optimizer)
        functions = MATRIX_FUNCTIONS if self.is_optimizer else HOST_FUNCTIONS
        self.body = Body(DIMS if self.is_optimizer else (), lambda name: False, functions)
        self.parameters: list[RuleParameter] = []
        self.states: dict[str, State] = {}
        self.returned: Typed | None = None

    def run(self) -> Rule:
        """The typed rule."""
        inputs = OPTIMIZER_INPUTS if self.is_optimizer else dict.fromkeys(RATE_INPUTS, HOST)
        for name, kind in inputs.items():
            self.body.entities[name] = Entity("input", self.section.name.span, kind)
        for parameter in self.section.parameters:
            self._parameter(parameter)
        for item in self.section.items:
            if isinstance(item, ast.State):
                self._state(item)
        steps = self._steps(self.section.items, again=False)
        self._end(steps)
        shaped = any(state.dims != SIDES for state in self.states.values())
        whole = {"inputs", "outputs", "matrix"} & self.body.used
        return Rule(
            self.section.name.text,
            tuple(self.parameters),
            tuple(self.states.values()),
            steps,
            self.returned,
            self.section.name.span,
            mixes=bool(shaped or whole or self.body.dims),
        )

    def _steps(self, items: tuple[ast.RuleItem, ...], again: bool) -> tuple[Step | Repeat, ...]:
        found: list[Step | Repeat] = []
        for item in items:
            if isinstance(item, ast.Repeat):
                found += self._repeat(item)
            elif not isinstance(item, ast.State):
                found += self._equation(item, again)
            elif again:
                what = "a state inside of `repeat`"
                self.body.found.append(BadRule(item.span, what, "states stand in front of it"))
        return tuple(found)

    def _repeat(self, node: ast.Repeat) -> list[Repeat]:
        if not self.is_optimizer:
            what = "a rate repeats nothing"
            self.body.found.append(BadRule(node.span, what, "only optimizers do"))
            return []
        times = self.body.expr(node.times)
        known = isinstance(node.times, ast.Number) and node.times.value == int(node.times.value)
        if isinstance(node.times, ast.Ref):
            known = any(p.name == node.times.name and not p.parts for p in self.parameters)
        if not known and not times.kind.broken:
            what, reason = "how often is not known", "a whole number or a parameter can stand here"
            self.body.found.append(BadRule(node.times.span, what, reason))
        return [Repeat(times, self._steps(node.items, again=True))]

    def _parameter(self, node: ast.Parameter) -> None:
        truth = isinstance(node.default, ast.Boolean)
        kind = TRUTH if truth else HOST
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
        dims = SIDES if node.shape is None else self.body.distinct(node.shape.dims)
        if node.shape is not None and (node.shape.index or "twin" in (dims or ())):
            what = f"the state `{node.name.text}` is not of the parameter's sides"
            reason = "its dims are among `short` and `long`"
            self.body.found.append(BadRule(node.shape.span, what, reason))
        if self.body.give(node.name, Entity("state", node.name.span, Kind(dims or ()))):
            self.states[node.name.text] = State(node.name.text, value or 0.0, dims or ())

    def _equation(self, node: ast.Equation | ast.Return, again: bool) -> list[Step]:
        value = self.body.numbers(node.value, "an equation of numbers")
        if isinstance(node, ast.Return):
            if self.is_optimizer or self.returned is not None:
                what = "an optimizer returns nothing" if self.is_optimizer else "a second `return`"
                reason = "its result is the new `param`" if self.is_optimizer else "never reached"
                self.body.found.append(NoReturn(node.span, what, reason))
            self.returned = self.returned or value
            return []
        name = node.target.text
        known = self.body.entities.get(name)
        kept = name in self.states or (self.is_optimizer and name == "param")
        if known and (kept or (again and known.what == "equation")):
            self._fits(node, value, known)
            return [Step(name, value)]
        given = self.body.give(node.target, Entity("equation", node.target.span, value.kind))
        return [Step(name, value)] if given else []

    def _fits(self, node: ast.Equation, value: Typed, known: Entity) -> None:
        """What is given anew has no dims that it had not before."""
        if value.kind.broken or known.kind.broken:
            return
        more = [dim for dim in value.kind.dims if dim not in known.kind.dims]
        if more:
            what = f"the new `{node.target.text}` has other dims than before"
            reason = f"this is {value.kind}; {differs(value.kind, known.kind)}"
            self.body.found.append(BadRule(node.value.span, what, reason))

    def _end(self, steps: tuple[Step | Repeat, ...]) -> None:
        name, given = self.section.name, {step.name for step in _plain(steps)}
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


def _plain(steps: tuple[Step | Repeat, ...]) -> list[Step]:
    found: list[Step] = []
    for step in steps:
        found += _plain(step.steps) if isinstance(step, Repeat) else [step]
    return found
