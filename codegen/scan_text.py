"""The text of a scan: its body bound for each position, its buffers, and the loop that runs it."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.codegen.donations import staged, updated_carry, updated_input, updated_operand
from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.memory import passing
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Op


class ScanText:
    """Writes a scan into the text of the function that runs it."""

    def __init__(self, text: FunctionText, op: Op, at: int):
        assert isinstance(op.attrs, Scan)
        self.text, self.op, self.at, self.attrs = text, op, at, op.attrs
        self.callee = text.program.function(op.attrs.function)
        self.frame = text.plan.frame(op.attrs.function)
        self.count = text.sizes.size(op.attrs.over)
        self.spare = iter(range(len(text.frame.ops[at].scratch)))
        sides = filter(None, (op.attrs.ahead, op.attrs.behind))
        self.sides = {name: text.offset(at, next(self.spare)) for name in sides}
        self.frames = {frame.function: frame for frame in text.plan.frames}
        self.label = f"n{op.results[0]}" if op.results else f"n{at}"

    def scratch(self, value: int) -> str:
        """A scratch buffer with the type of one of the body's values."""
        offset = self.text.offset(self.at, next(self.spare))
        return self.text.view(self.text.arena(self.callee.types[value], offset))

    def carries(self) -> tuple[list[tuple[str, str]], list[str]]:
        """For each carry its two buffers, one when updated in place, and the copies after all runs.

        The buffers alternate; the start is chosen so that the last run writes the result's buffer.
        """
        pairs: list[tuple[str, str]] = []
        after: list[str] = []
        for carry in range(self.attrs.carries):
            operand = self.op.operands[carry]
            number = self.text.number(operand) if operand in self.text.host else ""
            source = "" if number else self.text.tensor(operand)
            target = self.text.tensor(self.op.results[carry])
            if updated_carry(self.callee, self.frame, carry):
                first, second = target, target
            else:
                spare = self.scratch(self.callee.results[carry])
                alternate = not staged(self.attrs)
                swap = alternate and source != target and self.count % 2 == 1
                first, second = (spare, target) if swap else (target, spare)
                if alternate and not swap and self.count % 2 == 1:
                    after.append(f"{target}.copy_({spare})")
            if number:
                self.text.body.append(f"{first}.fill_({number})")
            elif source != first:
                self.text.body.append(f"{first}.copy_({source})")
            pairs.append((first, second))
        return pairs, after

    def passed(self) -> list[tuple[str, str]]:
        """Two buffers of each value that passes between a turn and what runs beside the next."""
        kinds = passing(self.text.program, self.attrs)
        arena, view = self.text.arena, self.text.view
        buffers = [
            view(arena(kind, self.text.offset(self.at, next(self.spare))))
            for kind in kinds
            for _ in range(2)
        ]
        return list(zip(buffers[::2], buffers[1::2], strict=True))

    def results(self) -> list[str]:
        """The stacked results' tensors; one updated in place begins as a copy of its slices."""
        updated = {result: given for given, result in self.in_place().items()}
        names: list[str] = []
        for number, value in enumerate(self.op.results[self.attrs.carries :]):
            name = self.text.tensor(value)
            if number in updated:
                source = self.text.tensor(self.op.operands[updated[number]])
                if source != name:
                    self.text.body.append(f"{name}.copy_({source})")
            names.append(name)
        return names

    def in_place(self) -> dict[int, int]:
        """Slice operands that are updated, with the stacked result that they become."""
        found: dict[int, int] = {}
        for number in range(self.attrs.carries, len(self.op.results)):
            given = updated_operand(self.text.program, self.frames, self.attrs, number)
            if given is not None:
                found[given] = number - self.attrs.carries
        return found

    def shared(self) -> list[str]:
        """Values that all runs share; host scalars as slots."""
        names: list[str] = []
        start = self.attrs.carries + self.attrs.slices
        for number, value in enumerate(self.op.operands[start:], start):
            if value in self.text.host and self.callee.inputs[number].role != "host":
                cell = f"{self.label}_s{value}"
                self.text.bind.append(f"{cell} = rt.cell()")
                self.text.body.append(f"{cell}.fill_({self.text.number(value)})")
                names.append(cell)
            elif value in self.text.host:
                slot = f"{self.label}_s{value}"
                self.text.bind.append(f"{slot} = rt.slot()")
                self.text.body.append(f"rt.host[{slot}] = {self.text.number(value)}")
                names.append(slot)
            else:
                names.append(self.text.tensor(value))
        return names

    def write(self) -> None:
        """Append the scan's binding and its loop."""
        pairs, after = self.carries()
        stacked = self.results()
        slices = self.slice_names(stacked)
        shared = self.shared()
        base = f"base + {self.text.frame.ops[self.at].frame}"
        function = self.text.binders[self.callee.name]
        if staged(self.attrs):
            assert not self.attrs.final, "the turns of micro-batches are alike"
            self.write_staged(function, base, pairs, slices, shared, stacked)
        else:
            self.write_bound(function, base, pairs, slices, shared, stacked)
        self.text.body += after

    def slice_names(self, stacked: Sequence[str]) -> list[str]:
        """The stacked tensors that slices are taken from."""
        updated = self.in_place()
        stop = self.attrs.carries + self.attrs.slices
        return [
            stacked[updated[k]] if k in updated else self.text.tensor(self.op.operands[k])
            for k in range(self.attrs.carries, stop)
        ]

    def write_bound(
        self,
        function: str,
        base: str,
        pairs: Sequence[tuple[str, str]],
        slices: Sequence[str],
        shared: Sequence[str],
        stacked: Sequence[str],
    ) -> None:
        """One bound copy of the body for each position."""
        last = self.count - 1
        at = f"{last} - i" if self.attrs.reverse else "i"
        passed = self.passed()
        made = len(passed) - self.attrs.handed
        early, middle, late = cut(slices, self.attrs.early, self.attrs.late)
        kept = len(self.callee.results) - self.attrs.carries - self.attrs.handed
        even, odd = alternating(pairs), alternating([(b, a) for a, b in pairs])
        given = [*even, *each(middle, at), *shared, *alternating(passed[:made])]
        given += [*odd, *each(stacked[:kept], at), *alternating(passed[made:])]
        call = f"{function}({', '.join(['rt', base, *given])})"
        if self.attrs.final:
            final = self.text.binders[self.final().name]
            whole = [*even, *each(slices, at), *shared, *odd, *each(stacked, at)]
            call = f"{final}({', '.join(['rt', base, *whole])}) if i == {last} else {call}"
        self.text.bind.append(f"{self.label} = [{call} for i in range({self.count})]")
        ahead = self.side(self.attrs.ahead, [*each(early, at), *alternating(passed[:made])])
        after = [*alternating(passed[made:]), *each(late, at), *each(stacked[kept:], at)]
        behind = self.side(self.attrs.behind, after)
        if self.sides:
            self.text.body.append(f"rt.beside({ahead}, {self.label}, {behind})")
            return
        self.text.body += [f"for run_{self.label} in {self.label}:", f"    run_{self.label}()"]

    def side(self, name: str, given: Sequence[str]) -> str:
        """The bound copies of a function that runs beside other turns, one for each of its own."""
        if not name:
            return "()"
        label = f"{self.label}_{'ahead' if name == self.attrs.ahead else 'behind'}"
        call = f"{self.text.binders[name]}({', '.join(['rt', self.sides[name], *given])})"
        turns = self.count - bool(self.attrs.final)
        self.text.bind.append(f"{label} = [{call} for i in range({turns})]")
        return label

    def final(self) -> Function:
        """The function of the last turn, which must leave its results where the others do."""
        final = self.text.program.function(self.attrs.final)
        frame = self.text.plan.frame(final.name)
        for result, value in enumerate(final.results):
            wanted = updated_operand(self.text.program, self.frames, self.attrs, result)
            handed_through = value < len(final.inputs)
            found = updated_input(final, frame, self.attrs, result)
            if found != wanted and not handed_through:
                raise InternalError(f"{final.name} and {self.callee.name} update different inputs")
        return final

    def write_staged(
        self,
        function: str,
        base: str,
        pairs: Sequence[tuple[str, str]],
        slices: Sequence[str],
        shared: Sequence[str],
        stacked: Sequence[str],
    ) -> None:
        """One bound copy of the body; slices are copied in, results copied out."""
        updated = self.in_place()
        inside = [self.scratch(self.attrs.carries + k) for k in range(len(slices))]
        outside = [
            inside[list(updated).index(k)] if k in updated.values() else f"{name}[0]"
            for k, name in enumerate(stacked)
        ]
        assert not stacked, "results of micro-batches are carried, not stacked"
        given = [*(a for a, _ in pairs), *inside, *shared, *(b for _, b in pairs), *outside]
        self.text.bind.append(f"{self.label} = {function}({', '.join(['rt', base, *given])})")
        at = f"{self.count - 1} - i" if self.attrs.reverse else "i"
        self.text.body.append(f"for i in range({self.count}):")
        for name, buffer in zip(slices, inside, strict=True):
            self.text.body.append(f"    {buffer}.copy_({name}[{at}])")
        self.text.body.append(f"    {self.label}()")
        self.text.body += [f"    {a}.copy_({b})" for a, b in pairs if a != b]


def alternating(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Of each two buffers the one for turn i: the first in even ones, the second in odd ones."""
    return [a if a == b else f"({a}, {b})[i % 2]" for a, b in pairs]


def each(names: Sequence[str], at: str) -> list[str]:
    """The position `at` of each stacked tensor."""
    return [f"{name}[{at}]" for name in names]


def cut(names: Sequence[str], early: int, late: int) -> tuple[Sequence[str], ...]:
    """The first so many, those between, and the last so many."""
    stop = len(names) - late
    return names[:early], names[early:stop], names[stop:]
