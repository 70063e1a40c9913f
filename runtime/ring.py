"""Passing tensors round the ranks of some mesh axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist


class Ring:
    """The ranks of a group in their order, each with a next one; `sent` counts this rank's bytes.

    A rank posts its send and its receive together and computes before it waits for either, so no
    order of the ranks can lock.
    """

    def __init__(self, group: dist.ProcessGroup, ranks: Sequence[int], position: int) -> None:
        self.group = group
        self.position, self.size = position, len(ranks)
        self.sent = 0
        self._next = ranks[(position + 1) % len(ranks)]
        self._before = ranks[position - 1]

    def pass_on(self, send: torch.Tensor, receive: torch.Tensor, tag: int) -> Callable[[], None]:
        """Begin to send to the next rank and to receive from the one before; wait by the result."""
        self.sent += send.numel() * send.element_size()
        begun = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, send, self._next, self.group, tag),
                dist.P2POp(dist.irecv, receive, self._before, self.group, tag),
            ]
        )

        def wait() -> None:
            for work in begun:
                work.wait()

        return wait
