"""What is under way beside other work: collectives, and copies between device and host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist


class Handle(Protocol):
    """A transfer under way."""

    def wait(self) -> object:
        """Return when it is done."""


class Side(NamedTuple):
    """Work of a turn that runs beside other turns: `begin` gives what `end` is given."""

    begin: Callable[[], tuple[Handle, ...]]
    end: Callable[[tuple[Handle, ...]], None]


def beside(
    ahead: Sequence[Side], turns: Sequence[Callable[[], None]], behind: Sequence[Side]
) -> None:
    """Run all turns.

    What is ahead of one begins before the turn before it; what is behind one begins after it and
    ends after the next. Turns at the end may have neither.
    """
    coming = ahead[0].begin() if ahead else ()
    going: tuple[Handle, ...] = ()
    for number, run in enumerate(turns):
        if number < len(ahead):
            ahead[number].end(coming)
        if number + 1 < len(ahead):
            coming = ahead[number + 1].begin()
        run()
        if 0 < number <= len(behind):
            behind[number - 1].end(going)
        if number < len(behind):
            going = behind[number].begin()
    if behind and len(behind) == len(turns):
        behind[-1].end(going)


class Pending:
    """A collective under way, and what puts its results in place when it is through.

    On a GPU to wait holds up the stream of the device's work, not the process.
    """

    def __init__(self, work: dist.Work | None, then: Callable[[], None] | None = None) -> None:
        assert work is not None, "this rank is not in the group"
        self.work, self.then = work, then

    def wait(self) -> None:
        """Return when the results are in place, for what is done from then on."""
        self.work.wait()
        if self.then is not None:
            self.then()


class Copies:
    """Copies between the device and host memory, on a GPU in a stream of their own.

    Host memory must be pinned there, and neither end may change before the copy is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Handle:
        """Begin a copy, behind what the device has been given to do so far."""
        if self.stream is None:
            target.copy_(source)
            return Copied(None)
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            return Copied(event)


class Copied:
    """A copy under way, or done where there is no stream to wait for."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self.event = event

    def wait(self) -> None:
        """Hold up the device's work until the copy is there."""
        if self.event is not None:
            self.event.wait()
