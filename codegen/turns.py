"""A stage's turns in the pipeline: which buffer each value of a micro-batch is in, and when.

A value that a stage makes and uses itself is in its buffer from the action that makes it to the
last that reads it. One that arrives is from the action before its first reader on, when its receive
is posted. What is sent has as many buffers as `Pipeline.buffers` says, used in turn: by then the
receiver has begun to take the message, so that to wait for it locks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fllmc.codegen.offloaded import gives_away, takes_back
from fllmc.ir.ops import Pipeline
from fllmc.ir.plan import Frame, Place
from fllmc.ir.program import Function, Program
from fllmc.ir.types import Type


class Held(NamedTuple):
    """A value of one micro-batch: in buffer `slot` of those that a port has."""

    port: str
    slot: int


class Turn(NamedTuple):
    """One action: its function by key, its micro-batch, and where its values are, by their names.

    `posts` are received into from the start of this action on, `takes` must have come, `sends` go
    off behind it; each with the number of its message and the other stage's rank.
    """

    action: str
    key: str
    micro: int
    held: Mapping[str, Held]
    posts: tuple[tuple[Held, int, int, int], ...]
    takes: tuple[Held, ...]
    sends: tuple[tuple[Held, int, int], ...]


class Buffers(NamedTuple):
    """Buffers of one type: of a port, of a slice that is copied in, or of a carry's second copy."""

    name: str
    type: Type
    slots: int


class Turns:
    """The turns of one pipeline op."""

    def __init__(self, program: Program, attrs: Pipeline):
        self.attrs = attrs
        self.functions: dict[str, Function] = {
            key: program.function(name) for key, name in attrs.functions
        }
        self.types: dict[str, Type] = {}
        self.written: dict[tuple[str, int], int] = {}
        self.read: dict[tuple[str, int], list[int]] = {}
        self.given_by: dict[str, dict[str, None]] = {}
        self.taken_by: dict[str, dict[tuple[str, str], None]] = {}
        self.actions = [self._parsed(action) for action in attrs.actions]
        self.messages = {port: self._message(text) for port, text in attrs.takes}
        self.gifts = {port: self._message(text) for port, text in attrs.gives}
        self.givers = {message: port for port, (message, _) in self.gifts.items()}
        for at in range(len(self.actions)):
            self._note(at)
        self.slots, self.counts = self._slots()
        self.away = frozenset(port for port in self.counts if self._is_away(port, program))
        self.turns = tuple(self._turn(at) for at in range(len(self.actions)))

    def _parsed(self, action: str) -> tuple[str, str, int]:
        key, _, micro = action.partition(".")
        return key, key[1:], int(micro)

    def _message(self, text: str) -> tuple[int, int]:
        """The number of a message, and the rank at its other end."""
        number, _, stage = text.partition(".")
        return int(number[1:]), self.attrs.homes[int(stage)]

    def port(self, name: str, stage: str) -> str:
        """Where a value of a stage lies: with its giver, if that is a stage of this rank."""
        port = f"{name}.{stage}"
        if port in self.messages:
            message, rank = self.messages[port]
            if rank == self.attrs.rank:
                return self.givers[message]
        return port

    def arrives(self, port: str) -> bool:
        """Whether a port's values come from another rank."""
        return port in self.messages

    def leaves(self, port: str) -> bool:
        """Whether a port's values go to another rank."""
        return port in self.gifts and self.gifts[port][1] != self.attrs.rank

    def way(self, port: str) -> str:
        """Whether a value that is sent or received belongs to the forward or the backward pass."""
        own = int(port.rpartition(".")[2])
        if port in self.messages:
            return "forward" if self._end(self.attrs.takes, port) < own else "backward"
        return "forward" if self._end(self.attrs.gives, port) > own else "backward"

    @staticmethod
    def _end(messages: Sequence[tuple[str, str]], port: str) -> int:
        """The stage at the other end of a port's message."""
        return int(dict(messages)[port].rpartition(".")[2])

    def _note(self, at: int) -> None:
        key, stage, micro = self.actions[at]
        function = self.functions[key]
        for given, kind in zip(function.inputs, function.types, strict=False):
            if given.name not in self.attrs.names:
                port = self.port(given.name, stage)
                self.types.setdefault(port, kind)
                self.read.setdefault((port, micro), []).append(at)
                self.taken_by.setdefault(port, {})[key, given.name] = None
        for name, kind in zip(function.outputs, function.signature.results, strict=True):
            if name not in self.attrs.names:
                port = f"{name}.{stage}"
                self.types[port] = kind
                self.written[port, micro] = at
                self.given_by.setdefault(port, {})[key] = None

    def _slots(self) -> tuple[dict[tuple[str, int], int], dict[str, int]]:
        """The buffer of each value, and how many buffers each port has."""
        lives: dict[str, list[tuple[int, int, int]]] = {}
        for port, micro in {**self.read, **self.written}:
            readers = self.read.get((port, micro), [])
            begin = self.written.get((port, micro))
            if begin is None:
                begin = max(0, readers[0] - 1)
            lives.setdefault(port, []).append((begin, max([begin, *readers]), micro))
        planned = dict(zip((port for port, _ in self.attrs.gives), self.attrs.buffers, strict=True))
        slots: dict[tuple[str, int], int] = {}
        counts: dict[str, int] = {}
        for port in sorted(lives):
            free_from: list[int] = []
            for number, (begin, end, micro) in enumerate(sorted(lives[port])):
                if self.leaves(port):
                    slot = number % planned[port]
                    counts[port] = planned[port]
                else:
                    free = [s for s, until in enumerate(free_from) if until < begin]
                    slot = free[0] if free else len(free_from)
                    free_from[slot : slot + 1] = [end]
                    counts[port] = len(free_from)
                slots[port, micro] = slot
        return slots, counts

    def _is_away(self, port: str, program: Program) -> bool:
        """Whether a port's values wait in host memory, by all that give and take them."""
        givers, takers = self.given_by.get(port, {}), self.taken_by.get(port, {})
        name = port.rpartition(".")[0]
        return (
            len(givers) > 0
            and not self.leaves(port)
            and all(gives_away(self.functions[key], name, program) for key in givers)
            and all(takes_back(self.functions[key], own, program) for key, own in takers)
        )

    def _held(self, port: str, micro: int) -> Held:
        return Held(port, self.slots[port, micro])

    def _turn(self, at: int) -> Turn:
        key, stage, micro = self.actions[at]
        function = self.functions[key]
        held: dict[str, Held] = {}
        for name in (*(given.name for given in function.inputs), *function.outputs):
            if name not in self.attrs.names:
                held[name] = self._held(self.port(name, stage), micro)
        first = [at + 1] if at else [0, 1]
        soon = [
            (readers[0], self.messages[port][0], port, which)
            for (port, which), readers in self.read.items()
            if self.arrives(port) and readers[0] in first
        ]  # in the order of the numbers on both sides: NCCL tells messages apart by order alone
        posts = [
            (self._held(port, which), *self.messages[port], which)
            for _, _, port, which in sorted(soon)
        ]
        takes = [
            self._held(port, which)
            for (port, which), readers in self.read.items()
            if self.arrives(port) and readers[0] == at
        ]
        sends = [
            (self._held(port, micro), *self.gifts[port])
            for port in sorted(
                (f"{name}.{stage}" for name in function.outputs if f"{name}.{stage}" in self.gifts),
                key=lambda port: self.gifts[port],
            )
            if self.leaves(port)
        ]
        return Turn(
            self.attrs.actions[at], key, micro, held, tuple(posts), tuple(takes), tuple(sends)
        )

    def buffers(self, frames: Mapping[str, Frame], slices: Sequence[Type]) -> list[Buffers]:
        """All buffers on the device, in the order in which they are laid out.

        `slices` are the types of the operands that micro-batches take their position of.
        """
        names = self.attrs.names[self.attrs.carries : self.attrs.carries + self.attrs.slices]
        found = [
            Buffers(name, kind.placed(kind.dims[1:]), 1)
            for name, kind in zip(names, slices, strict=True)
        ]
        found += [
            Buffers(port, self.types[port], count)
            for port, count in self.counts.items()
            if port not in self.away
        ]
        return found + [
            Buffers(f"{key} {name}", kind, 1)
            for key, function in self.functions.items()
            for name, kind in zip(function.outputs, function.signature.results, strict=True)
            if name in self.attrs.names and copied(function, frames[function.name], name)
        ]

    def waiting(self) -> list[Buffers]:
        """The buffers in host memory, in the order in which they are laid out."""
        return [Buffers(port, self.types[port], self.counts[port]) for port in sorted(self.away)]


def copied(function: Function, frame: Frame, name: str) -> bool:
    """Whether a function makes a carry that it takes in a buffer of its own, and copies it then."""
    inputs = [given.name for given in function.inputs]
    if name not in inputs:
        return False
    place = frame.places[function.results[function.outputs.index(name)]]
    return place != Place("argument", inputs.index(name))
