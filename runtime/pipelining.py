"""A stage's turns in the pipeline: receive, compute, send, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fllmc.runtime.flight import Handle

Transfer = tuple[int, torch.Tensor, int, int]
"""Site, buffer, the other stage's rank on the pipeline axis, and the message's tag."""


class Turn(NamedTuple):
    """One action. `feed` are copies to make before it, `post` receives to begin, `take` buffers
    whose receives must have ended, `send` what goes off when it is done."""

    action: str
    run: Callable[[], None]
    feed: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    post: tuple[Transfer, ...] = ()
    take: tuple[torch.Tensor, ...] = ()
    send: tuple[Transfer, ...] = ()


Begin = Callable[[int, torch.Tensor, int, int], Handle]
"""Begin a transfer: site, buffer, rank on the pipeline axis, tag."""


def received(turns: Sequence[Turn]) -> list[Transfer]:
    """All that comes."""
    return [transfer for turn in turns for transfer in turn.post]


def sent(turns: Sequence[Turn]) -> list[Transfer]:
    """All that goes off."""
    return [transfer for turn in turns for transfer in turn.send]


def take_turns(turns: Sequence[Turn], send: Begin, receive: Begin) -> None:
    """Carry out all turns.

    A buffer is written again only when what was sent from it has gone; the plan has enough buffers
    that the receiver has asked for it by then.
    """
    coming: dict[int, Handle] = {}
    going: dict[int, Handle] = {}
    for turn in turns:
        for transfer in turn.post:
            coming[transfer[1].data_ptr()] = receive(*transfer)
        for _, buffer, _, _ in turn.send:
            if buffer.data_ptr() in going:
                going.pop(buffer.data_ptr()).wait()
        for buffer in turn.take:
            coming.pop(buffer.data_ptr()).wait()
        for target, source in turn.feed:
            target.copy_(source)
        turn.run()
        for transfer in turn.send:
            going[transfer[1].data_ptr()] = send(*transfer)
    for handle in going.values():
        handle.wait()
