"""What makes a block a loss: numbers that a run may give, and a column that counts."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.frontend import ast
from fllmc.frontend.errors import BadRule
from fllmc.frontend.semantics.kinds import differs
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import Signature
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError

WEIGHTS = "weights"
"""The column by which values of a loss are weighed; it is divided by the sum of them all."""


def numbers(block: ast.Block) -> tuple[tuple[tuple[str, float], ...], list[Diagnostic]]:
    """The numbers in the head of a loss, with their defaults."""
    values: list[tuple[str, float]] = []
    found: list[Diagnostic] = []

    def named(ref: ast.Ref) -> float:
        reason = f"only numbers can stand here, not `{ref.name}`"
        raise DiagnosticError(BadRule(ref.span, "a default is a number", reason))

    for number in block.numbers:
        if block.kind != "loss":
            reason = "write `NAME: [DIMS]`; only a loss takes numbers"
            what = f"`{number.name.text}` is no input of a {block.kind}"
            found.append(BadRule(number.span, what, reason))
            continue
        assert number.default is not None
        try:
            values.append((number.name.text, float(evaluate(number.default, named, "a default"))))
        except DiagnosticError as error:
            found.extend(error.diagnostics)
    return tuple(values), found


def unfit(block: ast.Block, seen: Signature) -> Iterator[Diagnostic]:
    """What a block lacks to be a loss."""
    for item in block.items:
        if not isinstance(item, ast.Equation | ast.Return) or isinstance(item, ast.Penalty):
            what = f"a loss has equations alone, and `{block.name.text}` has something else"
            yield BadRule(item.span, what, "parameters and states belong to models")
    weights = next((given for given in seen.inputs if given.name == WEIGHTS), None)
    if not seen.inputs or seen.inputs[0].kind.form == "index" or weights is seen.inputs[0]:
        what = f"loss `{block.name.text}` doesn't take what a model returns"
        yield BadRule(block.name.span, what, "its first input is the model's result")
    if weights is None:
        what = f"loss `{block.name.text}` doesn't say what counts"
        reason = f"it needs an input `{WEIGHTS}: {seen.result}`, by which its result is weighed"
        yield BadRule(block.name.span, what, reason)
    elif not (weights.kind.broken or seen.result.broken) and differs(weights.kind, seen.result):
        what = f"each value of loss `{block.name.text}` needs a weight"
        reason = f"`{WEIGHTS}` is {weights.kind} and the result {seen.result}"
        yield BadRule(weights.span, what, reason)
