"""Ops that run other functions: call, scan, and the fused group of the plan level."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.ops.base import Attrs, Env, Signature, require
from fllmc.ir.types import Dim, Type


def signature(env: Env, name: str) -> Signature:
    """A function's signature."""
    require(name in env.functions, f"no function {name}")
    return env.functions[name]


def matches(given: Sequence[Type], wanted: Sequence[Type], what: str) -> None:
    """Check operand types against a signature, one by one."""
    require(len(given) == len(wanted), f"{what}: {len(given)} values for {len(wanted)} inputs")
    for position, (have, want) in enumerate(zip(given, wanted, strict=True)):
        require(have == want, f"{what} {position} is {have}, wanted {want}")


class Call(Attrs, frozen=True, tag="call"):
    """Run a function once."""

    function: str
    arity = -1

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        found = signature(env, self.function)
        matches(operands, found.inputs, f"{self.function}: input")
        return found.results


class Scan(Attrs, frozen=True, tag="scan"):
    """Run a function once for each position of dim `over`, as jax.lax.scan does.

    Operands: `carries` values handed from one run to the next, then `slices` values whose first dim
    is `over`, of which each run gets its own position, then values that all runs share. Results:
    the last carries, then the function's other results stacked along a new first dim `over`.
    `reverse` runs from the last position to the first. The function takes (carries, slices, shared)
    and gives (carries, stacked). `final` names a function that is run in the last turn instead, one
    of the same signature that leaves out what only further turns would need.

    A turn's work may be cut in three, so that two parts of it run beside other turns. `ahead` takes
    the turn's first `early` slices alone, and is begun before the turn before it; the function
    takes what it gives behind the shared values. `behind` takes the function's last `handed`
    results, then the turn's last `late` slices, gives further stacked results, and ends after the
    turn behind it. The function itself takes the slices between. What they compute is ahead, then
    the function, then behind, turn by turn; `final` does the work of all three.
    """

    function: str
    over: str
    carries: int
    slices: int
    reverse: bool = False
    final: str = ""
    ahead: str = ""
    early: int = 0
    behind: str = ""
    late: int = 0
    handed: int = 0
    arity = -1

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that its turns run."""
        return tuple(filter(None, (self.function, self.final, self.ahead, self.behind)))

    def taker(self, operand: int) -> tuple[str, int]:
        """The function that takes an operand in a turn, and at which of its inputs."""
        stop = self.carries + self.slices
        if self.carries <= operand < self.carries + self.early:
            return self.ahead, operand - self.carries
        if stop - self.late <= operand < stop:
            return self.behind, self.handed + operand - (stop - self.late)
        if operand < self.carries:
            return self.function, operand
        return self.function, operand - self.early - (self.late if operand >= stop else 0)

    def giver(self, result: int, given: int) -> tuple[str, int]:
        """The function that gives a result, and at which of its results.

        `given` is how many results the function of the middle has.
        """
        kept = given - self.handed
        return (self.function, result) if result < kept else (self.behind, result - kept)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        start, stop = self.carries, self.carries + self.slices
        for kind in operands[start:stop]:
            require(kind.names[:1] == (self.over,), f"{kind} does not begin with {self.over}")
            require(not kind.dims[0].axes, f"{self.over} is divided in {kind}")
        slices = tuple(kind.placed(kind.dims[1:]) for kind in operands[start:stop])
        require(self.early + self.late <= self.slices, f"only {self.slices} slices")
        middle = slices[self.early : self.slices - self.late]
        made = self.given_ahead(slices[: self.early], env)
        found = signature(env, self.function)
        inner = (*operands[:start], *middle, *operands[stop:], *made)
        matches(inner, found.inputs, f"{self.function}: input")
        matches(found.results[:start], operands[:start], f"{self.function}: carry")
        kept = found.results[start : len(found.results) - self.handed]
        handed = found.results[len(found.results) - self.handed :]
        kept += self.given_behind((*handed, *slices[self.slices - self.late :]), env)
        if self.final:
            whole = Signature(
                (*operands[:start], *slices, *operands[stop:]), (*found.results[:start], *kept)
            )
            alike = signature(env, self.final) == whole
            require(alike, f"{self.function} and {self.final} differ in signature")
        stacked = [kind.placed((Dim(self.over), *kind.dims)) for kind in kept]
        return (*found.results[:start], *stacked)

    def given_ahead(self, early: tuple[Type, ...], env: Env) -> tuple[Type, ...]:
        """What `ahead` gives the function of the middle."""
        if not self.ahead:
            require(not early, "nothing takes the early slices")
            return ()
        found = signature(env, self.ahead)
        matches(early, found.inputs, f"{self.ahead}: input")
        return found.results

    def given_behind(self, taken: tuple[Type, ...], env: Env) -> tuple[Type, ...]:
        """What `behind` gives."""
        if not self.behind:
            require(not taken, "nothing takes what is handed on")
            return ()
        found = signature(env, self.behind)
        matches(taken, found.inputs, f"{self.behind}: input")
        return found.results

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.over,)


class Chunk(Attrs, frozen=True, tag="chunk"):
    """Deal the positions of a dim to the positions of a new first dim `over`.

    Position i of `dim` becomes position i // n of `part` in chunk i mod n, where n is the size of
    `over`. So each rank deals out the stretch that it holds, and `part` is placed as `dim` was.
    """

    dim: str
    part: str
    over: str

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(self.dim in kind.names, f"{kind} has no dim {self.dim}")
        require(not {self.part, self.over} & set(kind.names), f"{kind} has {self.part} already")
        sizes_fit(self, env)
        dims = (Dim(self.part, d.axes) if d.name == self.dim else d for d in kind.dims)
        return (kind.placed((Dim(self.over), *dims)),)


class Unchunk(Attrs, frozen=True, tag="unchunk"):
    """The inverse of chunk: [over, ..., part, ...] -> [..., dim, ...]."""

    dim: str
    part: str
    over: str

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(kind.names[:1] == (self.over,), f"{kind} does not begin with {self.over}")
        require(not kind.dims[0].axes, f"{self.over} is divided in {kind}")
        require(self.part in kind.names, f"{kind} has no dim {self.part}")
        require(self.dim not in kind.names, f"{kind} has {self.dim} already")
        sizes_fit(self, env)
        dims = (Dim(self.dim, d.axes) if d.name == self.part else d for d in kind.dims[1:])
        return (kind.placed(dims),)


class ToHost(Attrs, frozen=True, tag="to_host"):
    """The same value, copied to host memory: a result of a scan's body that waits there."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(not operands[0].partial, "an open sum does not go to the host")
        return (operands[0],)


class FromHost(Attrs, frozen=True, tag="from_host"):
    """The same value, copied back from host memory: the only use of a slice that waited there."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        return (operands[0],)


def sizes_fit(attrs: Chunk | Unchunk, env: Env) -> None:
    """Check that the chunks make up the dim."""
    whole, part, over = (env.sizes.size(name) for name in (attrs.dim, attrs.part, attrs.over))
    require(whole == part * over, f"{attrs.dim}={whole} is not {over} times {part}")


class Fused(Attrs, frozen=True, tag="fused"):
    """Run a function of elementwise ops and reductions as one kernel over tiles of `rows`.

    Every value inside either begins with all of `rows` or has none of them. A result without `rows`
    is a sum over them, gathered tile by tile.
    """

    function: str
    rows: tuple[str, ...]
    arity = -1

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        found = signature(env, self.function)
        matches(operands, found.inputs, f"{self.function}: input")
        placed: set[tuple[Dim, ...]] = set()
        for kind in (*found.inputs, *found.results):
            inside = [name for name in kind.names if name in self.rows]
            require(not inside or kind.names[: len(self.rows)] == self.rows, f"{kind}: rows apart")
            placed |= {kind.dims[: len(self.rows)]} if inside else set()
        require(len(placed) <= 1, f"{self.function}: rows are placed in several ways")
        return found.results


def stack_of(kind: Type, over: str) -> Type:
    """The type with `over` as a new first dim."""
    return msgspec.structs.replace(kind, dims=(Dim(over), *kind.dims))
