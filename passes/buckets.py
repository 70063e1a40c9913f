"""Which parameters of an entry are the regions of one bucket, and what is done to all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from msgspec import Struct

from fllmc.ir.ops import Add, AddN, Rename, Share, Stop
from fllmc.ir.plan import ALIGNMENT
from fllmc.ir.program import Function, Program
from fllmc.ir.types import Sizes, Type
from fllmc.passes.alike_work import Part, parts_of, users


class Joined(Struct, frozen=True):
    """Parts that do the same work, of each region one; `reads` and `writes` name their lists."""

    bucket: str
    regions: tuple[str, ...]
    parts: tuple[Part, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def elements(self, sizes: Sizes) -> int:
        """The number of elements that a rank has of all regions together."""
        return sum(sizes.local_elements(Type("f32", part.dims)) for part in self.parts)


class Slot(Struct, frozen=True):
    """Where a value belongs: a list of a bucket and a region in it."""

    bucket: str
    region: int
    label: str


def find_joined(function: Function, program: Program) -> list[Joined]:
    """What can be joined: updates of parameters, then what else is done to the same values."""
    finder = Finder(function, program)
    return [*finder.updates(), *finder.others()]


def slots_of(function: Function, program: Program) -> dict[int, Slot]:
    """The slots of all values of an entry that are in a bucket's lists."""
    finder = Finder(function, program)
    list(finder.updates())
    list(finder.others())
    return finder.slots


class Finder:
    """Finds the buckets of one entry, and tells of each value which slot it has."""

    def __init__(self, function: Function, program: Program) -> None:
        self.function, self.program = function, program
        self.inputs = {given.name: number for number, given in enumerate(function.inputs)}
        self.outputs = dict(zip(function.results, function.outputs, strict=True))
        self.used = users(function)
        self.parts = parts_of(function)
        self.slots: dict[int, Slot] = {}
        self.regions: dict[str, tuple[str, ...]] = {}
        self.done: set[tuple[int, ...]] = set()

    def updates(self) -> Iterator[Joined]:
        """The updates of two parameters or more of one kind; each begins a bucket."""
        groups: dict[tuple[object, ...], dict[str, Part]] = {}
        for part in self.parts:
            name = self.updated(part)
            if name:
                stack = self.program.parameter(name).stack
                axes = tuple(sorted(axis for dim in part.dims for axis in dim.axes))
                groups.setdefault((part.form, axes, stack), {})[name] = part
        for group in groups.values():
            names = sorted(group, key=self.rank)
            parts = tuple(group[name] for name in names)
            values = [value for part in parts for value in (*part.reads, *part.writes)]
            apart = len(set(values)) == len(values) and self.added_up(parts)
            if len(parts) > 1 and apart:
                bucket = f"{self.function.name}.bucket{len(self.regions)}"
                self.regions[bucket] = tuple(names)
                yield self.joined(bucket, parts)

    def rank(self, name: str) -> tuple[bool, int]:
        """By which parameters are ordered: behind one of odd size the next would not be aligned."""
        kind = self.function.types[self.inputs[name]]
        return self.program.sizes.local_bytes(kind) % ALIGNMENT != 0, self.inputs[name]

    def updated(self, part: Part) -> str:
        """The parameter that a part steps together with its states, or nothing."""
        written = [value for value in part.writes if self.function.types[value].dims]
        names = [self.outputs.get(value, "") for value in written]
        replaced = {self.inputs.get(name, -1) for name in names}
        if not replaced <= set(part.reads) or not all(map(self.apart, set(part.reads) - replaced)):
            return ""
        roles = [self.function.inputs[number].role for number in sorted(replaced)]
        own = [name for name in names if self.function.inputs[self.inputs[name]].role == "param"]
        return own[0] if len(own) == 1 and set(roles) <= {"param", "state"} else ""

    def apart(self, value: int) -> bool:
        """Whether a value has storage of its own in the entry's frame."""
        makers = {v: op for op in self.function.ops for v in op.results}
        if value in self.outputs:
            return False
        while value in makers and isinstance(makers[value].attrs, Rename | Share | Stop):
            value = makers[value].operands[0]
        return value in makers

    def others(self) -> Iterator[Joined]:
        """Parts that do one thing to the same list of all regions, and whose sums are added."""
        groups: dict[tuple[object, ...], dict[int, Part]] = {}
        for part in self.parts:
            slots = [self.slots.get(value) for value in (*part.reads, *part.writes)]
            homes = {(slot.bucket, slot.region) for slot in slots if slot is not None}
            if part.members in self.done or len(homes) != 1 or not self.fits(part):
                continue
            ((bucket, region),) = homes
            labels = tuple(slot and slot.label for slot in slots)
            groups.setdefault((bucket, part.form, labels), {})[region] = part
        for (bucket, *_), found in groups.items():
            parts = tuple(found[region] for region in sorted(found))
            if len(parts) == len(self.regions[str(bucket)]) and self.added_up(parts):
                yield self.joined(str(bucket), parts)

    def fits(self, part: Part) -> bool:
        """Whether what has no slot yet is a value of the frame, or a sum."""
        reads = all(value in self.slots or self.apart(value) for value in part.reads)
        types = self.function.types
        return reads and all(v in self.slots or not types[v].dims for v in part.writes)

    def added_up(self, parts: Sequence[Part]) -> bool:
        """Whether the sums of all parts are terms of one sum, and used by nothing else."""
        for number in range(len(parts[0].writes)):
            values = [part.writes[number] for part in parts]
            if not self.function.types[values[0]].dims:
                at = {tuple(self.used[value]) for value in values}
                ops = self.function.ops
                ends = [ops[a].attrs for uses in at for a in uses if a < len(ops)]
                if len(at) != 1 or len(ends) != 1 or not isinstance(ends[0], Add | AddN):
                    return False
        return True

    def joined(self, bucket: str, parts: Sequence[Part]) -> Joined:
        """The parts as one, their values with slots."""
        self.done.update(part.members for part in parts)
        lists = [part.reads for part in parts], [part.writes for part in parts]
        labels = [tuple(self.labels(bucket, list(zip(*each, strict=True)))) for each in lists]
        return Joined(bucket, self.regions[bucket], tuple(parts), labels[0], labels[1])

    def labels(self, bucket: str, lists: Sequence[Sequence[int]]) -> Iterator[str]:
        """The names of lists; values that have no slot yet get one."""
        for values in lists:
            label = self.label(bucket, values[0])
            if self.function.types[values[0]].dims:
                for region, value in enumerate(values):
                    self.slots.setdefault(value, Slot(bucket, region, label))
            yield label

    def label(self, bucket: str, value: int) -> str:
        """What a list is called by one of its values: `param`, a state's name, `grad`, `sum`."""
        if value in self.slots:
            return self.slots[value].label
        name = self.outputs.get(value, "")
        if value < len(self.function.inputs):
            name = self.function.inputs[value].name
        if name:
            return name.rpartition("#")[2] if "#" in name else "param"
        if not self.function.types[value].dims:
            return "sum"
        taken = {slot.label for slot in self.slots.values() if slot.bucket == bucket}
        wishes = (f"grad{number or ''}" for number in count())
        return next(wish for wish in wishes if wish not in taken)
