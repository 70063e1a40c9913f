"""The text of a pipeline op: a table of turns, each a bound function and what comes and goes."""

from __future__ import annotations

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.host_memory import host_places
from fllmc.codegen.turns import Held, Turn, Turns
from fllmc.codegen.views import quoted
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Op


class PipelineText:
    """Writes a pipeline op into the text of the function that runs it."""

    def __init__(self, text: FunctionText, op: Op, at: int):
        assert isinstance(op.attrs, Pipeline)
        self.text, self.op, self.at, self.attrs = text, op, at, op.attrs
        self.turns = Turns(text.program, op.attrs)
        self.label = f"n{at}"
        self.views: dict[tuple[str, int], str] = {}
        self.bound: dict[str, str] = {}
        self.operands: dict[str, str] = {}
        self.waiting, _ = host_places(text.program)
        self.sites = {
            (c.kind, c.port): c.site
            for c in text.plan.collectives
            if (c.function, c.op) == (text.function.name, at)
        }

    def write(self) -> None:
        """Append the buffers, the bound functions, the table, and the call that runs it."""
        frames = {frame.function: frame for frame in self.text.plan.frames}
        stop = self.attrs.carries + self.attrs.slices
        slices = [self.text.function.types[v] for v in self.op.operands[self.attrs.carries : stop]]
        offsets = iter(self.text.frame.ops[self.at].scratch)
        for name, kind, count in self.turns.buffers(frames, slices):
            size = self.text.buffer_bytes(kind)
            offset = next(offsets)
            for slot in range(count):
                place = f"base + {offset + slot * size}"
                label = f"{self.label}_{name.replace('.', '_').replace(' ', '_')}_{slot}"
                label = label if label.isidentifier() else ""
                self.views[name, slot] = self.text.view(self.text.arena(kind, place), label)
        for name, kind, count in self.turns.waiting():
            for slot in range(count):
                place = self.waiting[self.text.function.name, (name, slot)]
                self.views[name, slot] = self.text.waiting(kind, place)
        self.bind_operands()
        lines = [f"    {self.turn(turn)}," for turn in self.turns.turns]
        self.text.bind += [f"{self.label}_turns = (", *lines, ")"]
        self.text.body.append(f"rt.take_turns({self.label}_turns)")

    def bind_operands(self) -> None:
        """Names of the operands; carries begin as copies in their results' buffers."""
        for number, (name, value) in enumerate(
            zip(self.attrs.names, self.op.operands, strict=True)
        ):
            if number < self.attrs.carries:
                target = self.text.tensor(self.op.results[number])
                if value in self.text.host:
                    self.text.body.append(f"{target}.fill_({self.text.number(value)})")
                elif self.text.tensor(value) != target:
                    self.text.body.append(f"{target}.copy_({self.text.tensor(value)})")
                self.operands[name] = target
            elif value in self.text.host:
                self.operands[name] = self.host(name, value)
            else:
                self.operands[name] = self.text.tensor(value)

    def host(self, name: str, value: int) -> str:
        """A host scalar that the functions share, in a slot or, where one is due, as a tensor."""
        slot = f"{self.label}_s{value}"
        functions = self.turns.functions.values()
        roles = {i.role for f in functions for i in f.inputs if i.name == name}
        if roles == {"host"}:
            self.text.bind.append(f"{slot} = rt.slot()")
            self.text.body.append(f"rt.host[{slot}] = {self.text.number(value)}")
        else:
            self.text.bind.append(f"{slot} = rt.cell()")
            self.text.body.append(f"{slot}.fill_({self.text.number(value)})")
        return slot

    def view(self, held: Held) -> str:
        """The buffer of a value."""
        return self.views[held.port, held.slot]

    def turn(self, turn: Turn) -> str:
        """One row of the table."""
        run = self.function(turn)
        stop = self.attrs.carries + self.attrs.slices
        names = {given.name for given in self.turns.functions[turn.key].inputs}
        feed = [
            f"({self.views[name, 0]}, {self.operands[name]}[{turn.micro}])"
            for name in self.attrs.names[self.attrs.carries : stop]
            if name in names
        ]
        micros = 1 + max(each.micro for each in self.turns.turns)
        posts = [
            f"({self.sites['recv', held.port]}, {self.view(held)}, {rank}, "
            f"{message * micros + micro})"
            for held, message, rank, micro in turn.posts
        ]
        sends = [
            f"({self.sites['send', held.port]}, {self.view(held)}, {rank}, "
            f"{message * micros + turn.micro})"
            for held, message, rank in turn.sends
        ]
        takes = [self.view(held) for held in turn.takes]
        parts = [
            f"{word}={row(found)}"
            for word, found in (("feed", feed), ("post", posts), ("take", takes), ("send", sends))
            if found
        ]
        return f"rt.turn({', '.join([quoted(turn.action), run, *parts])})"

    def function(self, turn: Turn) -> str:
        """The function of a turn, bound once for each set of buffers."""
        function = self.turns.functions[turn.key]
        given = [
            self.given(turn, item.name, kind.names[:1])
            for item, kind in zip(function.inputs, function.types, strict=False)
        ]
        for result, name in enumerate(function.outputs):
            kind = function.types[function.results[result]]
            second = (f"{turn.key} {name}", 0)
            if second in self.views:
                given.append(self.views[second])
            else:
                given.append(self.given(turn, name, kind.names[:1]))
        base = f"base + {self.text.frame.ops[self.at].frame}"
        call = f"{self.text.binders[function.name]}({', '.join(['rt', base, *given])})"
        if call not in self.bound:
            self.bound[call] = f"{self.label}_{turn.key}_{len(self.bound)}"
            self.text.bind.append(f"{self.bound[call]} = {call}")
        return self.bound[call]

    def given(self, turn: Turn, name: str, first: tuple[str, ...]) -> str:
        """A value that a function takes or gives, by name; `first` is its first dim, if any."""
        if name in turn.held:
            return self.view(turn.held[name])
        if (name, 0) in self.views:
            return self.views[name, 0]
        whole = self.operands[name]
        if first and first[0] in self.attrs.parts:
            start = self.attrs.starts[self.attrs.parts.index(first[0])]
            stop = start + self.text.sizes.size(first[0])
            return self.text.view(f"{whole}[{start}:{stop}]")
        return whole


def row(items: list[str]) -> str:
    """A tuple's text."""
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
