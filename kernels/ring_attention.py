"""Attention whose keys and values go round the ranks that hold them (Liu et al. 2023).

Tensors are those of `attention.py`, each rank's own. In every step a rank attends to one block of
keys and values while it passes that on and the next arrives. Gradients of keys and values follow
their block, one step behind, each rank adding its share, and so come home (FlashAttention-2, Dao
2023, gives the shares from the whole result and its log-sum-exp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fllmc.kernels.attention_parts import Backward, Combined, looks
from fllmc.kernels.attention_scores import Rules


class Ring(Protocol):
    """The ranks in a ring; this one is at `position` of `size`."""

    position: int
    size: int

    def pass_on(self, send: Tensor, receive: Tensor, tag: int) -> Callable[[], None]:
        """Begin to send to the next rank and to receive from the one before; wait by the result."""
        ...


def ring_attend(
    ring: Ring,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    held: Sequence[Sequence[range]],
    blocks: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, Tensor],
) -> None:
    """attend to the keys of all ranks, rank i holding the positions held[i].

    `blocks` [2, elements of k and of v] is scratch: those at hand, and those on their way.
    """
    rules = Rules(scale, causal, window, cap, bias, origin, starts)
    found = Combined(q, v.shape[3], rules)
    here, there = _packed(blocks, k, v)
    for step in range(ring.size):
        last = step + 1 == ring.size
        wait = None if last else ring.pass_on(here, there, 0)
        source = (ring.position - step) % ring.size
        found.add(*_pair(here, k, v), looks(rules, held[ring.position], held[source]))
        if wait is not None:
            wait()
            here, there = there, here
    found.store(out, sinks)


def ring_attend_grad(
    ring: Ring,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    held: Sequence[Sequence[range]],
    blocks: Tensor,
    grads: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, ...],
) -> None:
    """(dq, dk, dv) of ring_attend, and this rank's shares of those of sinks and bias where given.

    `grads` [3, elements of k and of v] is scratch in the dtype of sums: this rank's share of the
    gradients of the block at hand, the sums that it passes on, and those on their way.
    """
    rules = Rules(scale, causal, window, cap, bias, origin, starts)
    found = Backward((q, o, lse, d_out), rules)
    here, there = _packed(blocks, k, v)
    share, sums, coming = grads.unbind(0)
    sums.zero_()
    arrived: Callable[[], None] | None = None
    for step in range(ring.size):
        wait = None if step + 1 == ring.size else ring.pass_on(here, there, 0)
        source = (ring.position - step) % ring.size
        share.zero_()
        seen = looks(rules, held[ring.position], held[source])
        found.add(*_pair(here, k, v), seen, _pair(share, k, v))
        if arrived is not None:
            arrived()
            sums, coming = coming, sums
        sums.add_(share)
        if wait is not None:
            wait()
            here, there = there, here
        arrived = ring.pass_on(sums, coming, 1)
    assert arrived is not None
    arrived()
    found.store(out, _pair(coming, k, v), sinks)


def _packed(blocks: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two buffers, the first with this rank's own keys and values."""
    here, there = blocks.unbind(0)
    for target, value in zip(_pair(here, k, v), (k, v), strict=True):
        target.copy_(value)
    return here, there


def _pair(buffer: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What is in a buffer, as keys and as values."""
    return buffer[: k.numel()].view(k.shape), buffer[k.numel() :].view(v.shape)
