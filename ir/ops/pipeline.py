"""The op by which a pipeline stage takes its turns, in programs that are cut into stages."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.ops.base import Attrs, Env, require
from fllmc.ir.types import Type


class Pipeline(Attrs, frozen=True, tag="pipeline"):
    """One rank's work in a pipeline: `actions` in this order, such as `F0.2`, `B1.0`, `W1.0`.

    An action is a kind, a stage and a micro-batch, as `ir/timetable.py` has them; `homes[stage]` is
    the position on `axis` where a stage lives, `rank` this program's own. `functions` names what
    each kind runs for each stage that lives here: `F0=train.forward`.

    Functions take and give values by name. `names` are those of the operands: `carries` values
    that functions replace, then `slices` whose first dim is `over` and of which each micro-batch
    gets its position, then values that all share. Every other name is a value of one micro-batch
    and stage: `in0`, taken from another stage by `takes` (`in0.2=m5.1`: stage 2 takes message 5,
    from stage 1), or given by a function that ran earlier. `gives` (`out0.1=m5.2`) is the other
    end of a message, sent from as many `buffers` in turn. An operand that begins with a whole
    dim `wholes[i]` enters a function as its stretch `parts[i]` from position `starts[i]`. Results:
    the last carries.
    """

    axis: str
    over: str
    carries: int
    slices: int
    names: tuple[str, ...]
    homes: tuple[int, ...]
    rank: int
    functions: tuple[tuple[str, str], ...]
    actions: tuple[str, ...] = ()
    takes: tuple[tuple[str, str], ...] = ()
    gives: tuple[tuple[str, str], ...] = ()
    buffers: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()
    wholes: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    arity = -1

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(len(self.names) == len(operands), "operands and names differ in number")
        require(len(set(self.names)) == len(self.names), "an operand's name stands twice")
        for kind in operands[self.carries : self.carries + self.slices]:
            require(kind.names[:1] == (self.over,), f"{kind} does not begin with {self.over}")
        require(len(self.buffers) == len(self.gives), "not every message has its buffers")
        for _, name in self.functions:
            require(name in env.functions, f"no function {name}")
        return tuple(operands[: self.carries])

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (*((self.over,) if self.over else ()), *self.wholes)

    def stretch(self, kind: Type, name: str) -> int | None:
        """Where the part of an operand `kind` begins that a function takes as dim `name`."""
        if name not in self.parts:
            return None
        at = self.parts.index(name)
        return self.starts[at] if kind.names[:1] == (self.wholes[at],) else None
