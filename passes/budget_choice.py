"""Which values to keep under a budget of bytes so that getting back the others takes least time.

An integer program. x_v: value v is kept on the device. h_v: it waits in host memory, for the time
c_v of its copies there and back. r_s: step s is run again. e_w: seconds of copies that are over
those t_w of other work beside which they run, each way. Every wanted value is kept, waits or is
made again, and a step that is run again has each of its operands kept, waiting or made again:

    min sum(t_s r_s) + sum(e_w)   x_v + h_v + r_maker(v) >= 1 for wanted v
                       e_w >= sum(c_v / 2 h_v) - t_w
                       r_s <= x_u + h_u + r_maker(u) for each operand u of s
                       sum(b_v x_v) <= budget,  sum(g_v h_v) <= bytes of host memory

The linear relaxation is solved first: where it is integral it is the answer. Else a search bounded
by nodes, not by time, so that the same instance has the same answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

import msgspec
from msgspec import structs

from fllmc.passes.cut import Choices, values_to_keep
from fllmc.passes.integer_program import Row, solved


class Step(msgspec.Struct, frozen=True):
    """Something that can be run again: what it takes, what it gives, and its seconds."""

    operands: tuple[int, ...]
    results: tuple[int, ...]
    seconds: float


class Away(msgspec.Struct, frozen=True):
    """What a value takes while it waits in host memory: bytes there, and seconds of copies."""

    bytes: int
    seconds: float


class Window(msgspec.Struct, frozen=True):
    """Seconds in which copies one way of values `first` to `stop` run beside other work."""

    first: int
    stop: int
    seconds: float

    def over(self, away: Collection[int], waits: Mapping[int, Away]) -> float:
        """The seconds of copies that are left; half of a value's are one way."""
        own = sum(waits[v].seconds / 2 for v in sorted(away) if self.first <= v < self.stop)
        return max(0.0, own - self.seconds)


class Instance(msgspec.Struct, frozen=True):
    """Values by number: bytes for keeping each, None where it can't be; the steps; the wanted.

    `away` says what each takes in host memory, None where it can't wait there, and `host` the bytes
    that there are. Copies of what lies in windows, two for a value, take only what is over.
    """

    costs: tuple[int | None, ...]
    steps: tuple[Step, ...]
    wanted: tuple[int, ...]
    away: tuple[Away | None, ...] = ()
    host: int = 0
    windows: tuple[Window, ...] = ()

    @property
    def waits(self) -> dict[int, Away]:
        """What values that can wait in host memory take there."""
        return {value: away for value, away in enumerate(self.away) if away is not None}


class Held(msgspec.Struct, frozen=True):
    """The values that are kept on the device, and those that wait in host memory."""

    kept: frozenset[int]
    away: frozenset[int] = frozenset()

    @property
    def all(self) -> frozenset[int]:
        """All that need not be made again."""
        return self.kept | self.away


class Choice(msgspec.Struct, frozen=True):
    """What is held, the bytes on the device and on the host, the seconds, and a bound below these.

    `bound` is what the solver proves that no choice is below; it equals `seconds` at the optimum.
    """

    kept: tuple[int, ...]
    away: tuple[int, ...]
    bytes: int
    host_bytes: int
    seconds: float
    bound: float

    @property
    def gap(self) -> float:
        """How far from optimal the choice can be at most, as a share of its seconds."""
        return 0.0 if self.seconds <= self.bound else 1 - self.bound / self.seconds

    @property
    def held(self) -> Held:
        """What is held, as sets."""
        return Held(frozenset(self.kept), frozenset(self.away))


def bytes_of(instance: Instance, held: Held) -> int:
    """What keeping these values takes on the device."""
    return sum(instance.costs[value] or 0 for value in held.kept)


def host_bytes_of(instance: Instance, held: Held) -> int:
    """What these values take in host memory."""
    waits = instance.waits
    return sum(waits[value].bytes for value in held.away)


def redone(instance: Instance, have: frozenset[int]) -> frozenset[int]:
    """The steps that have to be run again, by number; KeyError where something can't be had."""
    makers = {value: at for at, step in enumerate(instance.steps) for value in step.results}
    found: set[int] = set()
    todo = [value for value in instance.wanted if value not in have]
    while todo:
        at = makers[todo.pop()]
        if at not in found:
            found.add(at)
            todo += [value for value in instance.steps[at].operands if value not in have]
    return frozenset(found)


def seconds_of(instance: Instance, held: Held) -> float:
    """The time of copies and of getting back the other values."""
    again = sum(instance.steps[at].seconds for at in sorted(redone(instance, held.all)))
    waits, windows = instance.waits, instance.windows
    alone = [v for v in sorted(held.away) if not any(w.first <= v < w.stop for w in windows)]
    return (
        again
        + sum(waits[value].seconds for value in alone)
        + sum(window.over(held.away, waits) for window in windows)
    )


def fewest_bytes(instance: Instance) -> Held:
    """What to hold when time does not count: a minimum cut, of bytes on the device.

    What can wait in host memory takes none there, if that is large enough for all that then does.
    """
    waits = instance.waits
    found = _cut(instance, frozenset(waits))
    if host_bytes_of(instance, found) <= instance.host:
        return found
    within = _least_within_host(instance)
    return within or _cut(instance, frozenset(v for v in waits if instance.costs[v] is None))


def _cut(instance: Instance, waits: frozenset[int]) -> Held:
    """The fewest bytes on the device where these values take none there."""
    made = {value for step in instance.steps for value in step.results}
    feeds = tuple((a, v) for step in instance.steps for a in step.operands for v in step.results)
    fixed = frozenset(range(len(instance.costs))) - made
    costs = tuple(0 if v in waits else cost for v, cost in enumerate(instance.costs))
    found = values_to_keep(Choices(costs, fixed, feeds, instance.wanted))
    free = frozenset(v for v in found if instance.costs[v] == 0)
    return Held(found - waits | free, (found & waits) - free)


def _least_within_host(instance: Instance) -> Held | None:
    """The fewest bytes on the device with what fits into host memory away; None where unknown."""
    count = len(instance.costs)
    prices = [float(cost or 0) for cost in instance.costs] + [0.0] * (count + len(instance.steps))
    scale = max(prices) or 1.0
    rows = [*_needs(instance), *_limits(instance, None)]
    _, answer = solved([p / scale for p in prices], rows, _most(instance), len(prices))
    return None if answer is None else _held(instance, answer)


def choose(instance: Instance, budget: int) -> Choice:
    """The values to hold. Precondition: the fewest bytes are within the budget."""
    scale = max(
        [step.seconds for step in instance.steps] + [a.seconds for a in instance.waits.values()],
        default=0.0,
    )
    scale = scale or 1.0
    waits, windows = instance.waits, instance.windows
    alone = {v for v in waits if not any(w.first <= v < w.stop for w in windows)}
    prices = [0.0] * len(instance.costs)
    prices += [waits[v].seconds / scale if v in alone else 0.0 for v in range(len(prices))]
    prices += [step.seconds / scale for step in instance.steps]
    most = [*_most(instance), *(inf for _ in windows)]
    rows = [*_needs(instance), *_limits(instance, budget), *_overs(instance, scale)]
    bound, answer = solved([*prices, *(1.0 for _ in windows)], rows, most, len(prices))
    held = None if answer is None else _held(instance, answer)
    if held is None or not fits(instance, held, budget):
        held = fewest_bytes(instance)
    held = at_home(instance, needed(instance, held), budget)
    seconds = seconds_of(instance, held)
    return Choice(
        tuple(sorted(held.kept)),
        tuple(sorted(held.away)),
        bytes_of(instance, held),
        host_bytes_of(instance, held),
        seconds,
        min(bound * scale, seconds),
    )


def fits(instance: Instance, held: Held, budget: int) -> bool:
    """Whether what is held is within the budget and within host memory."""
    return bytes_of(instance, held) <= budget and host_bytes_of(instance, held) <= instance.host


def needed(instance: Instance, held: Held) -> Held:
    """What is held without what could go at no cost of time, largest first."""
    have, now = held, seconds_of(instance, held)
    for value in sorted(held.all, key=lambda v: (-(instance.costs[v] or 0), v)):
        fewer = Held(have.kept - {value}, have.away - {value})
        try:
            spared = seconds_of(instance, fewer) <= now
        except KeyError:
            continue
        have = fewer if spared else have
    return have


def at_home(instance: Instance, held: Held, budget: int) -> Held:
    """What is held, with as much as fits of what waits for no gain kept on the device instead."""
    for value in sorted(held.away):
        here = Held(held.kept | {value}, held.away - {value})
        gains = seconds_of(instance, here) > seconds_of(instance, held)
        if instance.costs[value] is not None and not gains and fits(instance, here, budget):
            held = here
    return held


def _held(instance: Instance, answer: Sequence[float]) -> Held:
    """What a solution holds; what it has in both places is kept on the device."""
    count = len(instance.costs)
    kept = frozenset(v for v in range(count) if answer[v] > 0.5)
    away = frozenset(v for v in instance.waits if answer[count + v] > 0.5)
    return Held(kept, away - kept)


def _most(instance: Instance) -> list[float]:
    """What each variable can be at most: kept values, waiting ones, then steps."""
    waits = instance.waits
    kept = [0.0 if cost is None else 1.0 for cost in instance.costs]
    return [*kept, *(float(v in waits) for v in range(len(kept))), *(1.0 for _ in instance.steps)]


def _needs(instance: Instance) -> list[Row]:
    """That wanted values, and what the steps that are run again take, are at hand."""
    count = len(instance.costs)
    first = 2 * count
    makers = {value: first + at for at, step in enumerate(instance.steps) for value in step.results}
    waits = instance.waits

    def at_hand(value: int) -> list[tuple[int, float]]:
        ways = [value, *([count + value] if value in waits else [])]
        return [(way, 1.0) for way in [*ways, *([makers[value]] if value in makers else [])]]

    rows = [Row(tuple(at_hand(value)), low=1.0) for value in instance.wanted]
    for at, step in enumerate(instance.steps):
        for operand in dict.fromkeys(step.operands):
            rows.append(Row((*at_hand(operand), (first + at, -1.0)), low=0.0))
    return rows


def _limits(instance: Instance, budget: int | None) -> list[Row]:
    """That what is held fits on the device, where there is a budget, and into host memory."""
    count, rows = len(instance.costs), list[Row]()
    if budget is not None:
        share = max(budget, 1)
        terms = [(v, cost / share) for v, cost in enumerate(instance.costs) if cost]
        rows.append(Row(tuple(terms), high=budget / share))
    share = max(instance.host, 1)
    terms = [(count + v, away.bytes / share) for v, away in instance.waits.items() if away.bytes]
    if terms:
        rows.append(Row(tuple(terms), high=instance.host / share))
    return rows


def _overs(instance: Instance, scale: float) -> list[Row]:
    """That the seconds over each window are no less than those of its copies less its own."""
    count, waits = len(instance.costs), instance.waits
    first = 2 * count + len(instance.steps)
    return [
        Row(
            (
                (first + number, 1.0),
                *((count + v, -a.seconds / 2 / scale) for v, a in waits.items() if v in own),
            ),
            low=-window.seconds / scale,
        )
        for number, window in enumerate(instance.windows)
        for own in [range(window.first, window.stop)]
    ]


def moved(instance: Instance, by: int) -> Instance:
    """The instance with its values' numbers moved, as they are behind others."""
    steps = tuple(
        structs.replace(
            step,
            operands=tuple(v + by for v in step.operands),
            results=tuple(v + by for v in step.results),
        )
        for step in instance.steps
    )
    wanted = tuple(v + by for v in instance.wanted)
    windows = tuple(Window(w.first + by, w.stop + by, w.seconds) for w in instance.windows)
    return structs.replace(instance, steps=steps, wanted=wanted, windows=windows)
