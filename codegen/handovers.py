"""Whether the stages' turns hand over what they should, and come to their end, by what they post.

The runtime begins receives and sends without waiting for them, in the order of its turns, and waits
for a receive before the turn that reads it, for a send before its buffer is written again. Between
two ranks the values of the forward pass and those of the backward pass have a channel for each
direction, which carries them in the order in which they are sent. A transfer ends when both sides
have begun it; or, where sends are buffered, a send at once. What holds for the first holds for the
second too, for it only lets waits end earlier.

With `meeting`, whoever begins the first transfer of a channel waits for the other side to begin it
as well, as NCCL may where it makes a communicator at its first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fllmc.codegen.turns import Turn, Turns

Sends = Literal["buffered", "rendezvous", "meeting"]
Channel = tuple[int, int, str]
"""Sender, receiver, and whether it is of the forward or the backward pass."""


class Step(NamedTuple):
    """One thing that a rank does with a channel: begin a transfer or wait for it to end.

    `what` is the message's number and micro-batch, `action` the turn.
    """

    kind: Literal["send", "receive", "sent", "received"]
    channel: Channel
    what: tuple[int, int]
    action: str


def steps(turns: Turns) -> Iterator[Step]:
    """All that a rank begins and waits for in its turns, as `runtime/pipelining.py` does it."""
    own = turns.attrs.rank
    coming: dict[object, Step] = {}
    going: dict[object, Step] = {}
    for turn in turns.turns:
        for held, number, giver, micro in turn.posts:
            channel = (giver, own, turns.way(held.port))
            coming[held] = Step("received", channel, (number, micro), turn.action)
            yield coming[held]._replace(kind="receive")
        for held, _, _ in turn.sends:
            if held in going:
                yield going.pop(held)._replace(action=turn.action)
        for held in turn.takes:
            yield coming.pop(held)._replace(action=turn.action)
        yield from sent(turns, turn, going)
    yield from going.values()


def sent(turns: Turns, turn: Turn, going: dict[object, Step]) -> Iterator[Step]:
    """What goes off behind a turn; `going` notes what to wait for."""
    for held, number, taker in turn.sends:
        channel = (turns.attrs.rank, taker, turns.way(held.port))
        going[held] = Step("sent", channel, (number, turn.micro), turn.action)
        yield going[held]._replace(kind="send")


def handover_faults(stages: Sequence[Turns], sends: Sends = "rendezvous") -> list[str]:
    """What is wrong with the turns of all ranks of a pipeline, in words; nothing if all is well."""
    rows = [list(steps(turns)) for turns in stages]
    done = [0] * len(rows)
    begun: dict[tuple[str, Channel], list[tuple[int, int]]] = {}
    waiting: set[int] = set()  # ranks at a first transfer that they have begun

    def goes_on(rank: int, step: Step) -> bool:
        """Whether a rank is past its next step; begins what that begins."""
        mine = "receive" if step.kind in ("receive", "received") else "send"
        other = "send" if mine == "receive" else "receive"
        own, theirs = (begun.setdefault((s, step.channel), []) for s in (mine, other))
        if step.kind in ("send", "receive"):
            if rank not in waiting:
                own.append(step.what)
            first = sends == "meeting" and len(own) == 1 and not theirs
            (waiting.add if first else waiting.discard)(rank)
            return not first
        free = step.kind == "sent" and sends == "buffered"
        return free or own.index(step.what) < len(theirs)

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while done[rank] < len(row) and goes_on(rank, row[done[rank]]):
                done[rank] += 1
                moved = True
    found = [*crossed(begun)]
    for rank, row in enumerate(rows):
        if done[rank] < len(row):
            step = row[done[rank]]
            found.append(f"rank {rank} waits in `{step.action}` for ever, with {step.kind}")
    return found


def crossed(begun: dict[tuple[str, Channel], list[tuple[int, int]]]) -> Iterator[str]:
    """Transfers whose two sides are of different values, and those that have one side only."""
    for (side, channel), given in sorted(begun.items()):
        sender, receiver, way = channel
        taken = begun.get(("receive", channel), [])
        if side != "send":
            if len(taken) > len(begun.get(("send", channel), [])):
                yield f"rank {receiver} asks rank {sender} for more than it sends {way}"
            continue
        for value, other in zip(given, taken, strict=False):
            if value != other:
                yield f"rank {receiver} takes {other} for {value} of rank {sender} {way}"
                break
        if len(given) > len(taken):
            yield f"rank {receiver} does not take all that rank {sender} sends {way}"
