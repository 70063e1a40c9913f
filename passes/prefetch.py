"""Prefetch: the transfers of a stack's layer run beside the layers before and after it.

    scan{function=layer,over=layers,carries=1,slices=3}(%0, %1, %2, %3)
    ->
    scan{function=layer,over=layers,carries=1,slices=3,ahead=layer.ahead,early=2,...}(%0, ...)

So the parameters of the next layer are gathered while a layer computes, forward and backward; what
waits in host memory is fetched; gradients are scattered, and kept values put away, while the next
layer computes. The numbers stay the same to the last bit. `passes/side_work.py` finds what can go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import STARTABLE, Scan, Wait
from fllmc.ir.program import Function, Op, Program
from fllmc.passes.naming import unique
from fllmc.passes.side_work import Body, SideWork

MICROBATCHES = "microbatches"


def prefetched(program: Program, limit: int) -> Program:
    """The program with every stack's turns cut; no more than `limit` bytes pass in a stack."""
    for name, found in stack_bodies(program).items():
        first = found[0]
        last = any(attrs.final for attrs in found)
        alike = {structs.replace(attrs, final="") for attrs in found}
        if len(alike) > 1 or program.sizes.size(first.over) - last < 2:
            continue
        body = Body(program.function(name), first, program.sizes)
        work = body.side_work(limit)
        if work.ahead or work.behind:
            program = Cutter(program, body, work).run()
    return program


def stack_bodies(program: Program) -> dict[str, list[Scan]]:
    """The bodies of all stacks, with the scans that run them."""
    found: dict[str, list[Scan]] = {}
    for function in program.functions:
        for op in function.ops:
            if isinstance(op.attrs, Scan) and op.attrs.over != MICROBATCHES:
                found.setdefault(op.attrs.function, []).append(op.attrs)
    return {name: all_ for name, all_ in found.items() if not (all_[0].ahead or all_[0].behind)}


class Cutter:
    """Cuts one body in three, and makes its scans run them."""

    def __init__(self, program: Program, body: Body, work: SideWork) -> None:
        self.program, self.body, self.work = program, body, work
        self.function, self.attrs = body.function, body.attrs
        taken = {function.name for function in program.functions}
        self.names = [unique(f"{self.function.name}.{side}", taken) for side in ("ahead", "behind")]
        ops = self.function.ops
        self.middle = [n for n in range(len(ops)) if n not in (*work.ahead, *work.behind)]
        used = {side: {v for at in at_ops for v in ops[at].operands} for side, at_ops in self.sides}
        self.early = [v for v in body.slices if v in used["ahead"]]
        self.late = body.late_slices(work.behind)
        direct = used["middle"] | set(self.function.results)
        self.between = [v for v in body.slices if v in direct or v not in (*self.early, *self.late)]
        self.made, self.handed = body.leaving(work.ahead), body.handed(work.behind)
        put = {v for at in work.behind for v in ops[at].results}
        stacked = range(self.attrs.carries, len(self.function.results))
        self.moved = [r for r in stacked if self.function.results[r] in put]
        self.kept = [r for r in stacked if r not in self.moved]

    @property
    def sides(self) -> tuple[tuple[str, Sequence[int]], ...]:
        """The ops of each part."""
        return ("ahead", self.work.ahead), ("middle", self.middle), ("behind", self.work.behind)

    @property
    def carries(self) -> range:
        """The carries, as inputs of the body."""
        return range(self.attrs.carries)

    @property
    def shared(self) -> range:
        """The values that all turns share, as inputs of the body."""
        return range(self.body.slices.stop, len(self.function.inputs))

    def run(self) -> Program:
        """The program with its scans cut."""
        new = [self.cut_middle()]
        new += [self.cut_ahead()] if self.work.ahead else []
        new += [self.cut_behind()] if self.work.behind else []
        finals = self.finals()
        program = self.program.with_functions(*new, *finals)
        callers = [f for f in self.program.functions if any(map(self.mine, f.ops))]
        signatures = program.signatures
        return program.with_functions(
            *(self.with_scans(f, Builder(f.name, program.sizes, signatures)) for f in callers)
        )

    def mine(self, op: Op) -> bool:
        """Whether the op is a scan of this body."""
        return isinstance(op.attrs, Scan) and op.attrs.function == self.function.name

    def builder(self, name: str, inputs: Iterable[int]) -> tuple[Builder, dict[int, int]]:
        """A builder of a part that takes these values of the body, by their names."""
        b = Builder(name, self.program.sizes, self.program.signatures)
        mapping: dict[int, int] = {}
        taken: set[str] = set()
        for value in inputs:
            own = value < len(self.function.inputs)
            wish = self.function.inputs[value].name if own else f"v{value}"
            role = self.function.inputs[value].role if own else "value"
            mapping[value] = b.input(unique(wish, taken), self.function.types[value], role)
            taken.add(b.inputs[-1].name)
        return b, mapping

    def emit(self, b: Builder, mapping: dict[int, int], at: int) -> None:
        """One op of the body, and the constants that it takes."""
        op = self.function.ops[at]
        for value in op.operands:
            if value not in mapping and value in self.body.constants:
                self.emit(b, mapping, self.body.makers[value])
        b.path, b.span = op.path, op.span
        made = b.emit(op.attrs, *(mapping[value] for value in op.operands))
        mapping.update(zip(op.results, made, strict=True))

    def wait(self, b: Builder, mapping: dict[int, int], at: int) -> None:
        """Wait for an op that was started."""
        op = self.function.ops[at]
        b.path, b.span = op.path, op.span
        done = b.emit(Wait(), *(mapping[value] for value in op.results))
        mapping.update(zip(op.results, done, strict=True))

    def cut_ahead(self) -> Function:
        """What runs ahead: all transfers are started, then waited for."""
        b, mapping = self.builder(self.names[0], self.early)
        moves = [at for at in self.work.ahead if self.transfers(at)]
        for at in self.work.ahead:
            self.emit(b, mapping, at)
        for at in moves:
            self.wait(b, mapping, at)
        return b.finish([mapping[v] for v in self.made], [f"v{v}" for v in self.made])

    def cut_behind(self) -> Function:
        """What runs behind: transfers are started first, if they can be, and waited for in time."""
        b, mapping = self.builder(self.names[1], (*self.handed, *self.late))
        known = {*mapping, *self.body.constants}
        first = [
            at
            for at in self.work.behind
            if self.transfers(at) and known.issuperset(self.function.ops[at].operands)
        ]
        for at in first:
            self.emit(b, mapping, at)
        begun = {value: at for at in first for value in self.function.ops[at].results}
        waited: set[int] = set()
        for at in (at for at in self.work.behind if at not in first):
            for value in self.function.ops[at].operands:
                if value in begun and begun[value] not in waited:
                    waited.add(begun[value])
                    self.wait(b, mapping, begun[value])
            self.emit(b, mapping, at)
        for at in first:
            if at not in waited:
                self.wait(b, mapping, at)
        results = [self.function.results[r] for r in self.moved]
        return b.finish(
            [mapping[v] for v in results], [self.function.outputs[r] for r in self.moved]
        )

    def cut_middle(self) -> Function:
        """The body without what runs beside it."""
        inputs = (*self.carries, *self.between, *self.shared, *self.made)
        b, mapping = self.builder(self.function.name, inputs)
        for at in self.middle:
            if not mapping.keys() >= set(self.function.ops[at].results):
                self.emit(b, mapping, at)
        stays = [*self.carries, *self.kept]
        results = [*(self.function.results[r] for r in stays), *self.handed]
        outputs = [self.function.outputs[r] for r in stays]
        for value in self.handed:
            outputs.append(unique(f"v{value}", set(outputs)))
        return b.finish([mapping[v] for v in results], outputs, self.function.span)

    def transfers(self, at: int) -> bool:
        """Whether the op can be started."""
        return isinstance(self.function.ops[at].attrs, STARTABLE)

    def finals(self) -> Iterator[Function]:
        """The functions of last turns, with the operands and results of the cut scan."""
        scans = [op.attrs for f in self.program.functions for op in f.ops if self.mine(op)]
        names = [attrs.final for attrs in scans if isinstance(attrs, Scan) and attrs.final]
        for name in dict.fromkeys(names):
            final = self.program.function(name)
            b = Builder(name, self.program.sizes, self.program.signatures)
            mapping: dict[int, int] = {}
            for number in self.operands(range(len(final.inputs))):
                given = final.inputs[number]
                wish = unique(given.name, {each.name for each in b.inputs})
                mapping.setdefault(number, len(b.types))
                b.input(wish, final.types[number], given.role)
            for op in final.ops:
                b.path, b.span = op.path, op.span
                made = b.emit(op.attrs, *(mapping[value] for value in op.operands))
                mapping.update(zip(op.results, made, strict=True))
            order = [*self.carries, *self.kept, *self.moved]
            yield b.finish(
                [mapping[final.results[r]] for r in order],
                [final.outputs[r] for r in order],
                final.span,
            )

    def operands(self, given: Sequence[int]) -> list[int]:
        """The operands of the cut scan, of those that it had."""
        places = (*self.carries, *self.early, *self.between, *self.late, *self.shared)
        return [given[place] for place in places]

    def with_scans(self, function: Function, b: Builder) -> Function:
        """A function that runs the body, with its scans cut."""
        mapping = {
            number: b.input(given.name, function.types[number], given.role)
            for number, given in enumerate(function.inputs)
        }
        for op in function.ops:
            b.path, b.span = op.path, op.span
            operands = [mapping[value] for value in op.operands]
            results: Sequence[int] = op.results
            attrs = op.attrs
            if isinstance(attrs, Scan) and self.mine(op):
                attrs = self.cut_attrs(attrs)
                operands = self.operands(operands)
                results = [op.results[r] for r in (*self.carries, *self.kept, *self.moved)]
            made = b.emit(attrs, *operands)
            mapping.update(zip(results, made, strict=True))
        return b.finish([mapping[v] for v in function.results], function.outputs, function.span)

    def cut_attrs(self, attrs: Scan) -> Scan:
        """The attributes of a scan whose turns are cut."""
        ahead, behind = self.names
        return structs.replace(
            attrs,
            slices=len(self.early) + len(self.between) + len(self.late),
            ahead=ahead if self.work.ahead else "",
            early=len(self.early),
            behind=behind if self.work.behind else "",
            late=len(self.late),
            handed=len(self.handed),
        )
