"""Selectors compared with a model: what they select, and what to say when that is nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.section_errors import NothingSelected, PartOfStack
from fllmc.ir.diagnostics import Diagnostic, near
from fllmc.ir.ops import Call, Scan
from fllmc.ir.program import Function, Parameter, Program
from fllmc.ir.select import selects, selects_parameter, within


def selector_text(selector: ast.Expr) -> str:
    """The selector as the settings keep it: `body.*.attn.{wq,wk}`."""
    if isinstance(selector, ast.Ref):
        return selector.name
    return str(selector).replace(" ", "")


class Paths(Struct, frozen=True):
    """The paths of a model: its parameters and its operations.

    Operations stand with `0` for the layer.
    """

    params: tuple[Parameter, ...]
    ops: tuple[str, ...]
    layers: dict[str, int]

    def selected(self, selector: str) -> tuple[str, ...]:
        """Names of the parameters that are wholly selected."""
        return tuple(each.name for each in self.params if selects_parameter(selector, each))

    def parameters(self, selector: ast.Expr, arrows: bool = False) -> Iterator[Diagnostic]:
        """What is wrong with a selector of parameters."""
        text = selector_text(selector)
        known = [each for each in self.params if not (arrows and each.plain)]
        if any(selects_parameter(text, each) for each in known):
            return
        for each in known:
            if each.stack and self._some_layer(text, each):
                yield PartOfStack(selector.span, text, each.name)
                return
        what = "arrow" if arrows else "parameter"
        paths = [each.layer_name(0) for each in known]
        yield NothingSelected(selector.span, text, what, _nearest(text, paths))

    def _some_layer(self, text: str, each: Parameter) -> bool:
        count = self.layers.get(each.stack, 1)
        return any(selects(text, each.layer_name(layer)) for layer in range(count))

    def operations(self, selector: ast.Expr, under: bool = False) -> Iterator[Diagnostic]:
        """What is wrong with a selector of operations, or `under` those, of the ends of paths."""
        text = selector_text(selector)
        wanted = (text, f"*.{text}") if under else (text,)
        if not any(selects(each, path) for each in wanted for path in self.ops):
            yield NothingSelected(selector.span, text, "operation", _nearest(text, self.ops))


def paths_of(program: Program) -> Paths:
    """All paths of a program of the model level."""
    functions = {function.name: function for function in program.functions}
    ops = tuple(dict.fromkeys(_ops(functions["model"], functions, "")))
    layers = {dim.name: dim.size for dim in program.dims}
    return Paths(program.parameters, ops, layers)


def _ops(
    function: Function, functions: dict[str, Function], scope: str, layer: str = ""
) -> Iterator[str]:
    for op in function.ops:
        if not op.path:
            continue
        path = within(scope, layer, op.path)
        inside = "0" if isinstance(op.attrs, Scan) else ""
        yield within(path, inside, "")
        if isinstance(op.attrs, Call | Scan):
            yield from _ops(functions[op.attrs.function], functions, path, inside)


def _nearest(text: str, paths: Sequence[str]) -> str:
    """The path most like a selector, its wild cards read as the first layer; empty if none is."""
    plain = text.replace("*", "0").replace("{", "").split(",")[0].rstrip("}")
    found = near(plain, paths)
    if found:
        return found
    last = near(plain.split(".")[-1], [path.split(".")[-1] for path in paths])
    return next((path for path in paths if path.split(".")[-1] == last), "")
