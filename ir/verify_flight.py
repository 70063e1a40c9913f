"""The rules of what is in flight: each is waited for as a whole, and used by nothing before."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.ops import STARTABLE, Pipeline, Scan, Wait
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.walk import waits


def flight_faults(function: Function) -> Iterator[tuple[int | None, str]]:
    """What is wrong with the starts and waits of a function, with the op's position, if it is one.

    An op of which some result is waited for is started; all its results are pending until then.
    """
    makers = {value: at for at, op in enumerate(function.ops) for value in op.results}
    started = set(waits(function).values())
    pending = {value for at in started for value in function.ops[at].results}
    waited: set[int] = set()
    for at, op in enumerate(function.ops):
        if not isinstance(op.attrs, Wait):
            for value in sorted(pending.intersection(op.operands)):
                yield at, f"%{value} is pending: it is waited for elsewhere"
            continue
        maker = makers.get(op.operands[0])
        if maker is None or not isinstance(function.ops[maker].attrs, STARTABLE):
            yield at, f"%{op.operands[0]} is not made by an op that can be started"
        elif op.operands != function.ops[maker].results:
            yield at, f"what {function.ops[maker].kind} gives is waited for as a whole"
        elif maker in waited:
            yield at, f"what {function.ops[maker].kind} gives is waited for twice"
        if maker is not None:
            waited.add(maker)
    for value in sorted(pending.intersection(function.results)):
        yield None, f"%{value} is given while it is pending"


def beside_faults(program: Program, op: Op) -> Iterator[str]:
    """What is wrong with the functions of a scan that run beside its other turns."""
    assert isinstance(op.attrs, Scan)
    for name in filter(None, (op.attrs.ahead, op.attrs.behind)):
        ops = program.function(name).ops
        if not any(isinstance(inner.attrs, Wait) for inner in ops):
            yield f"{name} waits for nothing, so nothing of it runs beside other turns"
        if any(isinstance(inner.attrs, Pipeline | Scan) for inner in ops):
            yield f"{name} has turns of its own"
