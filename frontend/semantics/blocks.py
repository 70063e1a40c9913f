"""Blocks and models: parameters, nested blocks and equations, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import structs

from fllmc.frontend import ast
from fllmc.frontend.errors import Recursion, UnknownBlock, UnknownDim, Unused
from fllmc.frontend.library import Bound, Module
from fllmc.frontend.semantics import losses, states
from fllmc.frontend.semantics.facts import refs, unknown_dims
from fllmc.frontend.semantics.infer import Body, Entity
from fllmc.frontend.semantics.kinds import differs
from fllmc.frontend.semantics.typed import (
    BROKEN,
    HOST,
    Block,
    Constant,
    Input,
    Key,
    Kind,
    Local,
    Nested,
    Param,
    Signature,
    Step,
    Typed,
    Update,
    Use,
)
from fllmc.frontend.type_errors import BadParam, BadStack, BadState, NoReturn, WrongResult
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

LONGEST = 256
"""The most layers that a pattern may have."""


def typed_block(
    block: ast.Block, module: Module, modules: Mapping[str, Module]
) -> tuple[Block, tuple[Diagnostic, ...], Mapping[Key, Block]]:
    """The block with all kinds, every mistake in it, and the patterns of layers in its stacks."""
    typer = _Typer(block, module, modules)
    return typer.run(), tuple(typer.body.found), typer.patterns


def recursions(blocks: Mapping[Key, Block]) -> Iterator[Diagnostic]:
    """Circles of blocks that contain each other, each reported once."""
    done: set[Key] = set()
    for start in blocks:
        path: list[Key] = []
        yield from _visit(start, blocks, path, done)


def _visit(
    key: Key, blocks: Mapping[Key, Block], path: list[Key], done: set[Key]
) -> Iterator[Diagnostic]:
    if key in done or key not in blocks:
        return
    path.append(key)
    for member in blocks[key].nested.values():
        if member.block in path:
            circle = [*path[path.index(member.block) :], member.block]
            chain = " contains ".join(f"`{each.name}`" for each in circle)
            yield Recursion(member.span, member.block.name, chain)
        else:
            yield from _visit(member.block, blocks, path, done)
    path.pop()
    done.add(key)


def stacked_stacks(blocks: Mapping[Key, Block]) -> Iterator[Diagnostic]:
    """Stacks of blocks that hold a stack themselves. There must be no circle of blocks."""
    for block in blocks.values():
        for outer in block.nested.values():
            inner = _first_stack(outer.block, blocks) if outer.over else None
            if inner:
                reason = "a stack can't hold another stack, and it does"
                yield BadStack(outer.span, outer.block.name, outer.over, reason, inner.span)


def _first_stack(key: Key, blocks: Mapping[Key, Block]) -> Nested | None:
    for nested in blocks[key].nested.values() if key in blocks else ():
        found = nested if nested.over else _first_stack(nested.block, blocks)
        if found:
            return found
    return None


def signature(bound: Bound, modules: Mapping[str, Module]) -> Signature:
    """What a block's users see, read from its head. Unknown dims leave broken kinds."""
    block = bound.section
    assert isinstance(block, ast.Block)
    dims = modules[bound.file].dims
    inputs = tuple(
        Input(given.name.text, _kind(given.type, dims), given.span) for given in block.inputs
    )
    key = Key(bound.file, block.name.text)
    result = BROKEN if block.result.index else _kind(block.result, dims)
    return Signature(key, inputs, result, block.name.span, block.result.span)


def _kind(shape: ast.TensorType, declared: Mapping[str, object]) -> Kind:
    names = tuple(name.text for name in shape.dims)
    index = shape.index.text if shape.index else ""
    everything = (*names, index) if index else names
    if len(set(names)) < len(names) or any(name not in declared for name in everything):
        return BROKEN
    return Kind(names, index, "index" if index else "number")


class _Typer:
    """Types one block."""

    def __init__(self, block: ast.Block, module: Module, modules: Mapping[str, Module]) -> None:
        self.block = block
        self.module = module
        self.modules = modules
        self.signature = signature(Bound(module.file, block), modules)
        self.body = Body(module.dims, lambda name: module.find("block", name) is not None)
        self.members: list[Param | Nested] = []
        self.steps: list[Step] = []
        self.updates: list[Update] = []
        self.returned: Typed | None = None
        self.patterns: dict[Key, Block] = {}
        self.numbers: list[tuple[str, float]] = []

    def run(self) -> Block:
        """The typed block."""
        self._head()
        for item in self.block.items:
            match item:
                case ast.Param():
                    self._param(item)
                case ast.Sub() | ast.Stack():
                    self._nested(item)
                case _:
                    pass
        facts = tuple(item for item in self.block.items if isinstance(item, ast.Require))
        for fact in facts:
            self.body.found += unknown_dims(fact, self.body.declared)
        for item in self.block.items:
            if isinstance(item, ast.Total | ast.Update) and self.returned is None:
                self._of_state(item)
            elif isinstance(item, ast.Equation | ast.Return):
                self._equation(item)
        self._end()
        members = tuple(self._looked_up(member) for member in self.members)
        requirements, dims = tuple(self.body.requirements), tuple(self.body.dims.items())
        returned = self.returned or Typed(BROKEN, Constant(0.0), span=self.block.span)
        is_model = self.block.kind == "model"
        steps, updates = tuple(self.steps), tuple(self.updates)
        given = (self.signature, is_model, members, steps, returned)
        numbers, is_loss = tuple(self.numbers), self.block.kind == "loss"
        return Block(*given, requirements, dims, updates, facts, numbers, is_loss)

    def _looked_up(self, member: Param | Nested) -> Param | Nested:
        if isinstance(member, Param) and member.name in self.body.lookups:
            return structs.replace(member, lookup=True)
        return member

    def _head(self) -> None:
        for given, known in zip(self.block.inputs, self.signature.inputs, strict=True):
            self._tensor(given.type)
            self.body.give(given.name, Entity("input", given.name.span, known.kind))
        for given in self.block.numbers:
            self.body.give(given.name, Entity("parameter", given.name.span, HOST))
        values, found = losses.numbers(self.block)
        self.numbers += values
        self.body.found += found
        if self.block.kind == "loss":
            self.body.found += losses.unfit(self.block, self.signature)
            self.body.used.add(losses.WEIGHTS)
        self._tensor(self.block.result)
        if self.block.result.index:
            where = self.block.result.index.span
            self.body.found.append(
                BadParam(where, "a block can't return indices", "write `[dims]` alone")
            )

    def _tensor(self, shape: ast.TensorType) -> None:
        self.body.distinct(shape.dims)
        if shape.index:
            self.body.dim(shape.index)

    def _param(self, item: ast.Param) -> None:
        body, shape = self.body, item.shape
        if isinstance(shape, ast.Arrow):
            source, target = body.distinct(shape.source), body.distinct(shape.target)
        else:
            source, target = (), self._plain(item, shape)
        init = item.init
        if source is None or target is None:
            body.give(item.name, Entity("param", item.name.span))
            return
        arrow, state = isinstance(shape, ast.Arrow), isinstance(item, ast.BlockState)
        param = Param(
            item.name.text, item.name.span, source, target, shape.span, init, arrow, state=state
        )
        what = "state" if state else "param"
        if body.give(item.name, Entity(what, item.name.span, param=param)):
            self.members.append(param)
        self._init(init)

    def _plain(self, item: ast.Param, shape: ast.TensorType) -> tuple[str, ...] | None:
        if shape.index:
            what, way = "a parameter can't hold indices", f"`{shape.index.text} -> ...` is a lookup"
            self.body.found.append(BadParam(shape.span, what, "indices can't be trained", way))
            return None
        if item.init is None:
            what = f"the tensor `{item.name.text}` doesn't say how it begins"
            way = "add `= zeros()` or `= ones()`"
            self.body.found.append(BadParam(item.span, what, "only arrows have a default", way))
        return self.body.distinct(shape.dims)

    def _init(self, init: ast.Expr | None) -> None:
        if init is None:
            return
        match init:
            case ast.Call(function=ast.Ref(name="zeros" | "ones"), arguments=()):
                return
            case ast.Call(
                function=ast.Ref(name="normal"),
                arguments=(ast.Argument(key=ast.Name(text="std"), value=value),),
            ):
                for ref in refs(value):
                    if ref.name in self.body.declared:
                        self.body.dims.setdefault(ref.name, ref.span)
                    else:
                        self.body.found.append(UnknownDim(ref.span, ref.name, self.body.declared))
            case _:
                reason = "write `normal(std: NUMBER)`, `zeros()` or `ones()`"
                found = BadParam(init.span, "this is no way to begin a parameter", reason)
                self.body.found.append(found)

    def _nested(self, item: ast.Sub | ast.Stack) -> None:
        body, what = self.body, "stack" if isinstance(item, ast.Stack) else "sub"
        over_known = not isinstance(item, ast.Stack) or body.dim(item.over)
        pattern = item.pattern if isinstance(item, ast.Stack) else ()
        names = [layer.block for layer in pattern] or [item.block]
        bounds = [self._block(name) for name in names]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds):
            body.give(item.name, Entity(what, item.name.span))
            return
        seen = signature(known[0], self.modules)
        over = item.over.text if isinstance(item, ast.Stack) else ""
        nested = Nested(item.name.text, item.name.span, seen.key, over)
        if pattern and isinstance(item, ast.Stack):
            nested = self._pattern(item, nested, [signature(b, self.modules) for b in known])
        if body.give(item.name, Entity(what, item.name.span, nested=nested, signature=seen)):
            self.members.append(nested)
        if isinstance(item, ast.Stack) and over_known:
            for name, bound in zip(names, known, strict=True):
                self._stackable(item, name.text, signature(bound, self.modules), bound)

    def _block(self, name: ast.Name) -> Bound | None:
        """The block of that name; None if it was reported that there is none."""
        bound = self.module.find("block", name.text)
        if bound is not None and isinstance(bound.section, ast.Block):
            return bound
        if name.text not in self.module.lost:
            known = self.module.known("block")
            self.body.found.append(UnknownBlock(name.span, name.text, known))
        return None

    def _pattern(self, item: ast.Stack, nested: Nested, seen: Sequence[Signature]) -> Nested:
        """The stack with its pattern as one block, whose subs are numbered."""
        first, keys = seen[0], list[Key]()
        for layer, each in zip(item.pattern, seen, strict=True):
            count = layer.count.value if layer.count else 1
            if not isinstance(count, int) or not 1 <= count <= LONGEST:
                reason = f"a count is a whole number from 1 to {LONGEST}"
                found = BadStack(layer.span, layer.block.text, nested.over, reason)
                self.body.found.append(found)
                count = 1
            keys += [each.key] * int(count)
            kinds = [given.kind for given in each.inputs], [given.kind for given in first.inputs]
            if kinds[0] != kinds[1]:
                reason = f"it takes other inputs than `{first.key.name}`"
                where = layer.block.text, nested.over, reason, each.span
                self.body.found.append(BadStack(layer.span, *where))
        if len(keys) > LONGEST:
            reason = f"its pattern has {len(keys)} layers, and {LONGEST} are the most"
            self.body.found.append(BadStack(item.span, first.key.name, nested.over, reason))
        shown = ", ".join(
            f"{layer.count.text} * {layer.block.text}" if layer.count else layer.block.text
            for layer in item.pattern
        )
        key = Key(self.module.file, f"[{shown}]")
        self.patterns[key] = layers_block(key, first, keys, item.span)
        return structs.replace(nested, block=key, period=len(keys))

    def _stackable(self, item: ast.Stack, name: str, seen: Signature, bound: Bound) -> None:
        over = item.over.text
        if not seen.inputs:
            found = BadStack(item.span, name, over, "it takes no input to hand on", seen.span)
            self.body.found.append(found)
            return
        first = seen.inputs[0]
        difference = differs(seen.result, first.kind)
        if difference and not (seen.result.broken or first.kind.broken):
            reason = f"its result {seen.result} is not as its first input {first.kind}"
            where = seen.result_span
            self.body.found.append(BadStack(item.span, name, over, reason, where))
        shapes = [i for i in getattr(bound.section, "items", ()) if isinstance(i, ast.Param)]
        for param in shapes:
            shape = param.shape
            names = shape.dims if isinstance(shape, ast.TensorType) else shape.source + shape.target
            if any(dim.text == over for dim in names):
                reason = f"its parameter `{param.name.text}` has dim `{over}` itself"
                self.body.found.append(BadStack(item.span, name, over, reason, param.span))

    def _equation(self, item: ast.Equation | ast.Return) -> None:
        if self.returned is not None:
            what = "nothing can follow `return`"
            self.body.found.append(NoReturn(item.span, what, "never reached"))
            return
        body, penalty = self.body, isinstance(item, ast.Penalty)
        value = body.numbers(item.value, "a penalty") if penalty else body.expr(item.value)
        if isinstance(item, ast.Return):
            self.returned = value
            self._result(item, value)
        elif self.body.give(item.target, Entity("equation", item.target.span, value.kind)):
            self.steps.append(Step(item.target.text, value, penalty))
            self.body.used.update([item.target.text] if penalty else ())

    def _of_state(self, item: ast.Total | ast.Update) -> None:
        if isinstance(item, ast.Total):
            step = states.total(self.body, item)
            self.steps += [step] if step else []
            return
        update = states.update(self.body, item)
        if update and any(update.state == known.state for known in self.updates):
            what, reason = f"`{update.state}` is updated twice", "a state has one update"
            self.body.found.append(BadState(item.span, what, reason))
        elif update:
            self.updates.append(update)

    def _result(self, item: ast.Return, value: Typed) -> None:
        wanted = self.signature.result
        if value.kind.broken or wanted.broken:
            return
        difference = differs(value.kind, wanted)
        if difference:
            name, origin = self.block.name.text, self.signature.result_span
            shown = (str(wanted), str(value.kind), difference)
            self.body.found.append(WrongResult(item.value.span, name, *shown, origin))

    def _end(self) -> None:
        name = self.block.name
        if self.returned is None:
            what = f"{self.block.kind} `{name.text}` returns nothing"
            self.body.found.append(NoReturn(name.span, what, "has no `return`"))
        if any(found.severity == "error" for found in self.body.found):
            return
        updated = {update.state for update in self.updates}
        for member in self.members:
            if isinstance(member, Param) and member.state and member.name not in updated:
                what, reason = f"`{member.name}` is never updated", "so it is no state"
                self.body.found.append(BadState(member.span, what, reason))
        for given, entity in self.body.entities.items():
            if given not in self.body.used:
                self.body.found.append(Unused(entity.span, given, entity.what))


def layers_block(key: Key, first: Signature, layers: Sequence[Key], span: Span) -> Block:
    """Layers one after the other as a block: each is a sub named by its number.

    What the first takes beside its first input, all take.
    """
    members = [Nested(str(number), span, block) for number, block in enumerate(layers)]
    given = [Typed(each.kind, Local(each.name), span=span) for each in first.inputs]
    value = given[0] if given else Typed(BROKEN, Constant(0.0), span=span)
    for member in members:
        value = Typed(first.result, Use(member.name), (value, *given[1:]), span)
    whole = structs.replace(first, key=key)
    return Block(whole, False, tuple(members), (), value, (), ())
